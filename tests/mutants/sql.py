"""Mutants of the SQL, from the table in sql.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.mutant import Mutant

TABLE: Final = Path(__file__).with_suffix(".toml")


class PieceNotFoundError(Exception):
    """A statement is no longer what the table says."""


@dataclass(frozen=True)
class Change:
    """*old* stands once in the module *file* of the store; *new* is put in its place; one of *tests* has to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def changes() -> list[Change]:
    """The table."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Change(**{**each, "tests": tuple(table["tests"][each["tests"]])}) for each in table["change"]]


def mutated(change: Change, source: str) -> str:
    """*source* with the change in it; `PieceNotFoundError` if its old piece does not stand there exactly once."""
    count = source.count(change.old)
    if count != 1:
        raise PieceNotFoundError(f"{change.name}: found {count} times in {change.file}.py: {change.old}")
    return source.replace(change.old, change.new)


def sql_mutants(root: Path) -> Iterator[Mutant]:
    """Every mutant of the table, made from the sources under *root*."""
    for change in changes():
        file = f"store/curfew_store/{change.file}.py"
        source = (root / file).read_text(encoding="utf-8")
        yield Mutant("sql", change.name, file, mutated(change, source), change.tests)
