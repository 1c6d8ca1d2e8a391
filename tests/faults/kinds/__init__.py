"""All kinds of faults, and the stages that they strike in.

A module of this package has ``KINDS``, a tuple of `Kind`, and may have ``STAGES``: openers by name of labs that are
put together in another way, each a function from `LabOptions` to a context manager of a `Lab`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

from tests.faults.lab import Kind, Lab, LabOptions

__all__ = ["ABSENT", "KINDS", "STAGES", "TITLES", "chosen"]

Opener = Callable[[LabOptions], AbstractContextManager[Lab]]
_MODULES: Final = (
    "process",
    "server",
    "locks",
    "rows",
    "network",
    "silence",
    "storm",
    "replication",
    "clocks",
    "limits",
    "poolers",
    "credentials",
    "upgrade",
    "callers",
    "names",
    "disks",
)

TITLES: Final[Mapping[str, str]] = {
    "F1": "a daemon killed",
    "F2": "SIGTERM in the middle of a statement",
    "F3": "a daemon or a producer frozen and thawed",
    "F4": "a daemon out of memory",
    "F5": "all sessions terminated by the server",
    "F6": "PostgreSQL restarted (fast)",
    "F7": "PostgreSQL crashed",
    "F8": "a long outage of PostgreSQL",
    "F9": "PostgreSQL frozen",
    "F10": "connection cut before the statement arrives",
    "F11": "connection cut before the answer arrives",
    "F12": "connections half open",
    "F13": "latency and a narrow link",
    "F14": "resets",
    "F15": "garbage instead of PostgreSQL",
    "F16": "failover to a standby",
    "F17": "two primaries",
    "F18": "a standby or a read-only database",
    "F19": "a frozen synchronous standby",
    "F20": "the horizon held back",
    "F21": "statistics gone stale",
    "F22": "a lock on the whole table",
    "F23": "a producer idle in transaction on overdue runs",
    "F24": "bulk updates in opposite orders",
    "F25": "another isolation level as the role's default",
    "F26": "the database's clock stepped",
    "F27": "a daemon's clock or time zone off",
    "F28": "disk full",
    "F29": "slow input and output",
    "F30": "connections exhausted",
    "F31": "a pooler killed, paused, or with one connection",
    "F32": "a password rotated, a role dropped, a certificate expired",
    "F33": "poison rows",
    "F34": "a great many equal deadlines",
    "F35": "a host name that changes or does not resolve",
    "F36": "file descriptors, threads or standard output exhausted",
    "F37": "hostile HTTP",
    "F38": "a rolling upgrade",
    "F39": "a producer cut off at each statement",
    "F40": "columns, tables or the schema version missing",
    "F41": "several faults at once",
}
"""The whole list, by code."""

ABSENT: Final[dict[str, str]] = {}
"""Why a code of the list has no kind here."""


def _gathered() -> tuple[tuple[Kind, ...], dict[str, Opener]]:
    kinds: list[Kind] = []
    stages: dict[str, Opener] = {"plain": Lab.open}
    for name in _MODULES:
        if importlib.util.find_spec(f"{__name__}.{name}") is None:
            continue
        module = importlib.import_module(f"{__name__}.{name}")
        kinds += module.KINDS
        stages |= getattr(module, "STAGES", {})
        ABSENT.update(getattr(module, "ABSENT", {}))
    return tuple(kinds), stages


KINDS, STAGES = _gathered()
"""Every kind; several may share a code. And the openers of their labs."""


def chosen(words: str | None) -> tuple[Kind, ...]:
    """The kinds whose code or name is in *words* (separated by commas); all of them for none.

    Raises `ValueError` for a word that no kind answers to.
    """
    if not words:
        return KINDS
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in wanted if not any(word in (kind.code, kind.name) for kind in KINDS)]
    if unknown:
        raise ValueError(f"no such fault: {', '.join(unknown)}")
    return tuple(kind for kind in KINDS if kind.code in wanted or kind.name in wanted)
