"""Private copies of the checkout, in which mutants live; the checkout itself is never touched.

A copy is found before the editable install since it stands in PYTHONPATH, and a copy in which the packages come from
anywhere else is refused. The tests use a server that is started once, each run with databases of its own. Unit tests
run first, then the others, those first that have noticed most so far.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.mutants.forks import TIMED_OUT, Done, Forks
from tests.mutants.mutant import Mutant, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("store", "daemon", "deploy", "tests", "pyproject.toml", "README.md", "Makefile", "requirements-dev.txt")
# For all tests of a module. One that hangs is ended by its own limit long before, and has failed then.
PATIENCE_SECONDS = 900.0
IMPORT = "its import"
COLLECTING = "collecting "
COLLECT = ("--collect-only",)

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_INTERRUPTED = 2  # pytest's exit code where a file could not be collected


class SandboxError(Exception):
    """The copy is not what would be tested."""


class Known:
    """What all sandboxes know of the tests: which of them pass without a mutant, and which noticed most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pass: dict[str, bool] = {}
        self._kills: Counter[tuple[str, str]] = Counter()

    def passes(self, test: str, run: Callable[[], Done]) -> bool:
        """Whether *test* passes without a mutant; found out for those that noticed one, and once for each."""
        if test not in self._pass:
            self._pass[test] = run().code == 0
        return self._pass[test]

    def left_out(self) -> list[str]:
        """Options for pytest that leave out what fails without a mutant, too, and so proves nothing."""
        return [option for test, passes in [*self._pass.items()] if not passes for option in ("--deselect", test)]

    def killed(self, file: str, by: str) -> None:
        """A mutant of *file* was noticed by a test."""
        with self._lock:
            self._kills[file, by.partition("::")[0]] += 1

    def stages(self, mutant: Mutant) -> Iterator[tuple[str, ...]]:
        """The mutant's tests in the order in which to run them."""
        units = [test for test in mutant.tests if test.startswith("tests/unit/")]
        others = [test for test in mutant.tests if test not in units]
        for stage in (units, others):
            if stage:
                yield tuple(sorted(stage, key=lambda test: -self._kills[mutant.file, test]))


class Sandbox:
    """One copy of the checkout."""

    def __init__(self, database_url: str, known: Known) -> None:
        self._known = known
        self.root = Path(tempfile.mkdtemp(prefix="curfew-mutants-"))
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            elif source.exists():
                shutil.copy2(source, self.root / name)
        # By hash: a .pyc file that goes by time and length would be taken for that of a mutated source.
        by_hash = py_compile.PycInvalidationMode.CHECKED_HASH
        for name in ("store", "daemon", "tests"):
            compileall.compile_dir(self.root / name, quiet=1, invalidation_mode=by_hash)
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CURFEW_", "PG"))},
            "PYTHONPATH": os.pathsep.join(str(self.root / name) for name in ("store", "daemon", "")),
            "CURFEW_TEST_DATABASE_URL": database_url,
        }
        self._check_imports()
        self._forks = Forks(self.root, self._env, ["tests/unit", "tests/integration"])

    def close(self) -> None:
        """Remove the copy."""
        self._forks.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _check_imports(self) -> None:
        names = "curfew_store, curfew_daemon, tests"
        asked = f"import {names}; print(*(module.__file__ for module in ({names})))"
        done = subprocess.run(
            [sys.executable, "-c", asked], cwd=self.root, env=self._env, capture_output=True, text=True, check=True
        )
        elsewhere = [path for path in done.stdout.split() if not Path(path).is_relative_to(self.root)]
        if elsewhere:
            raise SandboxError(f"the copy would be tested with {elsewhere}")

    def try_out(self, mutant: Mutant) -> Outcome:
        """Run the mutant's tests with the mutant in place; what noticed it has to pass without, or is left out."""
        taken = 0.0
        for tests in self._known.stages(mutant):
            verdict, by, seconds = self._stage(mutant, [*tests, *self._known.left_out()])
            taken += seconds
            if verdict == "killed":
                self._known.killed(mutant.file, by)
            if verdict != "survived":
                return Outcome(mutant, verdict, by, taken)
        return Outcome(mutant, "survived", "", taken)

    def _stage(self, mutant: Mutant, tests: Sequence[str]) -> tuple[Verdict, str, float]:
        with self._in_place(mutant):
            done = self._forks.pytest(tests, PATIENCE_SECONDS)
            verdict, by = judged(done, lambda: self._forks.imports(_module(mutant), PATIENCE_SECONDS))
        if verdict != "killed" or by == IMPORT:
            return verdict, by, done.seconds
        alone = [*COLLECT, by.removeprefix(COLLECTING)] if by.startswith(COLLECTING) else [by]
        if self._known.passes(by, partial(self._forks.pytest, alone, PATIENCE_SECONDS)):
            return verdict, by, done.seconds
        if by.startswith(COLLECTING) or by in tests:
            return "broken", f"{by} fails without the mutant, too", done.seconds
        verdict, by, seconds = self._stage(mutant, [*tests, "--deselect", by])
        return verdict, by, done.seconds + seconds

    @contextmanager
    def _in_place(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.file
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.source, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")


def _module(mutant: Mutant) -> str:
    return ".".join(Path(mutant.file).with_suffix("").parts[1:])


def judged(done: Done, imports: Callable[[], bool]) -> tuple[Verdict, str]:
    """What a run of tests that pass without the mutant says of it, and what noticed.

    That is the test that failed, a file of tests that could not be collected any more, or the import of the mutated
    module, which *imports* tries. Whatever else kept pytest from running a test proves nothing.
    """
    if done.code == TIMED_OUT:
        return "timeout", "all its tests"
    if done.code == 0:
        return "survived", ""
    found = _FAILED.search(done.output)
    if done.code == 1 and found is not None:
        return "killed", found.group(1)
    if not imports():
        return "killed", IMPORT
    if done.code == _INTERRUPTED and found is not None:
        return "killed", COLLECTING + found.group(1)
    return "broken", done.output[-400:]
