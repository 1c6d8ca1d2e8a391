"""The store in both kinds with its database, as the contract's suite has it."""

from tests.integration.contract.conftest import facade, loop, open_facade, rows, store, url

__all__ = ["facade", "loop", "open_facade", "rows", "store", "url"]
