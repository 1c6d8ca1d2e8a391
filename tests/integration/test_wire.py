"""The laboratory's proxy does what it says: each trap at its point, each weather, and nothing to anyone else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import psycopg
import pytest

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.protocol import Message, Request, Splitter, rows_affected
from tests.faults.wire import Deed, Point, Trap, Weather, Wire
from tests.patience import PATIENCE

INSERT = "INSERT INTO kept SELECT %s"


@pytest.fixture(scope="module")
def tcp() -> Iterator[EmbeddedPostgres]:
    """A server on a port, with a table."""
    with EmbeddedPostgres.start(tcp=True) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("CREATE TABLE kept (number int)")
        yield server


@pytest.fixture
def wire(tcp: EmbeddedPostgres) -> Iterator[Wire]:
    """A proxy before it, and an empty table behind it."""
    with psycopg.connect(tcp.url(), autocommit=True) as conn:
        conn.execute("TRUNCATE kept")
    with Wire(tcp.port) as proxy:
        yield proxy


def connect(wire: Wire, name: str = "victim") -> psycopg.Connection[tuple[object, ...]]:
    conninfo = f"postgresql://postgres@127.0.0.1:{wire.port}/postgres"
    return psycopg.connect(
        conninfo,
        autocommit=True,
        application_name=name,
        connect_timeout=2,
        tcp_user_timeout=2000,
        prepare_threshold=None,
    )


def kept(tcp: EmbeddedPostgres) -> list[int]:
    """What is in the table once nobody is at work on it."""
    with psycopg.connect(tcp.url(), autocommit=True) as conn:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'victim'"
        give_up = time.monotonic() + PATIENCE
        while conn.execute(busy).fetchone() != (0,):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        return [number for (number,) in conn.execute("SELECT number FROM kept ORDER BY number")]


def test_without_a_trap_everything_passes(wire: Wire, tcp: EmbeddedPostgres) -> None:
    """Both protocols, errors, many rows, and the name of each session."""
    with connect(wire) as conn:
        conn.execute(INSERT, (1,))
        assert conn.execute("SELECT 1").fetchone() == (1,)
        assert len(conn.execute("SELECT repeat('x', 1000) FROM generate_series(1, 5000)").fetchall()) == 5000
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1 / %s", (0,))
        assert wire.sessions() == ["victim"]
    assert kept(tcp) == [1]
    assert wire.accepted == 1


@pytest.mark.parametrize(
    ("at", "do", "committed"),
    [
        ("parse", "cut", False),
        ("unsynced", "cut", False),
        ("unsynced", "reset", False),
        ("fetch", "garbage", True),
        ("commit", "cut", True),
    ],
)
def test_a_statement_is_struck_at_its_point(
    wire: Wire, tcp: EmbeddedPostgres, at: Point, do: Deed, committed: bool
) -> None:
    """The client sees an error wherever it was, and the point decides whether the statement took effect."""
    struck = Trap(at, do, session="victim", statement=b"INSERT")
    with connect(wire) as conn, connect(wire, "bystander") as other:
        with wire.trap(struck) as trap:
            other.execute(INSERT, (7,))
            assert conn.execute("SELECT 1").fetchone() == (1,)
            with pytest.raises(psycopg.DatabaseError):  # garbage has no SQLSTATE, and is no OperationalError
                conn.execute(INSERT, (1,))
            assert trap.wait(PATIENCE)
        assert trap.victims == ["victim"]
        assert conn.closed
        other.execute(INSERT, (8,))
    assert kept(tcp) == ([1, 7, 8] if committed else [7, 8])


@pytest.mark.parametrize("at", ["connect", "auth"])
def test_a_connection_is_struck_before_it_is_made(wire: Wire, at: Point) -> None:
    """The trapped one fails, the next and those of other names do not."""
    with wire.trap(Trap(at, "reset", session="vic")):
        with pytest.raises(psycopg.OperationalError):
            connect(wire)
        connect(wire, "bystander").close()
        connect(wire).close()


def test_silence_before_a_connection_is_made_lasts_until_the_client_gives_up(wire: Wire) -> None:
    """Nothing is heard, and nothing closes the connection but the client itself."""
    with wire.trap(Trap("auth", "black hole")), pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(wire)


def test_silence_in_a_statement_ends_with_the_trap(wire: Wire, tcp: EmbeddedPostgres) -> None:
    """The server's side stays open as long as the trap: half open, not closed."""
    silence = Trap("unsynced", "black hole", statement=b"INSERT")
    with psycopg.connect(tcp.url(), autocommit=True) as admin, connect(wire) as conn, wire.trap(silence):
        conn.pgconn.send_query_params(b"INSERT INTO kept SELECT $1::int", [b"1"])
        assert silence.wait(PATIENCE)
        held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'victim' AND backend_xid IS NOT NULL"
        give_up = time.monotonic() + PATIENCE
        while admin.execute(held).fetchone() != (1,):
            assert time.monotonic() < give_up, "the statement was not begun"
        conn.pgconn.finish()
        assert admin.execute(held).fetchone() == (1,)
    assert kept(tcp) == []


