"""The supervisor's loop, run in a thread with programs that stand in for PostgreSQL's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curfew_store import _supervisor
from curfew_store._supervisor import Supervisor


class Client:
    """The parent's ends of the pipes, and the thread that serves the others."""

    def __init__(self, directory: Path) -> None:
        commands, self.commands = os.pipe()
        self.replies, replies = os.pipe()
        tripwire, self.tripwire = os.pipe()
        self.directory = directory
        self._descriptors = [commands, replies, tripwire, self.commands, self.replies, self.tripwire]
        supervisor = Supervisor(commands, replies, directory, tripwires=[tripwire])
        self.thread = threading.Thread(target=supervisor.run)
        self.thread.start()

    def send(self, **command: Any) -> None:
        os.write(self.commands, json.dumps(command).encode() + b"\n")

    def call(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        answer: dict[str, Any] = json.loads(os.read(self.replies, 65536))
        return answer

    def hang_up(self, descriptor: int) -> None:
        os.close(descriptor)
        self._descriptors.remove(descriptor)

    def ended(self) -> bool:
        self.thread.join(20)
        return not self.thread.is_alive()

    def close(self) -> None:
        if self.commands in self._descriptors:
            self.hang_up(self.commands)
        assert self.ended()
        for descriptor in self._descriptors:
            os.close(descriptor)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(_supervisor, "PATIENCE", {signal.SIGTERM: 0.1, signal.SIGINT: 0.1, signal.SIGQUIT: 0.1})
    directory = tmp_path / "working"
    directory.mkdir()
    client = Client(directory)
    yield client
    client.close()


def started_program(client: Client, marker: Path) -> int:
    """Have the supervisor run a program that never ends; returns the program's pid once it runs."""
    os.mkfifo(marker)
    client.send(do="run", argv=["/bin/sh", "-c", f"echo $$ > {marker}; exec sleep 1000"])
    return int(marker.read_text())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_s_status_and_output_are_answered(client: Client) -> None:
    """A program is run to its end; its exit status and what it said come back."""
    answer = client.call(do="run", argv=["/bin/sh", "-c", "echo said; echo loudly >&2; exit 3"])
    assert answer == {"status": 3, "output": "said\nloudly\n"}


def test_commands_that_cannot_be_obeyed_are_answered_with_an_error(client: Client) -> None:
    """An unknown command or a missing program is an answer, not the end."""
    assert client.call(do="dance") == {"error": "unknown command 'dance'"}
    assert "No such file" in client.call(do="run", argv=["/nonexistent/initdb"])["error"]
    assert client.call(do="stop", signal="SIGINT") == {"status": None}


def test_the_end_of_the_commands_kills_the_running_program(client: Client, tmp_path: Path) -> None:
    """A parent that dies during initdb leaves neither the program nor the directory."""
    pid = started_program(client, tmp_path / "fifo")
    client.hang_up(client.commands)
    assert client.ended()
    assert not is_running(pid)
    assert not client.directory.exists()


def test_a_tripwire_is_enough_while_the_pipe_is_open(client: Client, tmp_path: Path) -> None:
    """The parent's end counts even if a fork of it still holds the pipe open."""
    pid = started_program(client, tmp_path / "fifo")
    client.hang_up(client.tripwire)
    assert client.ended()
    assert not is_running(pid)
    assert not client.directory.exists()


def test_a_server_that_ends_at_once_is_reported(client: Client, tmp_path: Path) -> None:
    """A start fails when the server ends, with its status; what it said is in the log."""
    argv = ["/bin/sh", "-c", "echo no room; exit 7"]
    answer = client.call(do="start", argv=argv, data_dir=str(tmp_path), timeout=20)
    assert answer == {"error": "it ended with status 7"}
    assert (client.directory / "server.log").read_text() == "no room\n"


def test_a_server_that_is_not_ready_in_time_is_stopped(client: Client, tmp_path: Path) -> None:
    """A start that takes too long is given up, and the server is not left running."""
    (tmp_path / "postmaster.pid").write_text("1\n2\n3\n4\n5\n6\n7\nready\n")  # another server's
    answer = client.call(do="start", argv=["/bin/sleep", "1000"], data_dir=str(tmp_path), timeout=0.05)
    assert answer == {"error": "it was not ready within 0.05 s"}
    # On a busy machine it may not even have begun to run, and is killed without having heard the milder signal.
    assert client.call(do="stop", signal="SIGINT")["status"] in {-signal.SIGQUIT, -signal.SIGKILL}


def test_a_server_that_ignores_requests_is_killed(client: Client, tmp_path: Path) -> None:
    """Stopping gets harder with each bound that passes, and always ends."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    ready = f"printf '%s\\n2\\n3\\n4\\n5\\n6\\n7\\nready   \\n' $$ > {data_dir}/postmaster.pid; "
    argv = ["/bin/sh", "-c", f"trap '' INT QUIT; {ready} while :; do sleep 0.05; done"]
    pid = client.call(do="start", argv=argv, data_dir=str(data_dir), timeout=20)["pid"]
    assert is_running(pid)
    again = client.call(do="start", argv=argv, data_dir=str(data_dir), timeout=20)
    assert again == {"error": "the server is running already"}
    assert client.call(do="stop", signal="SIGINT") == {"status": -signal.SIGKILL}
    assert not is_running(pid)


def test_programs_run_as_the_account_without_its_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given an account, a program gets its user and group, and none of root's supplementary groups."""
    asked: dict[str, Any] = {}

    def refuse(argv: list[str], **options: Any) -> None:
        asked.update(options)
        raise PermissionError("not here")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    supervisor = Supervisor(0, 1, tmp_path, (1234, 5678))
    assert supervisor._obey({"do": "run", "argv": ["initdb"]}) == {"error": "not here"}
    assert (asked["user"], asked["group"], asked["extra_groups"]) == (1234, 5678, [])
