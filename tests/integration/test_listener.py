"""LISTEN: hints are followed, their loss is noticed and costs the poll interval, and no burst makes a daemon spin."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from sqlalchemy import event, text

from curfew_daemon import app, events
from curfew_daemon.app import Daemon
from curfew_daemon.database import Link
from curfew_daemon.lifecycle import Exit
from curfew_daemon.listener import HintListener
from curfew_daemon.results import HintOutcome, ListenerState
from curfew_store import FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.hints import Hint, channel_of
from curfew_store.migrate import upgrade
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import FLOW, Rows
from tests.integration.proxy import Proxy
from tests.integration.sessions import eventually
from tests.integration.settings import settings_for
from tests.integration.test_app import Running, Switch, await_marked, lateness

POLL = 10.0
SHORT = timedelta(milliseconds=300)
OFTEN = 0.2


@pytest.fixture
def store(database: Database) -> FlowRunControlStore:
    return FlowRunControlStore(database.engine, notify_within=timedelta(seconds=POLL))


@pytest.fixture
def start(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Starts a daemon that polls every ten seconds; settings come by their variables."""
    monkeypatch.setattr(app, "Signals", Switch)
    events.configure("json", "error")
    started: list[Running] = []

    def starting(**variables: str) -> Running:
        given = {"CURFEW_HTTP_PORT": "0", "CURFEW_POLL_INTERVAL": str(POLL), "CURFEW_LISTEN": "true", **variables}
        started.append(Running(Daemon(settings_for(database, **given))))
        return started[-1]

    yield starting
    for each in started:
        assert each.stop() is Exit.OK


def in_state(running: Running, state: ListenerState) -> Callable[[], bool]:
    return lambda: running.count("curfew_listener_state", state=state) == 1


def asleep(running: Running) -> Callable[[], bool]:
    """Whether it has swept and waits for its poll."""
    return lambda: running.count("curfew_sweeps_total", outcome="ok") > 0 and running.daemon._pacer.idle("sweep")


def hints(running: Running) -> dict[str, float]:
    return {outcome: running.count("curfew_hints_total", outcome=outcome) for outcome in HintOutcome}


# In the daemon


def test_a_hinted_deadline_is_met_long_before_the_poll(
    rows: Rows, store: FlowRunControlStore, start: Callable[..., Running]
) -> None:
    """With the next poll seconds away, a deadline of 300 ms is met at its time, and the sweep says why it woke."""
    running = start()
    eventually(in_state(running, ListenerState.UP), "it hears")
    eventually(asleep(running), "it waits for its poll")
    for _ in range(3):
        run = store.start_run(FLOW, "t", timeout=SHORT).run_id
        await_marked(rows, run)
        assert lateness(rows, run) < POLL / 4
    assert running.count("curfew_wakeups_total", reason="hint") == 3
    assert hints(running) == {"sooner": 3, "known": 0, "unreadable": 0}


@pytest.mark.contract("V-6")
def test_a_burst_of_hints_is_few_sweeps_and_false_ones_mark_nothing(
    database: Database, rows: Rows, store: FlowRunControlStore, start: Callable[..., Running]
) -> None:
    """Ten thousand notifications: of unknown runs, of one that is not due, half of them passed, nonsense between."""
    later = rows.insert("active")
    running = start()
    eventually(in_state(running, ListenerState.UP), "it hears")
    eventually(asleep(running), "it waits for its poll")
    before = running.count("curfew_sweeps_total", outcome="ok")
    # A microsecond more for each: PostgreSQL delivers equal ones of one transaction once.
    burst = (
        "SELECT count(pg_notify(:channel, CASE WHEN n % 5 = 0 THEN 'nonsense ' || n ELSE"
        " extract(epoch FROM now() + (n % 400 - 200) * interval '1 ms' + n * interval '1 us') || ' ' ||"
        " CASE WHEN n % 2 = 0 THEN gen_random_uuid() ELSE :later END END)) FROM generate_series(1, 10000) n"
    )
    with database.engine.begin() as conn:
        conn.execute(text(burst), {"channel": channel_of("public"), "later": later})
    eventually(lambda: sum(hints(running).values()) == 10_000, "all are heard")
    run = store.start_run(FLOW, "t", timeout=SHORT).run_id
    await_marked(rows, run)
    assert hints(running)["unreadable"] == 2_000
    assert rows.sql("SELECT run_id FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL") == [(run,)]
    assert running.count("curfew_sweeps_total", outcome="ok") - before < 300


