"""The daemon's connection: what it admits, and that no wait on a network or a server is without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy.exc
from psycopg.conninfo import make_conninfo
from sqlalchemy import text

from curfew_daemon.database import Link, NoAnswer, bounded_engine, startup_conninfo
from curfew_daemon.failures import DatabaseRefusal, state_of
from curfew_daemon.results import DatabaseState
from curfew_daemon.sweeper import Sweeper
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.errors import SchemaMismatch
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.proxy import Proxy, Stopwatch
from tests.integration.sessions import eventually, onlooker
from tests.servers import migrated_server

OPTIONS = {"statement_timeout": "4000", "default_transaction_isolation": "read committed"}
SLACK = 4.0
"""Seconds that a busy machine may add to a bound."""


def make_link(
    conninfo: str | Callable[[], str],
    *,
    options: dict[str, str] | None = None,
    connect_timeout: int = 2,
    longest_dial: float = 15,
    answer_timeout: float = 15,
    dropped: Callable[[list[str]], None] = lambda _: None,
    beat: Callable[[], None] = lambda: None,
    epoch: Callable[[], object] = lambda: None,
) -> Link:
    return Link(
        tables_in("public"),
        conninfo if callable(conninfo) else lambda: conninfo,
        application_name="curfewd test",
        options=OPTIONS if options is None else options,
        connect_timeout=connect_timeout,
        longest_dial=longest_dial,
        answer_timeout=answer_timeout,
        on_options_dropped=dropped,
        beat=beat,
        epoch=epoch,
    )


@contextmanager
def closing(link: Link) -> Iterator[Link]:
    try:
        yield link
    finally:
        link.close()


def failure_of(link: Link) -> BaseException:
    """What the link raises when it is asked for a connection."""
    with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
        link.connection()
    return raised.value


def backend(link: Link) -> int:
    return int(link.connection().execute(text("SELECT pg_backend_pid()")).scalar_one())


SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'curfewd test'"


@pytest.fixture(scope="module")
def tcp() -> Iterator[EmbeddedPostgres]:
    """A migrated server that is reached over TCP."""
    with migrated_server(tcp=True, password="secret") as server:
        yield server


@pytest.fixture
def proxy(tcp: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(tcp.port) as proxy:
        yield proxy


def through(proxy: Proxy) -> str:
    plain = "user=postgres password=secret dbname=postgres sslmode=disable gssencmode=disable"
    return f"host=127.0.0.1 port={proxy.port} {plain}"


# What is admitted


def test_a_good_database_is_admitted_and_the_connection_kept(database: Database) -> None:
    """One session in autocommit with our name and our server settings, however often it is asked for."""
    with closing(make_link(database.conninfo)) as link:
        first = backend(link)
        assert backend(link) == first
        conn = link.connection()
        asked = "SELECT current_setting('statement_timeout'), current_setting('application_name')"
        assert tuple(conn.execute(text(asked)).one()) == ("4s", "curfewd test")
        assert conn.execute(text("SHOW default_transaction_isolation")).scalar_one() == "read committed"
        with onlooker(database.conninfo) as seen:
            assert seen.ask("SELECT state FROM pg_stat_activity WHERE pid = %s", first) == "idle"


def test_read_only_transactions_are_refused(database: Database) -> None:
    """A role or a database made read-only is told before anything is claimed, and admitted afterwards."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        seen.rows(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        with pytest.raises(DatabaseRefusal) as raised:
            link.connection()
        assert state_of(raised.value) is DatabaseState.READ_ONLY
        link.drop()
        seen.rows(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
        assert backend(link)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("DROP TABLE curfew_schema_version", DatabaseState.SCHEMA_MISSING),
        ("DELETE FROM curfew_schema_version", DatabaseState.SCHEMA_MISSING),
        ("UPDATE curfew_schema_version SET version_num = '0000'", DatabaseState.SCHEMA_OLD),
        ("UPDATE curfew_schema_version SET version_num = '9999', minimum_client = 99", DatabaseState.SCHEMA_OLD),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(database: Database, change: str, state: DatabaseState) -> None:
    """Missing, empty, older, or newer with a higher minimum."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        seen.rows(change)
        with pytest.raises(SchemaMismatch) as raised:
            link.connection()
    assert state_of(raised.value) is state


def test_a_newer_schema_that_still_serves_us_is_admitted(database: Database) -> None:
    """A rolling upgrade migrates first; the old daemons go on."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        seen.rows("UPDATE curfew_schema_version SET version_num = '9999'")
        assert backend(link)


def test_another_engines_runs_are_refused(database: Database) -> None:
    """FlowOrchestrator's table beside the controls, and only in the same schema."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        seen.rows("CREATE SCHEMA other")
        seen.rows("CREATE TABLE other.flow_runs (id uuid)")
        assert backend(link)
        link.drop()
        seen.rows("CREATE TABLE flow_runs (id uuid)")
        with pytest.raises(DatabaseRefusal, match=r"public\.flow_runs"):
            link.connection()


# Dropped and made again


def test_after_a_drop_the_next_connection_is_a_new_one(database: Database) -> None:
    """The old session ends at once; a drop may be repeated."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        first = backend(link)
        link.drop()
        link.drop()
        eventually(lambda: seen.ask(SESSIONS) == 0, "the session ends")
        assert backend(link) != first


def test_a_terminated_session_is_replaced_by_one_and_no_more(database: Database) -> None:
    """Giving up a broken connection does not dial; asking for the next one dials once."""
    dials: list[int] = []

    def conninfo() -> str:
        dials.append(1)
        return database.conninfo

    with onlooker(database.conninfo) as seen, closing(make_link(conninfo)) as link:
        seen.terminate(backend(link))
        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            backend(link)
        assert state_of(raised.value) is DatabaseState.SHUTTING_DOWN
        link.drop()
        assert len(dials) == 1
        assert backend(link)
        assert len(dials) == 2


def test_the_address_is_asked_for_at_every_connect(database: Database) -> None:
    """A rotated secret or a moved server is picked up without a restart."""
    answers = [make_conninfo(database.conninfo, dbname="gone"), database.conninfo]
    with closing(make_link(lambda: answers.pop(0))) as link:
        with pytest.raises(sqlalchemy.exc.OperationalError):
            link.connection()
        link.drop()
        assert backend(link)


def test_a_statement_is_cancelled_from_another_thread(database: Database) -> None:
    """The server ends it, and says so; without a connection there is nothing to cancel."""
    with onlooker(database.conninfo) as seen, closing(make_link(database.conninfo)) as link:
        link.cancel()
        conn = link.connection()

        def cancel_when_it_sleeps() -> None:
            asked = SESSIONS + " AND wait_event = 'PgSleep'"
            eventually(lambda: seen.ask(asked) == 1, "it sleeps")
            link.cancel()

        helper = threading.Thread(target=cancel_when_it_sleeps)
        helper.start()
        with pytest.raises(sqlalchemy.exc.OperationalError, match="due to user request"):
            conn.execute(text("SELECT pg_sleep(3)"))
        helper.join()


def test_a_cancel_that_meets_a_drop_neither_raises_nor_dials(database: Database) -> None:
    """Another thread may cancel while the connection's own thread is in the middle of giving it up."""
    dials: list[int] = []

    def conninfo() -> str:
        dials.append(1)
        return database.conninfo

    with closing(make_link(conninfo)) as link:
        link.connection().connection.invalidate()  # the first half of what a drop asks of SQLAlchemy
        link.cancel()
        link.drop()
        link.cancel()
        assert len(dials) == 1


# Startup options


def test_the_operators_own_options_win(database: Database) -> None:
    """What the URL says comes after ours, and what it does not say stays ours."""
    conninfo = make_conninfo(database.conninfo, options="-c statement_timeout=1234 -c work_mem=8MB")
    with closing(make_link(conninfo)) as link:
        asked = (
            "SELECT current_setting('statement_timeout'), current_setting('work_mem'),"
            " current_setting('default_transaction_isolation')"
        )
        assert tuple(link.connection().execute(text(asked)).one()) == ("1234ms", "8MB", "read committed")


def test_several_hosts_mean_the_one_that_can_be_written_to(database: Database) -> None:
    """Only a list of hosts asks for it, since it costs a round trip; the URL's own wish stands."""
    assert "target_session_attrs" not in startup_conninfo(database.conninfo, {}, "x", 2)
    several = "host=a,b port=1,2"
    assert "target_session_attrs=read-write" in startup_conninfo(several, {}, "x", 2)
    assert "target_session_attrs=any" in startup_conninfo(f"{several} target_session_attrs=any", {}, "x", 2)


def test_options_that_a_pooler_refuses_are_left_out_and_said_once(proxy: Proxy) -> None:
    """The same attempt goes on without them; so does the next connection, which is told of no more."""
    said: list[list[str]] = []
    proxy.takes_options = False
    with closing(make_link(through(proxy), dropped=said.append)) as link:
        assert link.connection().execute(text("SHOW statement_timeout")).scalar_one() == "0"
        assert proxy.accepted == 2
        link.drop()
        assert backend(link)
        assert proxy.accepted == 4
    assert said == [sorted(OPTIONS)]


def test_options_are_taken_again_once_nothing_refuses_them(proxy: Proxy) -> None:
    """The pooler has gone: the next connection has its time limits, which is said as well, once."""
    said: list[list[str]] = []
    proxy.takes_options = False
    with closing(make_link(through(proxy), dropped=said.append)) as link:
        assert link.connection().execute(text("SHOW statement_timeout")).scalar_one() == "0"
        proxy.takes_options = True
        for _ in range(2):
            link.drop()
            assert link.connection().execute(text("SHOW statement_timeout")).scalar_one() == "4s"
        assert said == [sorted(OPTIONS), []]


# Other settings


def test_other_settings_are_another_connection(database: Database) -> None:
    """Asked for again after a change, the link gives a new one, and the same from then on."""
    settings = [object()]
    with closing(make_link(database.conninfo, epoch=lambda: settings[-1])) as link:
        first = backend(link)
        assert not link.outdated
        settings.append(object())
        assert link.outdated
        second = backend(link)
        assert (second != first, link.outdated) == (True, False)
        assert backend(link) == second


def test_an_attempt_to_reach_the_former_server_is_given_up(database: Database, proxy: Proxy) -> None:
    """It may be in hand for long and succeed in the end; the new settings have their own attempt at once."""
    settings = [through(proxy)]
    proxy.mode = "black hole"
    link = make_link(lambda: settings[-1], epoch=lambda: settings[-1], connect_timeout=10, longest_dial=0.1)
    with closing(link):
        with pytest.raises(sqlalchemy.exc.OperationalError):
            link.connection()
        link.drop()
        settings.append(database.conninfo)
        link._longest_dial = 15
        assert link.connection().execute(text("SELECT current_database()")).scalar_one() == database.name
        proxy.cut()
        _await_dialled()


def test_options_of_the_operators_own_are_never_left_out(proxy: Proxy) -> None:
    """What the URL asks for is not ours to drop: the refusal is an error, and nothing is said to be dropped."""
    said: list[list[str]] = []
    proxy.takes_options = False
    conninfo = make_conninfo(through(proxy), options="-c work_mem=8MB")
    with closing(make_link(conninfo, dropped=said.append)) as link:
        assert "unsupported startup parameter" in str(failure_of(link))
    assert said == []


# Every wait is bounded


def test_a_server_that_resets_is_told_at_once(proxy: Proxy) -> None:
    """A refusal needs no timeout."""
    proxy.mode = "refuse"
    with closing(make_link(through(proxy), longest_dial=60)) as link, Stopwatch() as watch:
        error = failure_of(link)
    assert state_of(error) is DatabaseState.UNREACHABLE
    assert watch.seconds < SLACK


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_silence_while_connecting_ends_with_the_connect_timeout(proxy: Proxy, answers: int) -> None:
    """A server that accepts and says nothing, or stops talking during authentication."""
    proxy.answers = answers
    with closing(make_link(through(proxy), connect_timeout=2, longest_dial=60)) as link, Stopwatch() as watch:
        error = failure_of(link)
    assert state_of(error) is DatabaseState.UNREACHABLE
    assert watch.seconds < 2 + SLACK


def test_silence_after_connecting_ends_with_the_answer_timeout(tcp: EmbeddedPostgres, proxy: Proxy) -> None:
    """The checks of an admission have one bound together, wherever among them the server falls silent."""
    for answers in range(1, 6):
        proxy.answers = answers + 3
        with closing(make_link(through(proxy), answer_timeout=0.5)) as link, Stopwatch() as watch:
            error = failure_of(link)
        assert watch.seconds < 2 + 0.5 + SLACK
        assert isinstance(getattr(error, "orig", None), NoAnswer), answers
        proxy.cut()


def test_silence_in_the_middle_of_a_statement_ends_with_the_answer_timeout(proxy: Proxy) -> None:
    """The connection is given up without a word; once the network is back the next one works."""
    with closing(make_link(through(proxy), answer_timeout=0.5)) as link:
        first, beats = backend(link), proxy.accepted
        proxy.mode = "black hole"
        with Stopwatch() as watch:
            with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
                link.connection().execute(text("SELECT 1"))
            link.drop()
        assert isinstance(raised.value.orig, NoAnswer)
        assert 0.5 <= watch.seconds < 0.5 + SLACK
        assert state_of(raised.value) is DatabaseState.UNREACHABLE
        proxy.mode = "forward"
        assert backend(link) != first
        assert proxy.accepted == beats + 1


def test_a_slow_network_is_no_outage(proxy: Proxy) -> None:
    """Each answer may take as long as the bound, however many there are."""
    with closing(make_link(through(proxy), answer_timeout=5)) as link:
        link.connection()
        proxy.mode = "delay"
        proxy.delay = 0.1
        assert [backend(link) for _ in range(5)]


def test_a_slow_network_is_no_costly_search(proxy: Proxy) -> None:
    """What a full look took is the server's time, whatever the way there adds; so it stays as frequent as polls."""
    with closing(make_link(through(proxy))) as link:
        sweeper = Sweeper(tables_in("public"), link.connection, batch_size=lambda: 1, on_batch=lambda _batch: None)
        link.connection()
        proxy.mode = "delay"
        proxy.delay = 1.0
        result = sweeper.run_once()
        assert result.duration >= 1.0
        assert result.full_look is not None
        assert 0 < result.full_look < 1.0


def test_a_dial_that_outlasts_its_wait_is_asked_again_and_never_doubled(proxy: Proxy) -> None:
    """Several attempts wait for the same thread; the connection that it makes at last is used."""
    proxy.mode = "delay"
    proxy.delay = 0.8
    with closing(make_link(through(proxy), connect_timeout=10, longest_dial=0.2)) as link:
        with Stopwatch() as watch, pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            link.connection()
        assert state_of(raised.value) is DatabaseState.UNREACHABLE
        assert 0.2 <= watch.seconds < 0.2 + SLACK
        for _ in range(2):
            link.drop()
            with pytest.raises(sqlalchemy.exc.OperationalError):
                link.connection()
        assert len([each for each in threading.enumerate() if each.name == "curfewd-dial"]) == 1
        proxy.mode = "forward"
        _await_dialled()
        assert backend(link)
        assert proxy.accepted == 1


def test_a_connection_that_came_late_has_its_whole_bound(proxy: Proxy) -> None:
    """The bound of the admission counts from when the connection is taken, not from when it came."""
    proxy.mode = "delay"
    proxy.delay = 0.5
    with closing(make_link(through(proxy), connect_timeout=10, longest_dial=0.1, answer_timeout=0.4)) as link:
        with pytest.raises(sqlalchemy.exc.OperationalError):
            link.connection()
        proxy.mode = "forward"
        _await_dialled()
        came = time.monotonic()
        eventually(lambda: time.monotonic() > came + 0.5, "the bound has passed")
        assert backend(link)
        assert proxy.accepted == 1


def test_a_connection_that_comes_after_the_end_is_closed(tcp: EmbeddedPostgres, proxy: Proxy) -> None:
    """A link that was closed leaves no session behind, whenever its thread comes through."""
    proxy.mode = "delay"
    proxy.delay = 0.5
    link = make_link(through(proxy), connect_timeout=10, longest_dial=0.1)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        link.connection()
    link.close()
    proxy.mode = "forward"
    _await_dialled()
    with onlooker(tcp.url()) as seen:
        eventually(lambda: seen.ask(SESSIONS) == 0, "no session stays")


def _await_dialled() -> None:
    names = {"curfewd-dial"}
    eventually(lambda: names.isdisjoint(each.name for each in threading.enumerate()), "the thread that dials ends")


def test_a_beat_is_due_between_dialling_and_the_admission(database: Database) -> None:
    """The two bounds do not add up in the eyes of a watchdog."""
    beats: list[str] = []
    with closing(make_link(database.conninfo, beat=lambda: beats.append("beat"))) as link:
        link.connection()
        assert beats == ["beat"]


def test_one_off_commands_are_bounded_too(proxy: Proxy) -> None:
    """The engine of `plan` and `check` gives up on a silent server."""
    engine = bounded_engine(through(proxy), application_name="x", connect_timeout=2, answer_timeout=0.5)
    with engine.connect() as conn:
        proxy.mode = "black hole"
        with Stopwatch() as watch, pytest.raises(sqlalchemy.exc.OperationalError, match="no answer"):
            conn.execute(text("SELECT 1"))
    assert watch.seconds < 0.5 + SLACK
