"""What the laboratory's stages are built from does what it says: a pair, a pooler, a clock, limits, private names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.cgroups import thread_limit
from tests.faults.crowd import come_back
from tests.faults.fake_clock import FakeClock, programs_under
from tests.faults.kinds import names
from tests.faults.pair import Pair
from tests.faults.pgbouncer import PgBouncer
from tests.faults.stalls import Stalls
from tests.faults.wire import Wire
from tests.integration.sessions import eventually

DEBIAN = Path("/usr/lib/postgresql/15/bin")


def only(conn: psycopg.Connection[Any], statement: str) -> Any:
    row = conn.execute(statement).fetchone()
    assert row is not None
    return row[0]


def test_a_crowd_is_counted_and_comes_back() -> None:
    """Twenty pretended daemons: all connect twice after the outage, the first soon, and the busiest second is known."""
    with EmbeddedPostgres.start(tcp=True) as server, Wire(server.port) as wire:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("CREATE ROLE lab_producer LOGIN")
        back = come_back(wire, 20, spread=0.5, outage=0.5, seed=1)
    assert 0 < back.first <= back.last < 10
    assert 2 <= back.most_per_second <= wire.accepted
    assert wire.accepted >= 2 * 20


def test_a_standstill_is_measured_from_outside() -> None:
    """Stopped for half a second, the meter says from when to when; what runs on excuses nothing."""
    with Stalls() as stalls:
        os.kill(stalls.pid, signal.SIGSTOP)
        began = time.time_ns() // 1000
        time.sleep(0.5)
        os.kill(stalls.pid, signal.SIGCONT)
        ended = time.time_ns() // 1000
        eventually(lambda: any(begin < ended and end > began for begin, end in stalls.spans), "it is noted")
    span = next((begin, end) for begin, end in stalls.spans if begin < ended and end > began)
    assert span[1] - span[0] > 0.4e6


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder that a server of another account may pass; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="curfew-machinery-") as name:
        yield Path(name)


@pytest.mark.system
def test_a_promoted_standby_has_what_was_committed_and_a_new_one_follows(folder: Path) -> None:
    """Through the address list a client finds the primary, before and after, and reads its own writes."""
    with Pair(folder, {"synchronous_commit": "on"}) as pair:
        where = f"{pair.conninfo} user=postgres target_session_attrs=read-write"
        with pair.synchronous(), psycopg.connect(where, autocommit=True) as client:
            client.execute("CREATE TABLE kept AS SELECT 1 AS number")
        assert pair.standby_is_first
        pair.primary.halt("immediate")
        pair.promote()
        pair.swap()
        assert not pair.standby_is_first
        with psycopg.connect(where, autocommit=True) as client:
            assert only(client, "SELECT number FROM kept") == 1
        with pair.admin(pair.standby) as standby:
            assert only(standby, "SELECT pg_is_in_recovery()") is True


@pytest.mark.system
def test_a_pooler_is_killed_paused_and_resumed_at_one_address(folder: Path) -> None:
    """Clients wait while it is paused, lose their connections when it is killed, and find it where it was."""
    with EmbeddedPostgres.start(tcp=True) as server, PgBouncer(folder, server.port) as pooler:
        with psycopg.connect(pooler.url("postgres"), autocommit=True, prepare_threshold=None) as client:
            assert only(client, "SELECT 1") == 1
            pooler.tell("PAUSE postgres")
            resumed = threading.Timer(0.3, pooler.tell, ["RESUME postgres"])
            resumed.start()
            began = time.monotonic()
            assert only(client, "SELECT 2") == 2
            assert time.monotonic() - began > 0.25
            resumed.join()
            pooler.kill()
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 3")
        pooler.start()
        with pytest.raises(psycopg.OperationalError, match="NONSENSE"):
            pooler.tell("NONSENSE")
        with psycopg.connect(pooler.url("postgres"), autocommit=True, prepare_threshold=None) as client:
            assert only(client, "SELECT 4") == 4


@pytest.mark.system
def test_a_server_under_a_fake_clock_follows_it_at_once(folder: Path) -> None:
    """Each step shows in the next statement of a session that was open before, and the true time comes back."""
    clock = FakeClock(folder)
    with (
        EmbeddedPostgres.start(bin_dir=programs_under(clock, DEBIAN, folder)) as server,
        psycopg.connect(server.url(), autocommit=True) as client,
    ):
        for words, hours in (("+3600", 1.0), ("-3600", -1.0), ("+0", 0.0)):
            clock.set(words)
            seen = only(client, "SELECT clock_timestamp()")
            assert isinstance(seen, datetime)
            assert abs((seen - datetime.now(UTC)).total_seconds() / 3600 - hours) < 0.01


@pytest.mark.system
def test_a_process_at_its_limit_of_threads_starts_none_until_the_limit_has_gone() -> None:
    """Another process is not concerned, and the control group is removed."""
    program = (
        "import sys, threading\n"
        "for _ in sys.stdin:\n"
        "    try: threading.Thread(target=int).start(); print('started', flush=True)\n"
        "    except RuntimeError: print('refused', flush=True)\n"
    )
    pipes = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipes, stdout=pipes, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            return process.stdout.readline().strip()

        assert ask() == "started"
        with thread_limit(process.pid):
            assert ask() == "refused"
            threading.Thread(target=int).start()
        assert ask() == "started"
        process.send_signal(signal.SIGKILL)
    eventually(lambda: not list(Path("/sys/fs/cgroup/pids").glob(f"curfew-lab-{os.getpid()}-*")), "it is removed")


@pytest.mark.system
def test_private_names_are_seen_by_that_process_alone(tmp_path: Path) -> None:
    """What is written into the file shows at the next look-up there, and not on the rest of the machine."""
    (tmp_path / "hosts").write_text("127.0.0.3 db.curfew.example\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    look_up = "import socket; print(socket.gethostbyname('db.curfew.example'))"
    own = {"PYTHONPATH": str(names._HOOK), "LAB_NAMES": str(tmp_path), "PATH": os.environ["PATH"]}
    before = Path("/etc/hosts").read_text()
    seen = subprocess.run([sys.executable, "-c", look_up], env=own, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "127.0.0.3"
    assert Path("/etc/hosts").read_text() == before
    assert "db.curfew.example" not in before