@pytest.mark.contract("V-6")
def test_without_the_setting_nothing_listens(
    database: Database, rows: Rows, store: FlowRunControlStore, start: Callable[..., Running]
) -> None:
    """The daemon says that it is off, no session listens, and the deadline waits for the poll."""
    running = start(CURFEW_LISTEN="false", CURFEW_POLL_INTERVAL="0.5")
    eventually(asleep(running), "it has swept")
    run = store.start_run(FLOW, "t", timeout=timedelta(milliseconds=1)).run_id
    await_marked(rows, run)
    assert in_state(running, ListenerState.OFF)()
    assert running.count("curfew_wakeups_total", reason="hint") == 0
    assert rows.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")[0][0] == 0


def test_a_lost_connection_is_told_and_made_anew(
    rows: Rows, store: FlowRunControlStore, start: Callable[..., Running], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed, the listener says so once, comes back by itself, and hints are followed again."""
    events.configure("json", "info")
    running = start()
    eventually(in_state(running, ListenerState.UP), "it hears")
    ear = "(query LIKE 'LISTEN%' OR query LIKE '%pg_listening_channels%')"
    assert rows.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {ear}"
    ) == [(True,)]
    eventually(in_state(running, ListenerState.UNREACHABLE), "it notices")
    eventually(in_state(running, ListenerState.UP), "it hears again")
    run = store.start_run(FLOW, "t", timeout=SHORT).run_id
    await_marked(rows, run)
    assert lateness(rows, run) < POLL / 4
    events.configure("json", "error")
    told = [line for line in capsys.readouterr().err.splitlines() if "listener_state_changed" in line]
    assert [json.loads(line)["new"] for line in told] == ["up", "unreachable", "up"]


def test_a_reload_has_it_listen_on_a_new_connection(
    database: Database, rows: Rows, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the settings say now holds at once, as it does for the sweep; it is no change of state."""
    monkeypatch.setenv("CURFEW_DATABASE_URL", database.conninfo)
    running = start()
    eventually(in_state(running, ListenerState.UP), "it hears")
    ears = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND (query LIKE 'LISTEN%' OR query LIKE '%pg_listening_channels%')"
    )
    (before,) = rows.sql(ears)
    running.daemon._reload()
    eventually(lambda: before not in (now := rows.sql(ears)) and len(now) == 1, "it listens anew")
    assert in_state(running, ListenerState.UP)()


