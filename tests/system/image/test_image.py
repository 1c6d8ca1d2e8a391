"""The image's own build steps, carried out, and its commands as an unprivileged user on a read-only root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from curfew_daemon.lifecycle import Exit
from curfew_store.embedded import EmbeddedPostgres
from tests.system.image.container import Container
from tests.system.image.dockerfile import PATH, ROOT, stages

pytestmark = pytest.mark.system

DEFAULT = ["curfewd", "run"]
# Nothing listens on port 1, so a connect is refused at once.
NOWHERE = "postgresql://curfewd@127.0.0.1:1/app"


class Running:
    """The image's default command, as process 1 of its own namespace."""

    def __init__(self, image: Container, environ: dict[str, str]) -> None:
        command = image.command(environ={"CURFEW_HTTP_PORT": "0"} | environ)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        # A log line that never comes ends the test, not the run of all.
        self._limit = threading.Timer(60, self.process.kill)
        self._limit.start()
        self.url = str(self.event("http_listening")["url"])

    def event(self, name: str) -> dict[str, Any]:
        """The next log line of that name; fails at the end of the log."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if line.startswith("{") and (found := json.loads(line))["event"] == name:
                return dict(found)
        raise AssertionError("".join(seen))

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def end(self) -> None:
        """Whatever state it is in, nothing of it is left."""
        self._limit.cancel()
        # The daemon itself: what should tell it that its parent died is lost when it changes its user.
        with contextlib.suppress(OSError, ValueError):  # it has ended
            os.kill(self.pid, signal.SIGKILL)
        self.process.kill()

    @property
    def pid(self) -> int:
        """The daemon's process id, as it is out here: the only child of what made its namespaces."""
        unshare = self.process.pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text(encoding="ascii"))

    def status(self) -> dict[str, str]:
        """What the kernel says of the daemon's process."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def running(image: Container) -> Iterator[Running]:
    """The daemon with a database that cannot be reached."""
    daemon = Running(image, {"CURFEW_DATABASE_URL": NOWHERE})
    with daemon.process:
        yield daemon
        daemon.end()


def test_image_holds_the_project_and_says_its_version(image: Container) -> None:
    """`--version` prints the project's version and nothing else."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    done = image.run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"curfewd {version}\n", "")


def test_image_holds_no_tool_to_build_or_install_with(image: Container) -> None:
    """In the environment is no pip and no build tool, and the root holds no compiler."""
    programs = {path.name for path in (image.root / "opt" / "curfewd" / "bin").iterdir()}
    assert "curfewd" in programs
    assert not {name for name in programs if name.startswith(("pip", "hatch"))}
    compilers = ("gcc", "cc", "g++", "clang", "make")
    assert not [
        name for name in compilers for folder in ("usr/bin", "usr/local/bin") if (image.root / folder / name).exists()
    ]
    assert not (image.root / "build").exists()


def test_check_without_settings_names_what_is_missing(image: Container) -> None:
    """Without any setting `check` names the variable and ends with the code for settings."""
    done = image.run("check")
    assert done.returncode == Exit.SETTINGS, done.stderr
    assert "CURFEW_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_without_a_database_says_so(image: Container) -> None:
    """With a database that refuses, `check` reports it and ends with the code for the database."""
    done = image.run("check", environ={"CURFEW_DATABASE_URL": NOWHERE})
    assert done.returncode == Exit.DATABASE, done.stdout + done.stderr
    assert "error    database" in done.stdout
    assert "Traceback" not in done.stderr


def test_daemon_is_alive_and_not_ready_without_a_database(running: Running) -> None:
    """With the database away `/healthz` and `/metrics` answer 200, and `/readyz` 503."""
    assert running.get("/healthz") == (200, "ok\n")
    assert running.event("database_state_changed")["new"] == "unreachable"
    assert running.get("/readyz")[0] == 503
    status, metrics = running.get("/metrics")
    assert status == 200
    assert "curfew_database_up" in metrics


def test_daemon_has_no_privilege(running: Running) -> None:
    """The process is 65532, in no other group, without a capability and without a way to one."""
    status = running.status()
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "1"


def test_daemon_fits_the_memory_that_the_deployment_gives(running: Running) -> None:
    """At rest the daemon needs no more than the Deployment requests for it."""
    assert running.get("/metrics")[0] == 200
    kibibytes = int(running.status()["VmHWM"].removesuffix(" kB"))
    assert kibibytes < 128 * 1024


def test_daemon_stops_when_asked(running: Running) -> None:
    """As process 1, SIGTERM ends it cleanly: it says so, and its exit code is 0."""
    subprocess.run(["kill", "-TERM", str(running.pid)], check=True)
    running.event("stopped")
    assert running.process.wait(timeout=10) == 0


def test_root_is_read_only_to_it(image: Container) -> None:
    """The root cannot be written to, and an afternoon's commands have left every file as it was."""
    before = image.files()
    refused = subprocess.run(
        [*image.command()[: -len(DEFAULT)], "touch", "/tmp/probe"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Read-only file system" in refused.stderr
    for arguments in (["--help"], ["migrate", "--sql"], ["check"]):
        image.run(*arguments, environ={"CURFEW_DATABASE_URL": NOWHERE})
    assert image.files() == before


def test_image_migrates_and_marks(image: Container) -> None:
    """Against a real database `migrate` makes the tables and `once` marks what is overdue, and only that."""
    password = secrets.token_hex(16)
    with (
        EmbeddedPostgres.start(password=password) as server,
        psycopg.connect(server.url(), autocommit=True) as connection,
    ):
        sockets = Path(server.host)
        sockets.chmod(0o755)  # the image's user has to reach it; the password keeps everyone else out
        url = {"CURFEW_DATABASE_URL": psycopg.conninfo.make_conninfo(server.url(), host="/mnt", password=password)}
        migrated = image.run("migrate", bind=sockets, environ=url)
        assert migrated.returncode == 0, migrated.stderr
        connection.execute(
            "INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc) VALUES"
            " (gen_random_uuid(), 'overdue', now() - interval '1 minute'),"
            " (gen_random_uuid(), 'later', now() + interval '1 hour')"
        )
        swept = image.run("once", bind=sockets, environ=url)
        assert swept.returncode == 0, swept.stderr
        marked = "SELECT trigger_key, timed_out_at_utc IS NOT NULL FROM flow_run_controls"
        assert dict(connection.execute(marked).fetchall()) == {"overdue": True, "later": False}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_every_pin_has_a_wheel_for_the_images_python(name: str, machine: str, tmp_path: Path) -> None:
    """For the Python that the Dockerfile names, each pin has a wheel with one of its hashes: nothing is compiled."""
    (version,) = re.findall(r"python:(3\.\d+)-", stages(PATH.read_text(encoding="utf-8"))[-1].base)
    # What the C library of the image's Debian can run, under the names that wheels have.
    platforms = [f"--platform=manylinux{each}_{machine}" for each in ("_2_34", "_2_28", "_2_17", "2014")]
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    wheels = ["--require-hashes", "--only-binary=:all:", f"--python-version={version}", *platforms]
    requirements = ROOT / "deploy" / name
    done = subprocess.run(
        [*pip, *wheels, "--dest", tmp_path, "-r", requirements],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.whl"))) == requirements.read_text(encoding="utf-8").count("==")
