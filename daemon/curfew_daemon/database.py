"""The daemon's connections: every wait bounded, every refusal told apart.

`BoundedConnection` gives each answer of the server a client-side limit, since a server's own timeouts do not
fire for a client behind a dead network. `Link` keeps one connection in autocommit, admits it only after the
checks that enforcement depends on, and drops it on any error: a new connection is cheap, a doubtful one is not.
Longer than other modules, so that how long a wait may last and how it ends are read in one place.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy.exc
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from curfew_daemon.failures import DatabaseRefusal
from curfew_daemon.results import DatabaseState
from curfew_store.inspection import UPSTREAM_RUNS, has_upstream_engine
from curfew_store.schema import Tables
from curfew_store.version import verify

__all__ = ["BoundedConnection", "Link", "NoAnswer", "bounded_engine"]

T = TypeVar("T")

_CANCEL_TIMEOUT: Final = 1.0
_UNSUPPORTED: Final = "unsupported startup parameter"  # PgBouncer's words for an option it does not know


class NoAnswer(psycopg.OperationalError):
    """The server did not answer in time; the connection is of no further use."""


def _bounded(answers: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """*answers*, psycopg's protocol of waiting, ended by `NoAnswer` once *seconds* have passed."""
    give_up = time.monotonic() + seconds
    try:
        waiting_for = next(answers)
        while True:
            ready = yield waiting_for
            if time.monotonic() > give_up:  # whether nothing arrives, or a trickle without end
                raise NoAnswer(f"no answer from the server within {seconds:g} s")
            waiting_for = answers.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


class BoundedConnection(psycopg.Connection[Any]):
    """A psycopg connection on which no answer is waited for longer than `answer_timeout` seconds.

    Until `deadline` (monotonic) is taken away, all answers together are bounded by it.
    """

    answer_timeout: float = 10.0
    deadline: float | None = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Consume *gen*; raises `NoAnswer` and gives the connection up if the server stays silent."""
        seconds = self.answer_timeout
        if self.deadline is not None:
            seconds = max(0.0, min(seconds, self.deadline - time.monotonic()))
        try:
            return super().wait(_bounded(gen, seconds), *args, **kwargs)
        except NoAnswer:
            self.pgconn.finish()  # sends nothing that could wait in turn
            raise


class _Dialling:
    """One attempt to connect, in a thread of its own since the look-up of a host name knows no timeout."""

    def __init__(self, dial: Callable[[], BoundedConnection]) -> None:
        self._outcome: BoundedConnection | BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(dial,), name="curfewd-dial", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the process has reached its limit of threads
            raise psycopg.OperationalError(f"no connect: {error}") from error

    def _run(self, dial: Callable[[], BoundedConnection]) -> None:
        try:
            outcome: BoundedConnection | BaseException = dial()
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits)
            outcome = error
        with self._lock:
            self._outcome = outcome
            if self._abandoned and isinstance(outcome, BoundedConnection):
                outcome.close()

    def result(self, seconds: float) -> BoundedConnection | None:
        """The connection, or ``None`` while there is no outcome after *seconds*; raises what dialling raised."""
        self._thread.join(seconds)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def abandon(self) -> None:
        """Nobody waits any more: a connection that still comes is closed."""
        with self._lock:
            self._abandoned = True
            if isinstance(self._outcome, BoundedConnection):
                self._outcome.close()


class Link:
    """One admitted connection in autocommit, made when asked for and remade after `drop`.

    *conninfo* is asked at every attempt, so a rotated secret is picked up. When *epoch* gives another object than
    before, the settings have changed: the next `connection` is a new one, made with none of the former ones.
    *options* are server settings sent at start-up; a pooler may refuse them, then they are left out of this connection.
    *on_options_dropped* is told which, once until they are taken again, and then of none. *longest_dial* bounds one
    attempt over all hosts, *answer_timeout* every answer, both in seconds; *beat* is called between the two.
    """

    def __init__(
        self,
        tables: Tables,
        conninfo: Callable[[], str],
        *,
        application_name: str,
        options: dict[str, str],
        connect_timeout: int,
        longest_dial: float,
        answer_timeout: float,
        on_options_dropped: Callable[[list[str]], None] = lambda _names: None,
        beat: Callable[[], None] = lambda: None,
        epoch: Callable[[], object] = lambda: None,
    ) -> None:
        self._tables = tables
        self._conninfo = conninfo
        self._application_name = application_name
        self._options = options
        self._connect_timeout = connect_timeout
        self._longest_dial = longest_dial
        self._answer_timeout = answer_timeout
        self._on_options_dropped = on_options_dropped
        self._options_dropped = False
        self._beat = beat
        self._epoch = epoch
        self._made_in = epoch()
        self._dialling: _Dialling | None = None
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=self._dialled,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,  # its look-up would cost a statement at every connect
        )
        self._connection: Connection | None = None
        # The driver's own, beside `_connection`: another thread that asked SQLAlchemy for it would dial anew where its
        # owner has just lost it.
        self._session: BoundedConnection | None = None

    @property
    def outdated(self) -> bool:
        """Whether the settings have changed since; for any thread."""
        return self._epoch() is not self._made_in

    def connection(self) -> Connection:
        """The live connection; makes and admits one where there is none, or only one of former settings.

        Raises `DatabaseRefusal` for a server that must not be written to, `SchemaMismatch`, and psycopg's or
        SQLAlchemy's errors.
        """
        epoch = self._epoch()
        if epoch is not self._made_in:
            self.close()  # also an attempt in hand, which may yet reach the former server
            self._made_in = epoch
        if self._connection is None:
            try:
                self._connection = self._engine.connect()
                self._admit(self._connection)
            except BaseException:
                self.drop()  # a connection that was not admitted must not be found here next time
                raise
            assert self._session is not None
            self._session.deadline = None
        return self._connection

    def drop(self) -> None:
        """Gives the connection up without a word to the server that could wait."""
        connection, self._connection = self._connection, None
        session, self._session = self._session, None
        if session is not None:
            session.pgconn.finish()
        if connection is not None:
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError, psycopg.Error):
                connection.invalidate()
                connection.close()

    def cancel(self) -> None:
        """Asks the server to end the statement in hand, for another thread than its own; waits a second at most."""
        session = self._session
        if session is not None:
            with contextlib.suppress(psycopg.Error):  # its owner may give it up meanwhile
                session.cancel_safe(timeout=_CANCEL_TIMEOUT)

    def close(self) -> None:
        """`drop`, and nothing more of an attempt to connect that is in hand."""
        self.drop()
        if self._dialling is not None:
            self._dialling.abandon()
            self._dialling = None

    def _admit(self, conn: Connection) -> None:
        recovery, read_only = conn.execute(
            text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'")
        ).one()
        if recovery:
            raise DatabaseRefusal(DatabaseState.STANDBY, "the server is a standby, which cannot be written to")
        if read_only:
            raise DatabaseRefusal(DatabaseState.READ_ONLY, "transactions are read-only here")
        verify(conn, self._tables)
        refuse_upstream_engine(conn, self._tables)

    def _dialled(self) -> BoundedConnection:
        """A new connection within the bound; an attempt that outlasts it goes on and is asked again next time."""
        if self._dialling is None:
            self._dialling = _Dialling(self._dial)
        dialling = self._dialling
        try:
            connection = dialling.result(self._longest_dial)
        except BaseException:
            self._dialling = None
            raise
        if connection is None:
            raise psycopg.errors.ConnectionTimeout(f"no connection within {self._longest_dial:g} s")
        self._dialling = None
        # From now and not from the handshake on: an attempt that outlasted its wait may have ended long ago.
        connection.deadline = time.monotonic() + self._answer_timeout  # until it has been admitted
        self._session = connection
        self._beat()
        return connection

    def _dial(self) -> BoundedConnection:
        conninfo = self._conninfo()
        try:
            # Asked for each time, refused or not: the next server may be another, or the same without a pooler.
            connection, dropped = self._open(conninfo, self._options), False
        except psycopg.OperationalError as error:
            if _UNSUPPORTED not in str(error) or not self._options:
                raise
            connection, dropped = self._open(conninfo, {}), True
        if dropped is not self._options_dropped:
            self._options_dropped = dropped
            self._on_options_dropped(sorted(self._options) if dropped else [])
        return connection

    def _open(self, conninfo: str, options: dict[str, str]) -> BoundedConnection:
        connection = BoundedConnection.connect(
            startup_conninfo(conninfo, options, self._application_name, self._connect_timeout),
            prepare_threshold=None,
        )
        connection.answer_timeout = self._answer_timeout
        return connection


def refuse_upstream_engine(conn: Connection, tables: Tables) -> None:
    """Raises `DatabaseRefusal` where FlowOrchestrator's engine uses the same tables."""
    if has_upstream_engine(conn, tables):
        raise upstream_engine_refusal(tables)