def test_a_trap_for_marks_lets_idle_answers_pass(wire: Wire, tcp: EmbeddedPostgres) -> None:
    """A statement that changed nothing is answered; the first that did is not."""
    update = "WITH due AS (SELECT number FROM kept) UPDATE kept SET number = %s FROM due"
    with connect(wire) as conn, wire.trap(Trap("commit", "cut", statement=b"UPDATE", marking=True)) as trap:
        assert conn.execute(update, (2,)).rowcount == 0
        conn.execute(INSERT, (1,))
        with pytest.raises(psycopg.OperationalError):
            conn.execute(update, (2,))
        assert trap.victims == ["victim"]
    assert kept(tcp) == [2]


def test_weather_slows_and_drops(wire: Wire) -> None:
    """Latency is added to each piece, a rate to its length, and a loss of 1 resets at once; others stay dry."""
    with connect(wire) as conn, connect(wire, "bystander") as other:
        with wire.weather(Weather("victim", delay=0.2)):
            began = time.monotonic()
            conn.execute("SELECT 1")
            assert time.monotonic() - began >= 0.4
        with wire.weather(Weather("victim", rate=10_000)):
            began = time.monotonic()
            conn.execute("SELECT repeat('x', 5000)")
            assert time.monotonic() - began >= 0.5
        with wire.weather(Weather("victim", loss=1.0)):
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT 1")
            other.execute("SELECT 1")


def test_modes_and_targets_hold_for_all(wire: Wire, tcp: EmbeddedPostgres) -> None:
    """Refused connections, silence over open ones, and a server that moved."""
    wire.mode = "refuse"
    with pytest.raises(psycopg.OperationalError):
        connect(wire)
    wire.mode = "forward"
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        wire.target = elsewhere.getsockname()[1]
    with pytest.raises(psycopg.OperationalError):
        connect(wire)
    wire.target = tcp.port
    with connect(wire) as conn:
        wire.cut("other")
        conn.execute("SELECT 1")
        wire.cut("vic")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")


def test_messages_may_come_in_any_pieces() -> None:
    """One byte at a time or all at once, requests and messages are the same."""
    parse = b"P\x00\x00\x00\x10one\x00SELECT\x00\x00\x00"[: 1 + 16]
    sync = b"S\x00\x00\x00\x04"
    stream = parse + sync + b"X\x00\x00\x00\x04"
    whole = Splitter().requests(stream)
    splitter = Splitter()
    assert [each for byte in stream for each in splitter.requests(bytes([byte]))] == whole
    assert [request.sql for request in whole] == [b"SELECT", b""]
    assert whole[0].unsynced == parse
    assert Request((Message(b"Q", b"Q\x00\x00\x00\x0dSELECT 1\x00"),)).sql == b"SELECT 1"
    assert rows_affected(Message(b"C", b"C\x00\x00\x00\x0dUPDATE 3\x00")) == 3
    assert rows_affected(Message(b"C", b"C\x00\x00\x00\x0bCOMMIT\x00")) == 0
