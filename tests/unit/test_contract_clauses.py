"""The clauses of store/CONTRACT.md and the tests that name them, held against each other."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CONTRACT = TESTS.parent / "store" / "CONTRACT.md"
CLAUSE = re.compile(r"^- \*\*([A-Z]-[1-9][0-9]*)\*\* ", re.MULTILINE)


def clauses() -> list[str]:
    """The ids of the clauses, in the order of the page."""
    return CLAUSE.findall(CONTRACT.read_text(encoding="utf-8"))


def named_in(source: str) -> Iterator[str]:
    """The ids in every ``….contract(…)`` of a module, and in every ``contract(…)`` that stands for it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name == "contract":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def uses() -> dict[str, list[str]]:
    """The clauses that tests name, each with the files that do."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for clause in named_in(path.read_text(encoding="utf-8")):
            found.setdefault(clause, []).append(str(path.relative_to(TESTS)))
    return found


def test_every_clause_is_held_by_a_test() -> None:
    """No promise stands on the page that no test names."""
    assert sorted(set(clauses()) - uses().keys()) == []


def test_every_named_clause_exists() -> None:
    """No test names a clause that is not on the page."""
    assert {clause: files for clause, files in uses().items() if clause not in clauses()} == {}


def test_clauses_are_numbered_without_gaps() -> None:
    """Each id occurs once, and the numbers of a group run from one without a gap, in order."""
    ids = clauses()
    assert [clause for clause, times in Counter(ids).items() if times > 1] == []
    groups: dict[str, list[int]] = {}
    for clause in ids:
        group, _, number = clause.partition("-")
        groups.setdefault(group, []).append(int(number))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in groups.values()), groups
    assert len(ids) > 100


def test_every_bullet_of_the_page_is_a_clause() -> None:
    """A promise that was written without an id, or with a mistyped one, would escape the count."""
    bullets = [line for line in CONTRACT.read_text(encoding="utf-8").splitlines() if line.startswith("- ")]
    assert [line for line in bullets if not CLAUSE.match(line)] == []


@pytest.mark.contract("E-10")
@pytest.mark.parametrize("guide", ["README.md", "store/README.md"])
def test_the_guides_warn_on_their_first_screen(guide: str) -> None:
    """Whoever starts to read learns at once that a run has to be completed, or will be marked."""
    lines = (TESTS.parent / guide).read_text(encoding="utf-8").splitlines()[:24]
    first_screen = " ".join(line.lstrip("> ") for line in lines)
    warning = r"never completed through `complete_run` will be marked\b.* at its deadline"
    assert re.search(warning, first_screen, re.IGNORECASE)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('@pytest.mark.contract("K-3", "K-4")\ndef test(): ...', ["K-3", "K-4"]),
        ('marks = contract("K-3")', ["K-3"]),
        ('pytest.param(1, marks=[pytest.mark.contract("K-3")])', ["K-3"]),
        ('# pytest.mark.contract("K-3")', []),
        ('mark.other("K-3")', []),
    ],
)
def test_the_reader_of_markers(source: str, named: list[str]) -> None:
    """Markers are found where they are code, wherever they stand, and not in comments."""
    assert list(named_in(source)) == named