def upstream_engine_refusal(tables: Tables) -> DatabaseRefusal:
    """What to raise where FlowOrchestrator's engine uses the same tables."""
    return DatabaseRefusal(
        DatabaseState.UPSTREAM_ENGINE,
        f"{tables.schema}.{UPSTREAM_RUNS} stands beside the controls: FlowOrchestrator records there that a run "
        "has ended, so its finished runs look overdue here and would be marked as timed out",
    )


def startup_conninfo(conninfo: str, options: dict[str, str], application_name: str, connect_timeout: int) -> str:
    """*conninfo* with what every connection of the daemon needs; options of the operator's own come last and win."""
    given = conninfo_to_dict(conninfo)
    extra: dict[str, Any] = {
        "application_name": application_name,
        "connect_timeout": connect_timeout,
        "keepalives_idle": given.get("keepalives_idle", 5),
        "keepalives_interval": given.get("keepalives_interval", 2),
        "keepalives_count": given.get("keepalives_count", 3),
        "tcp_user_timeout": given.get("tcp_user_timeout", 10_000),
    }
    if "," in f"{given.get('host') or ''}{given.get('hostaddr') or ''}":
        # Of several hosts only the one that can be written to is of use, whichever is listed first.
        extra["target_session_attrs"] = given.get("target_session_attrs", "read-write")
    ours = [f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in options.items()]
    theirs = given.get("options")
    if ours or theirs:
        extra["options"] = " ".join([*ours, *([str(theirs)] if theirs else [])])
    return make_conninfo(conninfo, **extra)


def bounded_engine(conninfo: str, *, application_name: str, connect_timeout: int, answer_timeout: float) -> Engine:
    """An engine for one-off commands: plain transactions, each answer bounded, no pool."""

    def dial() -> BoundedConnection:
        connection = BoundedConnection.connect(
            startup_conninfo(conninfo, {}, application_name, connect_timeout), prepare_threshold=None
        )
        connection.answer_timeout = answer_timeout
        return connection

    return create_engine("postgresql+psycopg://", creator=dial, poolclass=NullPool, use_native_hstore=False)
