"""What a run of mutants found: a file beside this module, and a table in tests/README.md."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.mutants.mutant import Outcome

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results.json"
SURVIVORS: Final = HERE / "survivors.toml"
README: Final = HERE.parent / "README.md"
BEGIN, END = "<!-- mutants:begin -->", "<!-- mutants:end -->"
_HEAD = ("mutants of", "there are", "tried", "killed", "survived", "explained")


@dataclass(frozen=True)
class Line:
    """One line of the table: a file, or the SQL of the store."""

    subject: str
    population: int
    tried: int
    killed: int
    survivors: tuple[str, ...]

    def cells(self, explained: Iterable[str]) -> tuple[str, ...]:
        """The cells of the line."""
        known = set(explained)
        counts = (self.population, self.tried, self.killed, len(self.survivors))
        return self.subject, *map(str, counts), str(sum(f"{self.subject}: {name}" in known for name in self.survivors))


def lines(population: dict[str, int], outcomes: Iterable[Outcome]) -> list[Line]:
    """A line per subject of *population*, which says how many mutants there are of each."""
    found: dict[str, list[Outcome]] = {subject: [] for subject in population}
    for outcome in outcomes:
        found[subject_of(outcome.mutant.kind, outcome.mutant.file)].append(outcome)
    return [
        Line(
            subject,
            population[subject],
            len(tried),
            sum(outcome.dead for outcome in tried),
            tuple(sorted(outcome.mutant.name for outcome in tried if not outcome.dead)),
        )
        for subject, tried in found.items()
    ]


def subject_of(kind: str, file: str) -> str:
    """What a mutant counts under."""
    return "the store's SQL" if kind == "sql" else file.removeprefix("store/").removeprefix("daemon/")


def key_of(outcome: Outcome) -> str:
    """The name under which a mutant is explained: its subject and its own name."""
    return f"{subject_of(outcome.mutant.kind, outcome.mutant.file)}: {outcome.mutant.name}"


def explanations() -> dict[str, str]:
    """Why a survivor may live, by subject and name."""
    found = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.exists() else {}
    return {f"{subject}: {name}": str(why) for subject, names in found.items() for name, why in names.items()}


def save(kind: str, seed: int, found: list[Line]) -> None:
    """Put the lines of one kind of mutants into the results, in place of what was there of that kind."""
    results = load()
    results[kind] = {"seed": seed, "lines": [line.__dict__ | {"survivors": list(line.survivors)} for line in found]}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load() -> dict[str, Any]:
    """The results as they were saved, by kind."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def saved_lines() -> list[Line]:
    """All lines of the results, the SQL first."""
    results = load()
    return [
        Line(**{**line, "survivors": tuple(line["survivors"])})
        for kind in ("sql", "python")
        for line in results.get(kind, {}).get("lines", ())
    ]


def table() -> str:
    """The table for the page, from the results."""
    found, known = saved_lines(), explanations()
    if not found:
        return "Not run yet."
    rows = [line.cells(known) for line in found]
    sums = [sum(int(row[column]) for row in rows[1:]) for column in range(1, len(_HEAD))]
    if len(rows) > 1:
        rows.append(("all of the Python", *map(str, sums)))
    ruled = [_HEAD, ("---",) + ("---:",) * (len(_HEAD) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def write_page() -> None:
    """Put the table between its marks on the page."""
    page = README.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
