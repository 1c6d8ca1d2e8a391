"""A booted system for curfewd: Python, the wheel and a database are there, curfewd itself is not yet installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

import psycopg
from packaging.requirements import Requirement

from curfew_store.embedded import EmbeddedPostgres
from tests.system.systemd.booted import BootedSystem
from tests.system.systemd.readme import FOLDER, commands

ROOT = FOLDER.parents[1]
SITE = f"/opt/curfewd/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
DAEMON = "curfewd.service"
ENV_FILE = "/etc/curfewd/curfewd.env"
CREDENTIAL = "/etc/curfewd/database-url"


class Machine:
    """An operator's machine: its systemd and the database that its curfewd is told of."""

    def __init__(self, system: BootedSystem, server: EmbeddedPostgres, server_password: str) -> None:
        self.system = system
        self.server = server
        self.server_password = server_password  # of the superuser
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE curfewd LOGIN")
            connection.execute("CREATE DATABASE app OWNER curfewd")
        self.rotate_password()

    def rotate_password(self) -> None:
        """Give the role a new password, which `url` then holds."""
        self.password = secrets.token_hex(16)
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE curfewd PASSWORD '{self.password}'")
        self.url = f"postgresql://curfewd:{self.password}@/app?host=/run/database"

    def follow(self, heading: str, **replaced: str) -> None:
        """Run the commands under a heading of the README, as written but for *replaced* words.

        What waits for the database URL gets it.
        """
        for block in commands(heading):
            for old, new in replaced.items():
                block = re.sub(rf"\b{old}\b", new, block)  # noqa: PLW2901  the same block, for another instance
            self.system.run("sh", "-eu", "-c", block, stdin=f"{self.url}\n", cwd="/srv/systemd")

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as `systemctl edit --runtime` does."""
        self.system.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self.system.run("systemctl", "daemon-reload")

    def overdue_run(self) -> UUID:
        """A new run whose deadline has passed."""
        with psycopg.connect(self.server.url("app"), autocommit=True) as connection:
            inserted = "INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (gen_random_uuid(), now())"
            row = connection.execute(f"{inserted} RETURNING run_id").fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def wait_marked(self, run_id: UUID) -> None:
        """Return once the run has been marked as timed out."""
        with psycopg.connect(self.server.url("app"), autocommit=True) as connection:
            marked = "SELECT timed_out_at_utc IS NOT NULL FROM flow_run_controls WHERE run_id = %s"
            self.system.wait(lambda: connection.execute(marked, [run_id]).fetchone(), (True,))

    def instances(self) -> set[str]:
        """The names under which daemons are connected now."""
        with psycopg.connect(self.server.url("app"), autocommit=True) as connection:
            named = "SELECT application_name FROM pg_stat_activity WHERE usename = 'curfewd'"
            return {str(name) for (name,) in connection.execute(named)}

    def get(self, path: str, port: int = 9847) -> str:
        """A page of the daemon, whatever its status."""
        return self.system.run("curl", "-sS", f"http://127.0.0.1:{port}{path}").stdout

    def main_pid(self) -> str:
        """The process id of the daemon, as it is in there."""
        return self.system.show(DAEMON, "MainPID")

    def reset(self) -> None:
        """Back to a daemon that runs with the shipped unit and the shipped settings."""
        for each in self.system.path("/run/systemd/system").iterdir():  # the folder itself means "booted"
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        self.system.write(ENV_FILE, (FOLDER / "curfewd.env").read_text(encoding="utf-8"))
        self.system.write(CREDENTIAL, f"{self.url}\n")
        self.system.run("systemctl", "daemon-reload")
        self.system.run("systemctl", "reset-failed")
        self.system.run("systemctl", "restart", DAEMON)
        self.system.wait_shown(DAEMON, "StatusText", "database: up")


@contextlib.contextmanager
def booted(wheels: Path, more: Mapping[Path, str] | None = None) -> Iterator[Machine]:
    """A machine on which the README's commands can be followed without a network.

    *wheels* is what pip finds there instead of an index. What the daemon's extra requires is in the virtual
    environment beforehand: copies of the distributions that run this test. *more* folders are visible as `BootedSystem`
    says.
    """
    password = secrets.token_hex(16)
    with EmbeddedPostgres.start(password=password) as server:
        sockets = Path(server.host)
        sockets.chmod(0o755)  # the service has an account of its own; it needs the password all the same
        binds = {sockets: "/run/database", FOLDER: "/srv/systemd", wheels: "/srv/wheels", **(more or {})}
        search = ""
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            binds[Path(sys.base_prefix)] = "/opt/python"
            search = "/opt/python/bin:"
        with BootedSystem(binds, search=search, PIP_NO_INDEX="1", PIP_FIND_LINKS="/srv/wheels") as system:
            # An interpreter that was built with a shared library looks for it where it was built.
            system.write("/etc/ld.so.conf.d/00-python.conf", "/opt/python/lib\n")
            system.run("ldconfig")
            system.run("python3", "-c", f"import sys; assert sys.version_info == {tuple(sys.version_info)}")
            _provide_requirements(system.path(SITE))
            yield Machine(system, server, password)


def build_wheel(folder: Path) -> None:
    """Build the project's wheel into *folder*."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def _provide_requirements(site: Path) -> None:
    for name in sorted(_required("curfewd[daemon]") - {"curfewd"}):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:
                continue  # a script or a compiled file
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(distribution.locate_file(file)), target)


def _required(requirement: str) -> set[str]:
    """The names of all distributions that a requirement leads to here, its own included."""
    found: set[str] = set()
    todo, seen = [requirement], set[str]()
    while todo:
        if (text := todo.pop()) in seen:
            continue
        seen.add(text)
        wanted = Requirement(text)
        found.add(wanted.name)
        for each in importlib.metadata.requires(wanted.name) or []:
            below = Requirement(each)
            extras = ("", *wanted.extras)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                below.marker = None
                todo.append(str(below))
    return found
