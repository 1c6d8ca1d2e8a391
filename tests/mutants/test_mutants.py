"""The mutants' own tests: the table fits the code, the page fits the results, survivors are explained."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.mutants import report
from tests.mutants.forks import TIMED_OUT, Done, Forks
from tests.mutants.mutant import Mutant, Outcome, Verdict, changed_lines
from tests.mutants.python import idle_ranges, own_tests
from tests.mutants.sandbox import ROOT, Known, judged
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


SIGNATURE = """
def a(x: int | None, *, y=1 * 2) -> str | None:
    return x * y

def b(
    x,
    /,
    *  ,
    y,
): ...
"""


def test_what_does_nothing_when_the_program_runs_is_not_mutated() -> None:
    """Annotations and the bare markers of signatures; defaults and real operators are."""
    idle = idle_ranges(SIGNATURE)

    def is_idle(line: int, column: int) -> bool:
        return any(first <= (line, column) < last for first, last in idle)

    lines = SIGNATURE.splitlines()
    assert is_idle(2, lines[1].index("|"))
    assert is_idle(2, lines[1].rindex("|"))
    assert is_idle(2, lines[1].index("*,"))
    assert not is_idle(2, lines[1].index("* 2"))
    assert not is_idle(3, lines[2].index("*"))
    assert is_idle(7, 4)
    assert is_idle(8, 4)


@pytest.mark.parametrize(
    ("code", "output", "imports", "verdict"),
    [
        (0, "3 passed", True, ("survived", "")),
        (1, "FAILED tests/a.py::test_b - assert", True, ("killed", "tests/a.py::test_b")),
        (1, "FAILED tests/a.py::test_b[no key]\n1 failed", True, ("killed", "tests/a.py::test_b[no key]")),
        (1, "ERROR tests/a.py::test_b - fixture", True, ("killed", "tests/a.py::test_b")),
        (2, "ERROR tests/a.py - NameError", True, ("killed", "collecting tests/a.py")),
        (2, "ERROR tests/a.py - NameError", False, ("killed", "its import")),
        (4, "ImportError while loading conftest", False, ("killed", "its import")),
        (4, "unrecognized arguments", True, ("broken", "unrecognized arguments")),
        (5, "no tests ran", True, ("broken", "no tests ran")),
        (-11, "", True, ("broken", "")),
        (TIMED_OUT, "", True, ("timeout", "all its tests")),
    ],
)
def test_verdicts(code: int, output: str, imports: bool, verdict: tuple[str, str]) -> None:
    """A test that failed is told from a file that could not be collected, a failed import, and from no proof at all."""
    assert judged(Done(code, output, 1.0), lambda: imports) == verdict


def test_what_noticed_most_runs_first_and_units_before_all() -> None:
    """For each file by itself."""
    known = Known()
    mutant = Mutant("python", "m", "a.py", "", ("tests/i/x.py", "tests/unit/a.py", "tests/i/y.py", "tests/unit/b.py"))
    known.killed("a.py", "tests/unit/b.py::test_c")
    known.killed("a.py", "tests/i/y.py::test_d[1]")
    known.killed("other.py", "tests/i/x.py::test_d[1]")
    assert list(known.stages(mutant)) == [("tests/unit/b.py", "tests/unit/a.py"), ("tests/i/y.py", "tests/i/x.py")]


def test_a_test_is_tried_without_a_mutant_once() -> None:
    """What fails without one, too, proves nothing; that is remembered."""
    known, runs = Known(), [Done(1, "", 1.0), Done(0, "", 1.0)]
    assert [known.passes("a", runs.pop) for _ in range(2)] == [True, True]
    assert [known.passes("b", runs.pop) for _ in range(2)] == [False, False]


def test_forks_answer_each_request_and_know_nothing_of_the_one_before(tmp_path: Path) -> None:
    """A source that changed between two is read anew, a test that hangs is ended, and so is what it started."""
    source = tmp_path / "subject.py"
    (tmp_path / "test_it.py").write_text("import subject\n\ndef test_it():\n    subject.work()\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    source.write_text("def work(): pass\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    forks = Forks(tmp_path, env, ["no-such-test"])
    try:
        assert forks.pytest(["test_it.py"], 60).code == 0
        assert forks.imports("subject", 60)
        source.write_text("def work(): raise KeyError\n")
        assert "FAILED test_it.py::test_it" in forks.pytest(["test_it.py"], 60).output
        source.write_text("no python")
        assert not forks.imports("subject", 60)
        source.write_text("import subprocess\ndef work(): subprocess.run(['sleep', '600'])\n")
        assert forks.pytest(["test_it.py"], 3).code == TIMED_OUT
    finally:
        forks.close()


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