def test_no_error_of_the_listener_shows_a_secret(
    database: Database, start: Callable[..., Running], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the listener met is told without the passwords of either URL."""
    events.configure("json", "info")
    # The server names the role that it does not have, which here is spelled like the password.
    url = make_conninfo(database.conninfo, user="canary-user", password="canary-user")
    running = start(CURFEW_LISTEN_URL=url)
    eventually(in_state(running, ListenerState.UNREACHABLE), "it is refused")
    assert running.stop() is Exit.OK
    events.configure("json", "error")
    lines = capsys.readouterr().err.splitlines()
    (told,) = [line for line in map(json.loads, lines) if line["event"] == "listener_state_changed"]
    assert 'role "***" does not exist' in told["error"]
    assert "canary-user" not in "".join(lines)


# The listener by itself


class Audience:
    """What a listener tells."""

    def __init__(self) -> None:
        self.states: list[tuple[ListenerState | None, ListenerState, str]] = []
        self.hints: list[Hint] = []
        self.outcomes = dict.fromkeys(HintOutcome, 0)
        self.changed = threading.Event()

    def hinted(self, hint: Hint) -> bool:
        self.hints.append(hint)
        return True

    def hints_heard(self, outcome: HintOutcome, count: int) -> None:
        self.outcomes[outcome] += count

    def listener(self, old: ListenerState | None, new: ListenerState, error: BaseException | None) -> None:
        self.states.append((old, new, str(error or "")))

    @property
    def state(self) -> ListenerState | None:
        return self.states[-1][1] if self.states else None


def link_to(conninfo: str, answer_timeout: float = 1.0) -> Link:
    return Link(
        tables_in("public"),
        lambda: conninfo,
        application_name="curfewd listening",
        options={},
        connect_timeout=2,
        longest_dial=5.0,
        answer_timeout=answer_timeout,
    )


@contextmanager
def listening(ear: str, way: str, **often: Any) -> Iterator[tuple[Audience, HintListener]]:
    audience = Audience()
    often = {"check_every": OFTEN, "prove_every": OFTEN, "prove_within": OFTEN, **often}
    listener = HintListener("public", link_to(ear), link_to(way), audience, **often)
    listener.start()
    try:
        yield audience, listener
    finally:
        listener.stop(20)
        assert not listener._thread.is_alive()


def test_a_channel_on_which_nothing_arrives_is_silent(database: Database, empty_database: Database) -> None:
    """A way that ends elsewhere than the ear: told once however often it is tried, with the reason; and given up,
    since behind a pooler the session would go on listening for others.
    """
    upgrade(empty_database.engine)
    sent: list[str] = []
    with listening(database.conninfo, empty_database.conninfo) as (audience, listener):
        event.listen(listener._link._engine, "before_cursor_execute", lambda _c, _u, said, *_: sent.append(said))
        eventually(lambda: listener._failures >= 2 and 'UNLISTEN "curfew.public"' in sent, "it tries again")
        assert [(old, new) for old, new, _ in audience.states] == [(None, ListenerState.SILENT)]
        assert "CURFEW_DATABASE_URL" in audience.states[0][2]


def test_a_dead_network_shows_and_is_recovered_from(tcp: EmbeddedPostgres) -> None:
    """A connection that swallows everything is noticed by the next check, not by the operating system."""
    with Proxy(tcp.port) as proxy:
        through = make_conninfo(tcp.url(), host="127.0.0.1", port=proxy.port)
        with listening(through, tcp.url(), prove_every=600.0) as (audience, _):
            eventually(lambda: audience.state is ListenerState.UP, "it hears")
            proxy.mode = "black hole"
            eventually(lambda: audience.state is ListenerState.UNREACHABLE, "it notices")
            proxy.mode = "forward"
            proxy.cut()
            eventually(lambda: audience.state is ListenerState.UP, "it hears again")


def test_a_session_that_no_longer_listens_is_noticed_without_a_write(rows: Rows, database: Database) -> None:
    """As when a pooler swaps the session beneath: the check sees it, and checks take no transaction id."""
    sent: list[str] = []
    with listening(database.conninfo, database.conninfo, prove_every=600.0) as (audience, listener):
        eventually(lambda: audience.state is ListenerState.UP, "it hears")
        event.listen(listener._link._engine, "before_cursor_execute", lambda _c, _u, said, *_: sent.append(said))
        xid = rows.sql("SELECT pg_current_xact_id()::text::bigint")[0][0]
        eventually(lambda: sum("pg_listening_channels" in each for each in sent) >= 5, "it has checked five times")
        assert rows.sql("SELECT pg_current_xact_id()::text::bigint")[0][0] == xid + 1
        # In the listener's own thread, before its next check: a connection is one thread's.
        event.listen(
            listener._link._engine,
            "before_cursor_execute",
            lambda _c, cursor, *_: cursor.connection.execute("UNLISTEN *"),
            once=True,
        )
        eventually(lambda: (ListenerState.UP, ListenerState.SILENT) in [s[:2] for s in audience.states], "it notices")
        eventually(lambda: audience.state is ListenerState.UP, "it hears again")


def test_it_stops_at_once_whatever_it_is_doing(database: Database) -> None:
    """Waiting, pausing after a failure, and waiting for a token."""
    nowhere = make_conninfo(database.conninfo, port=1, host="127.0.0.1", connect_timeout=2)
    for ear, often in ((database.conninfo, {"check_every": 60.0}), (nowhere, {}), (database.conninfo, {})):
        with listening(ear, database.conninfo, **often) as (audience, _):
            eventually(lambda audience=audience: audience.states, "it has begun")  # type: ignore[misc]
            began = time.monotonic()
        assert time.monotonic() - began < 5


def test_a_reconnect_ends_the_pause_and_takes_the_new_address(database: Database) -> None:
    """After the settings were read again it does not wait out a pause that belonged to the old ones."""
    address = [make_conninfo(database.conninfo, port=1, host="127.0.0.1")]
    audience = Audience()
    link = link_to("")
    link._conninfo = lambda: address[0]
    listener = HintListener("public", link, link_to(database.conninfo), audience, delay=lambda: 3600.0)
    listener.start()
    eventually(lambda: audience.state is ListenerState.UNREACHABLE, "it fails")
    address[0] = database.conninfo
    listener.reconnect()
    eventually(lambda: audience.state is ListenerState.UP, "it hears")
    listener.stop(20)


def test_hints_that_arrive_with_an_answer_are_not_lost(database: Database, store: FlowRunControlStore) -> None:
    """A notification that the server sends before the answer to a check counts like any other."""
    with listening(database.conninfo, database.conninfo, check_every=0.001) as (audience, _):
        eventually(lambda: audience.state is ListenerState.UP, "it hears")
        told = {store.start_run(FLOW, "t", timeout=SHORT).run_id for _ in range(200)}
        eventually(lambda: sum(audience.outcomes.values()) == 200, "all are heard")
        assert audience.outcomes[HintOutcome.UNREADABLE] == 0
        assert audience.hints
        assert {hint.run_id for hint in audience.hints} <= told
