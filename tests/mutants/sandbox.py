"""Private copies of the checkout, in which mutants live; the checkout itself is never touched.

A copy is found before the editable install since it stands in PYTHONPATH, and a copy in which the packages come from
anywhere else is refused. The tests use a server that is started once, each run with databases of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("store", "daemon", "deploy", "tests", "pyproject.toml", "README.md", "Makefile", "requirements-dev.txt")
# So much for what a test of the slowest kind takes on a busy machine, and this as often as the tests took without.
LEAST_PATIENCE_SECONDS = 60.0
PATIENCE = 5.0
LONGEST_BASELINE_SECONDS = 900.0

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_NO_TEST_RAN = {2, 3, 4, 5}  # pytest's exit codes for interrupted, internal error, usage, nothing collected


class SandboxError(Exception):
    """The copy does not do what the checkout does, so nothing can be told from its tests."""


class Baseline:
    """How long each set of tests takes without a mutant; found out once, by whichever sandbox needs it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, ...], float] = {}

    def seconds(self, tests: tuple[str, ...], run: Callable[[], tuple[Verdict, str, float]]) -> float:
        """Raises `SandboxError` if the tests fail even without a mutant."""
        with self._lock:
            if tests not in self._seconds:
                verdict, by, seconds = run()
                if verdict != "survived":
                    raise SandboxError(f"without any mutant, {' '.join(tests)} ended as {verdict} by {by}")
                self._seconds[tests] = seconds
            return self._seconds[tests]


class Sandbox:
    """One copy of the checkout."""

    def __init__(self, database_url: str, baseline: Baseline) -> None:
        self._baseline = baseline
        self.root = Path(tempfile.mkdtemp(prefix="curfew-mutants-"))
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            elif source.exists():
                shutil.copy2(source, self.root / name)
        # No .pyc files: one that is as old and as long as its mutated source would be taken for it.
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CURFEW_", "PG"))},
            "PYTHONPATH": os.pathsep.join(str(self.root / name) for name in ("store", "daemon", "")),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CURFEW_TEST_DATABASE_URL": database_url,
        }
        self._check_imports()

    def close(self) -> None:
        """Remove the copy."""
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
        """Run the mutant's tests with the mutant in place. Raises `SandboxError` if they fail without it."""
        usual = self._baseline.seconds(mutant.tests, lambda: self._run(mutant.tests, LONGEST_BASELINE_SECONDS))
        path = self.root / mutant.file
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.source, encoding="utf-8")
        try:
            verdict, by, seconds = self._run(mutant.tests, max(LEAST_PATIENCE_SECONDS, PATIENCE * usual))
        finally:
            path.write_text(original, encoding="utf-8")
        return Outcome(mutant, verdict, by, seconds)

    def _run(self, tests: Sequence[str], patience: float) -> tuple[Verdict, str, float]:
        """The verdict, the test that decided it, and how long it took."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "--no-header",
            *tests,
        ]
        begun = time.monotonic()
        with subprocess.Popen(
            command, cwd=self.root, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                output, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return "timeout", "", time.monotonic() - begun
        seconds = time.monotonic() - begun
        if process.returncode == 0:
            return "survived", "", seconds
        found = _FAILED.search(output)
        if process.returncode in _NO_TEST_RAN or found is None:
            return "broken", output[-400:], seconds
        return "killed", found.group(1), seconds
