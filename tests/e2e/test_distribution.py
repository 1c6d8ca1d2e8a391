"""What a user installs: the sdist and the wheel, and what they do outside the checkout.

Each virtual environment here holds the wheel and exactly what the wheel's metadata asks
for with the chosen extras: the pinned distributions of the running environment, linked
in. So a requirement that pyproject.toml forgets is missing here as it would be for a
user, and no package index is needed.
"""

import email
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import Database

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"curfew_store": ROOT / "store", "curfew_daemon": ROOT / "daemon"}
MISSING_DAEMON_EXTRA = 8  # the exit code

PRODUCER = """
import os, sys, uuid
from datetime import timedelta
from sqlalchemy import create_engine
from curfew_store import FlowRunControlStore, RunState

store = FlowRunControlStore(create_engine(os.environ["PRODUCER_URL"]))
flow = uuid.uuid4()
first = store.start_run(flow, "nightly", "invoice-7", timeout=timedelta(hours=1))
again = store.start_run(flow, "nightly", "invoice-7", timeout=timedelta(hours=1))
assert (first.duplicate, again.duplicate) == (False, True), (first, again)
assert again.run_id == first.run_id
record = store.get_run_control(first.run_id)
assert record is not None and record.state is RunState.ACTIVE, record
assert store.complete_run(first.run_id) is True
assert not {"alembic", "structlog", "typer", "apscheduler"} & set(sys.modules)
print("produced")
"""


class Environment:
    """A virtual environment outside the checkout with the wheel and what it requires."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "--python", folder)
        run(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel)
        self.site = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        for name in required(metadata(wheel).get_all("Requires-Dist", []), *extras):
            self._link(importlib.metadata.distribution(name))

    def _link(self, distribution: importlib.metadata.Distribution) -> None:
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            link = self.site / top
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))))

    def run(self, *command: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Runs a program of the environment, in its folder, with no trace of the checkout."""
        inherited = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env=inherited | environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )


def run(*command: str | Path) -> str:
    """Runs a command that must succeed, and returns its standard output."""
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def metadata(wheel: Path) -> email.message.Message:
    """The wheel's own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def required(requirements: list[str], *extras: str) -> set[str]:
    """The names of all distributions that these requirements lead to here, with these extras."""
    found: set[str] = set()
    todo = [(requirement, extras) for requirement in requirements]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        text, wanted = item = todo.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted))
        if item in seen or not applies:
            continue
        seen.add(item)
        found.add(canonicalize_name(requirement.name))
        below = importlib.metadata.requires(requirement.name) or []
        todo += [(text, tuple(sorted(requirement.extras))) for text in below]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The only wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def daemon(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install 'curfewd[daemon]'`."""
    return Environment(tmp_path_factory.mktemp("daemon"), wheel, "daemon")


@pytest.fixture(scope="module")
def producer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install 'curfewd[binary]'`."""
    return Environment(tmp_path_factory.mktemp("producer"), wheel, "binary")


def package_files() -> Iterator[str]:
    """Every file of the two packages in the checkout, as the wheel must name it."""
    for name, parent in PACKAGES.items():
        for path in (parent / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(parent).as_posix()


def test_wheel_holds_both_packages_whole_and_nothing_else(wheel: Path) -> None:
    """Types, migrations and templates are in the wheel; tests and the folders around it are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == set(package_files())
    assert {"curfew_store/py.typed", "curfew_daemon/py.typed"} <= packed
    assert any("/versions/" in name and name.endswith(".py") for name in packed), "no migrations"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_holds_what_a_packager_needs_to_test_it(built: Path) -> None:
    """The sdist has sources, tests, Makefile and pins, and nothing that a run left behind."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "DECISIONS.md", "SECURITY.md", "Makefile"}
    assert documents | {"pyproject.toml", "requirements-dev.txt", "PKG-INFO"} <= names
    assert {f"{PACKAGES[name.split('/')[0]].name}/{name}" for name in package_files()} <= names
    assert Path(__file__).relative_to(ROOT).as_posix() in names
    leftovers = (".pyc", ".venv", ".git/", ".pg-matrix", ".coverage", "_cache/")
    assert not [name for name in names if any(part in name for part in leftovers)]


def test_installed_wheel_runs_from_its_own_files(daemon: Environment) -> None:
    """Python finds both packages in the environment, not in the checkout, and both are typed."""
    for name in PACKAGES:
        done = daemon.run("python", "-c", f"import {name}; print({name}.__file__)")
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).parent == daemon.site / name
        assert (daemon.site / name / "py.typed").exists()


def test_installed_wheel_migrates_and_marks_an_overdue_run(daemon: Environment, empty_database: Database) -> None:
    """`curfewd migrate` makes the tables and `curfewd once` marks what is overdue, and only that."""
    url = {"CURFEW_DATABASE_URL": empty_database.conninfo}
    migrated = daemon.run("curfewd", "migrate", **url)
    assert migrated.returncode == 0, migrated.stderr
    with psycopg.connect(empty_database.conninfo, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc) VALUES"
            " (gen_random_uuid(), 'overdue', now() - interval '1 minute'),"
            " (gen_random_uuid(), 'later', now() + interval '1 hour')"
        )
        swept = daemon.run("curfewd", "once", **url)
        assert swept.returncode == 0, swept.stderr
        marked = "SELECT trigger_key, timed_out_at_utc IS NOT NULL FROM flow_run_controls"
        assert dict(connection.execute(marked).fetchall()) == {"overdue": True, "later": False}


def test_base_install_with_psycopg_is_enough_to_produce(producer: Environment, database: Database) -> None:
    """A trigger service needs the store and psycopg's binary alone: no part of the daemon's extra."""
    done = producer.run("python", "-c", PRODUCER, PRODUCER_URL=database.url)
    assert (done.returncode, done.stdout) == (0, "produced\n"), done.stderr


@pytest.mark.parametrize("arguments", [(), ("run",), ("--help",)])
def test_command_without_the_daemon_extra_names_what_to_install(
    producer: Environment, arguments: tuple[str, ...]
) -> None:
    """Without the daemon's extra `curfewd` prints the install line and exits with its own code."""
    done = producer.run("curfewd", *arguments)
    assert done.returncode == MISSING_DAEMON_EXTRA, done.stderr
    assert "pip install 'curfewd[daemon]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
