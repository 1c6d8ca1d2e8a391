"""The mutants' own tests: the table fits the code, the page fits the results, survivors are explained."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import report
from tests.mutants.mutant import Mutant, Outcome, Verdict, changed_lines
from tests.mutants.python import own_tests
from tests.mutants.sandbox import ROOT
from tests.mutants.sql import Change, PieceNotFoundError, changes, mutated, sql_mutants


def test_every_mutant_of_the_sql_still_fits_the_code() -> None:
    """Each piece stands once where the table says, and what comes of the change is Python."""
    mutants = list(sql_mutants(ROOT))
    assert len({mutant.name for mutant in mutants}) == len(mutants) > 50
    for mutant in mutants:
        ast.parse(mutant.source)
        assert mutant.source != (ROOT / mutant.file).read_text(encoding="utf-8")


@pytest.mark.parametrize("source", ["nothing of it", "twice: x < y, x < y"])
def test_a_piece_that_does_not_stand_there_once_is_an_error(source: str) -> None:
    """A statement that has moved on cannot leave a mutant behind that mutates nothing."""
    change = Change("name", "enforcement", "x < y", "x <= y", ())
    with pytest.raises(PieceNotFoundError, match=r"name: found (0|2) times in enforcement\.py: x < y"):
        mutated(change, source)


def test_the_tests_of_every_mutant_exist() -> None:
    """No mutant is tried on tests that are not there."""
    named = {test for change in changes() for test in change.tests}
    for file, tests in own_tests().items():
        named |= {file, *tests}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def _outcome(name: str, verdict: Verdict) -> Outcome:
    return Outcome(Mutant("python", name, "store/curfew_store/keys.py", "", ()), verdict, "", 1.0)


def test_results_count_what_died_and_name_what_lived() -> None:
    """A time-out is a death, a mutant under which no test ran is not."""
    outcomes = [_outcome("a", "killed"), _outcome("b", "timeout"), _outcome("c", "survived"), _outcome("d", "broken")]
    (line,) = report.lines({"curfew_store/keys.py": 9}, outcomes)
    assert line == report.Line("curfew_store/keys.py", 9, 4, 2, ("c", "d"))
    assert line.cells(["curfew_store/keys.py: c"]) == ("curfew_store/keys.py", "9", "4", "2", "2", "1")


def test_a_mutant_is_named_by_the_lines_that_it_changes() -> None:
    """The name holds the old and the new line, so it means the same as long as they do."""
    assert changed_lines("a\nif x:\n    b\n", "a\nif not x:\n    b\n") == "if x: -> if not x:"
    assert changed_lines("@once\ndef f(): ...\n", "def f(): ...\n") == "@once -> (nothing)"


def test_mutants_of_the_sql_were_run() -> None:
    """There are results of every one in the table, so the tests below have something to hold."""
    (line,) = (each for each in report.saved_lines() if each.subject == "the store's SQL")
    assert line.tried == line.population > 80, "run: make mutants ARGS='--only sql --save'"


def test_the_page_shows_the_results() -> None:
    """The table in tests/README.md is the one that the results file gives."""
    page = report.README.read_text(encoding="utf-8")
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    shown = page.split(report.BEGIN)[1].split(report.END)[0].strip()
    assert shown == report.table()


def test_every_survivor_is_explained_and_nothing_else() -> None:
    """Each survivor of the results has a reason to live, and no reason outlives its mutant."""
    survivors = {f"{line.subject}: {name}" for line in report.saved_lines() for name in line.survivors}
    assert survivors == report.explanations().keys()


def test_nothing_of_the_sql_survives_and_nine_tenths_of_the_python_die() -> None:
    """The saved results meet the marks that the project sets itself."""
    sql = [line for line in report.saved_lines() if line.subject == "the store's SQL"]
    python = [line for line in report.saved_lines() if line.subject != "the store's SQL"]
    assert [line.survivors for line in sql] == [()] * len(sql)
    assert sum(line.killed for line in python) >= 0.9 * sum(line.tried for line in python)
