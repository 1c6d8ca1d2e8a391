"""Runs the store's and the sweeper's tests on every supported PostgreSQL and SQLAlchemy.

A cell of the matrix is a run of `TESTS` in a virtual environment with one
series of SQLAlchemy, against a server of one major version of PostgreSQL, started here
with the binaries that `matrix_binaries.py` finds.

A complete run rewrites the table in `tests/README.md`. A version for which there are
no binaries is a failure, never a silent gap.
"""

import argparse
import datetime
import hashlib
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from curfew_store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.matrix_binaries import BinariesUnavailableError, server_binaries

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "tests" / "README.md"
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"

POSTGRES = (14, 15, 16, 17, 18)
SQLALCHEMY = {"2.0": "sqlalchemy[asyncio]>=2.0.40,<2.1", "2.1": "sqlalchemy[asyncio]>=2.1,<2.2"}
CELL_TIMEOUT_SECONDS = 1200
WORKERS = ("-n", "4", "--dist", "worksteal")
# What speaks to PostgreSQL through the store or the sweeper. The others test the daemon's process and its pages.
TESTS = (
    "tests/integration/contract",
    *sorted(
        str(path.relative_to(ROOT))
        for name in (
            "adoption",
            "alembic_hook",
            "autovacuum*",
            "claim*",
            "dotnet",
            "inspection",
            "migrations*",
            "partitions",
            "purger*",
            "races",
            "sweeper*",
        )
        for path in (ROOT / "tests" / "integration").glob(f"test_{name}.py")
    ),
)


@dataclass(frozen=True)
class Cell:
    """The outcome of one run of the tests."""

    postgres: str
    sqlalchemy: str
    psycopg: str
    passed: int
    failed: int
    seconds: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether tests ran and all of them passed."""
        return self.passed > 0 and self.failed == 0 and not self.note

    def columns(self) -> tuple[str, ...]:
        """The cells of the row in the table."""
        verdict = self.note or ("passed" if self.ok else "FAILED")
        counts = (str(self.passed), str(self.failed), f"{self.seconds:.0f}")
        return (self.postgres, self.sqlalchemy, self.psycopg, *counts, verdict)


def say(line: str) -> None:
    """Shows progress at once, also into a pipe."""
    print(line, flush=True)


def output(*command: str | Path) -> str:
    """Runs a command and returns what it printed; a failure raises `CalledProcessError`."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# --- SQLAlchemy ---------------------------------------------------------------


def environment(series: str) -> Path:
    """The Python of a virtual environment with the pinned requirements and this SQLAlchemy."""
    folder = ROOT / f".venv-sa{series.replace('.', '')}"
    python = folder / "bin" / "python"
    stamp = folder / ".ready"
    requirements = (ROOT / "requirements-dev.txt").read_text()
    wanted = f"{ROOT}\n{SQLALCHEMY[series]}\n{hashlib.sha256(requirements.encode()).hexdigest()}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"SQLAlchemy {series}: setting up {folder.name}, about half a minute")
    output(sys.executable, "-m", "venv", "--clear", folder)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(without(requirements, "sqlalchemy"))
        file.flush()
        output(*pip, "--no-compile", "--no-deps", "--require-hashes", "-r", file.name)
    output(*pip, SQLALCHEMY[series])
    output(*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    stamp.write_text(wanted)
    return python


def version(python: Path, name: str) -> str:
    """The installed version of a distribution in that environment."""
    return output(python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))")


def without(requirements: str, name: str) -> str:
    """The requirements but one: its line and the lines with hashes that continue it."""
    kept, skipping = [], False
    for line in requirements.splitlines(keepends=True):
        if not line[0].isspace():
            skipping = line.startswith(f"{name}==")
        if not skipping:
            kept.append(line)
    return "".join(kept)


# --- Cells --------------------------------------------------------------------


