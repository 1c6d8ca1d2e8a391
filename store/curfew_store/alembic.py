"""For services with Alembic migrations of their own: keep autogenerate away from curfewd's tables."""

from __future__ import annotations

from typing import Any

from curfew_store.schema import CONTROLS, KEYS, VERSION_TABLE

__all__ = ["include_object"]

_OURS = frozenset({CONTROLS, KEYS, VERSION_TABLE})


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Alembic's ``include_object`` hook: ``False`` for our tables and whatever hangs on them.

    Without it ``alembic revision --autogenerate`` of a service that shares the database would propose to drop
    them. Pass it to ``context.configure(include_object=include_object)``; call it from a hook of your own
    to combine the two.
    """
    table = name if type_ == "table" else getattr(getattr(object_, "table", None), "name", None)
    # A table that the service has in its own metadata under one of these names is the service's affair.
    return table not in _OURS or not (reflected and compare_to is None)
