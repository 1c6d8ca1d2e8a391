"""The demo from end to end, as a process: what it shows, how it judges, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from curfew_store.testing import Server
from tests.e2e.daemon_process import clean_environment
from tests.patience import PATIENCE


class Demo:
    """``curfewd demo --plain`` in a process of its own, read line by line; a context manager."""

    def __init__(self, *arguments: str) -> None:
        self.lines: list[str] = []
        self._read = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "curfew_daemon", "demo", "--plain", *arguments],
            env=clean_environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._reader = threading.Thread(target=self._take, daemon=True)
        self._reader.start()

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.exit_code()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _take(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._read:
                self.lines.append(line.rstrip("\n"))
                self._read.notify_all()

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in what is printed, now or soon."""
        give_up = time.monotonic() + PATIENCE
        with self._read:
            while not (found := re.search(pattern, self.text, re.MULTILINE)):
                assert self._read.wait(give_up - time.monotonic()), f"no {pattern!r} in:\n{self.text}"
        return found

    def database(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection to the database that the demo says it plays on."""
        return psycopg.connect(self.wait_for(r"^  database  (\S+)$")[1], autocommit=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the demo alone."""
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """How it ended, once it has."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def family(self) -> dict[int, str]:
        """The processes that it has started, and those have started, by their ids, with their command lines."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = {self._process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: _command_line(pid) for pid in found - {self._process.pid}}


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def one(family: dict[int, str], end: str) -> int:
    """The one process of that family whose command line ends like that, other than its leash."""
    (pid,) = [pid for pid, command in family.items() if command.endswith(end) and "_leash.py" not in command]
    return pid


def assert_gone(family: dict[int, str]) -> None:
    """None of these processes remains, or soon does."""
    give_up = time.monotonic() + PATIENCE
    while left := {pid: line for pid, line in family.items() if _command_line(pid) == line != ""}:
        assert time.monotonic() < give_up, f"still running: {left}"
        time.sleep(0.05)  # they are nobody's children here, so there is no event to wait for


def working_directory(demo: Demo) -> Path:
    """The directory that holds the demo's server."""
    return Path(demo.wait_for(r"host=(/\S+)/socket&")[1])


def test_the_demo_shows_runs_timing_out_and_leaves_nothing_behind() -> None:
    """On its own server: addresses, events, a complete summary, exit 0; then no process and no file is left."""
    with Demo("--seconds", "4") as demo:
        demo.wait_for("TIMED OUT")
        family, directory = demo.family(), working_directory(demo)
        assert one(family, "-m curfew_daemon run")
        assert not [command for command in family.values() if "CURFEW_DATABASE_URL" in command]
        code = demo.exit_code()
    assert code == 0, demo.text
    for expected in (
        r"page      http://127\.0\.0\.1:\d+/$",
        r"metrics   http://127\.0\.0\.1:\d+/metrics$",
        r"first cancelled: ",
        r"runs       [1-9]\d* started in 4 s: [1-9]\d* completed, [1-9]\d* cancelled, [1-9]\d* timed out$",
        r"on the way [1-9]\d* extended, [1-9]\d* heartbeats, [1-9]\d* duplicate requests answered$",
        r"lag        p50 \S+ m?s, p99 \S+ m?s, max \S+ m?s, over [1-9]\d* runs$",
        r"from the deadline to the commit of the mark",
        r"audit      early 0, twice 0, unarmed 0, still overdue 0$",
        r"^PASSED: ",
    ):
        assert re.search(expected, demo.text, re.MULTILINE), f"no {expected!r} in:\n{demo.text}"
    timed_out = re.search(r"(\d+) timed out$", demo.text, re.MULTILINE)
    assert timed_out is not None
    assert f"daemon     counted {timed_out[1]} timed out" in demo.text
    assert_gone(family)
    assert not directory.exists()


def test_the_demo_fails_and_names_the_runs_that_were_marked_early_or_twice() -> None:
    """One mark of each kind, written behind the daemon's back, is found in the audit and fails the demo."""
    early, twice = uuid4(), uuid4()
    with Demo("--seconds", "3") as demo, demo.database() as planter:
        insert = "INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (%s, clock_timestamp() + %s::interval)"
        mark = (
            "UPDATE flow_run_controls SET timed_out_at_utc = clock_timestamp(), cancel_requested = true"
            " WHERE run_id = %s AND timed_out_at_utc IS {} NULL"
        )
        planter.execute(insert, (early, "1 hour"))
        planter.execute(mark.format(""), (early,))
        planter.execute(insert, (twice, "0"))  # the daemon marks this one
        until(lambda: planter.execute(mark.format("NOT"), (twice,)).rowcount == 1)
        code = demo.exit_code()
    assert code == 1, demo.text
    assert "audit      early 1, twice 1, unarmed 0, still overdue 0" in demo.text
    assert re.search(rf"^  early: .*{early}$", demo.text, re.MULTILINE)
    assert re.search(rf"^  twice: .*{twice}$", demo.text, re.MULTILINE)
    assert "PASSED" not in demo.text


def until(condition: Callable[[], bool]) -> None:
    """Return once a condition holds that a database has no event for."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_nothing_outlives_a_demo_that_is_killed() -> None:
    """After SIGKILL, the daemon, the server and their files go away by themselves."""
    with Demo("--seconds", "60") as demo:
        demo.wait_for("started ")
        family, directory = demo.family(), working_directory(demo)
        assert one(family, "-m curfew_daemon run")
        assert [command for command in family.values() if "/postgres -D " in command]
        demo.signal(signal.SIGKILL)
        assert demo.exit_code() == -signal.SIGKILL
    assert_gone(family)
    until(lambda: not directory.exists())


def test_the_demo_ends_with_the_log_of_a_daemon_that_died() -> None:
    """A dead daemon is noticed, its last words are shown, and nothing is left."""
    with Demo("--seconds", "60") as demo:
        demo.wait_for("started ")
        family = demo.family()
        os.kill(one(family, "-m curfew_daemon run"), signal.SIGKILL)
        code = demo.exit_code()
    assert code == 1
    assert "the daemon ended by itself with exit code 137. The last lines of its log:" in demo.text
    assert '"event": "database_state_changed"' in demo.text or '"event":"database_state_changed"' in demo.text
    assert_gone(family)


@pytest.fixture
def schemas(server: Server) -> Iterator[Callable[[], set[str]]]:
    """Asks for the names of the demo's schemas on the tests' server."""
    with psycopg.connect(server.url(), autocommit=True) as connection:

        def names() -> set[str]:
            rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'curfew\\_demo\\_%'")
            return {str(name) for (name,) in rows}

        yield names


def test_on_a_server_of_yours_the_demo_uses_a_schema_of_its_own_and_drops_it(
    server: Server, schemas: Callable[[], set[str]]
) -> None:
    """Stopped by Ctrl-C, it judges what it has seen; without commit times it says what the lag is instead."""
    before = schemas()
    with Demo("--seconds", "60", "--database-url", server.url()) as demo:
        name = demo.wait_for(r"schema    (curfew_demo_[0-9a-f]{8})$")[1]
        demo.wait_for("TIMED OUT")
        family = demo.family()
        assert schemas() == {*before, name}
        demo.signal(signal.SIGINT)
        code = demo.exit_code()
    assert code == 0, demo.text
    assert "not due yet when it was stopped" in demo.text
    assert "from the deadline to the mark's own stamp" in demo.text
    assert "PASSED: " in demo.text
    assert schemas() == before
    assert_gone(family)


def test_a_schema_that_a_killed_demo_left_behind_is_dropped_by_the_next(
    server: Server, schemas: Callable[[], set[str]]
) -> None:
    """A schema is ours by its name, its comment and a lock that nobody holds; any other is left alone."""
    theirs = f"curfew_demo_{UUID(int=1).hex[:8]}"
    with Demo("--seconds", "60", "--database-url", server.url()) as killed:
        left = killed.wait_for(r"schema    (curfew_demo_[0-9a-f]{8})$")[1]
        family = killed.family()
        killed.signal(signal.SIGKILL)
        killed.exit_code()
    assert_gone(family)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {theirs}")
        try:
            assert left in schemas()
            with Demo("--seconds", "60", "--database-url", server.url()) as demo:
                demo.wait_for("starting curfewd run")
                assert left not in schemas()
                assert theirs in schemas()
                demo.signal(signal.SIGTERM)
                demo.exit_code()
        finally:
            connection.execute(f"DROP SCHEMA {theirs}")