def run_cell(major: int, series: str) -> Cell:
    """Runs the tests of one cell; the output of a failing run is shown."""
    python = environment(series)
    sqlalchemy, psycopg_version = (version(python, name) for name in ("sqlalchemy", "psycopg"))
    begun = time.monotonic()
    try:
        with EmbeddedPostgres.start(bin_dir=server_binaries(major)) as server:
            reported = reported_version(server)
            passed, failed, note = run_tests(python, server)
    except (BinariesUnavailableError, EmbeddedPostgresError) as error:
        return Cell(str(major), sqlalchemy, psycopg_version, 0, 0, 0.0, f"FAILED: {error}")
    if reported.partition(".")[0] != str(major):
        note = f"FAILED: asked for PostgreSQL {major}"
    return Cell(reported, sqlalchemy, psycopg_version, passed, failed, time.monotonic() - begun, note)


def reported_version(server: EmbeddedPostgres) -> str:
    """What the server says of itself, such as "15.18", without the packager's suffix."""
    with psycopg.connect(server.conninfo) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return "" if row is None else str(row[0]).split()[0]


def run_tests(python: Path, server: EmbeddedPostgres) -> tuple[int, int, str]:
    """Passed, failed, and a note on a failure that is not a test's."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        junit = Path(folder) / "junit.xml"
        command = [str(python), "-m", "pytest", *TESTS, *WORKERS, "-q", "-x", "-p", "no:cacheprovider"]
        command += [f"--curfew-database-url={server.conninfo}", f"--junitxml={junit}"]
        note = pytest_note(command)
        return (*read_junit(junit), note)


def pytest_note(command: Sequence[str]) -> str:
    """Runs pytest, shows what it said if it failed, and names a failure that is not a test's."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CELL_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"FAILED: still running after {CELL_TIMEOUT_SECONDS} s"
    if done.returncode:
        say(done.stdout)
    return "" if done.returncode in (0, 1) else f"FAILED: pytest exit code {done.returncode}"


def read_junit(path: Path) -> tuple[int, int]:
    """How many tests passed, and how many failed or could not be set up."""
    if not path.exists():
        return 0, 0
    outcomes = [{child.tag for child in case} for case in ET.parse(path).iter("testcase")]
    failed = sum(bool(tags & {"failure", "error"}) for tags in outcomes)
    return sum(not tags & {"failure", "error", "skipped"} for tags in outcomes), failed


# --- Report -------------------------------------------------------------------


def table(cells: Iterable[Cell]) -> str:
    """The outcome as a Markdown table."""
    header = ("PostgreSQL", "SQLAlchemy", "psycopg", "passed", "failed", "seconds", "verdict")
    rows = [header, ("---", "---", "---", "--:", "--:", "--:", "---"), *(cell.columns() for cell in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_report(cells: Sequence[Cell]) -> None:
    """Replaces what stands between the markers in `tests/README.md`."""
    text = REPORT.read_text()
    head, found_begin, rest = text.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not (found_begin and found_end):
        raise SystemExit(f"{REPORT} lacks the markers {BEGIN} and {END}")
    today = datetime.datetime.now(datetime.UTC).date()
    ran = f"Last run: {today}, Python {platform.python_version()}, {platform.system()} {platform.machine()}."
    REPORT.write_text(f"{head}{BEGIN}\n{ran}\n\n{table(cells)}\n{END}{tail}")


def main() -> int:
    """Runs the chosen cells and returns the exit code: 0 if every one passed."""
    parser = argparse.ArgumentParser(description="Run tests/integration on each PostgreSQL and SQLAlchemy.")
    parser.add_argument("--only", type=int, choices=POSTGRES, action="append", help="this PostgreSQL only")
    majors = parser.parse_args().only or POSTGRES
    cells = []
    for major in majors:
        for series in SQLALCHEMY:
            say(f"PostgreSQL {major}, SQLAlchemy {series} …")
            cells.append(run_cell(major, series))
            say(f"  {table(cells[-1:]).splitlines()[-1]}")
    say(table(cells))
    if tuple(majors) == POSTGRES:
        write_report(cells)
    else:
        say("A partial run: tests/README.md is left as it is")
    return 0 if all(cell.ok for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
