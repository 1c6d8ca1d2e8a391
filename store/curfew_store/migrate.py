"""Brings a database to the latest schema that this package knows, or prints the SQL that would.

Migrations are additive and online. Every statement commits by itself and every step may be repeated, so a
migration that was killed is simply run again. Several processes may migrate at once: one works, the others
wait by asking for an advisory lock again and again. Waiting inside the lock call, or inside a transaction,
would hold a snapshot that ``CREATE INDEX CONCURRENTLY`` waits for: a deadlock.

Needs Alembic, which ``curfewd[daemon]`` and ``curfewd[embedded]`` bring, and a direct connection: through a
pooler in transaction mode the advisory lock would belong to nobody in particular.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

import sqlalchemy.exc
from sqlalchemy import Connection, Engine, text

from curfew_store.errors import MigrationError, sqlstate_of
from curfew_store.schema import checked_schema, tables_in
from curfew_store.version import LATEST, found_version, verify

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script

__all__ = ["script", "upgrade"]

DDL_LOCK_TIMEOUT: Final = "3s"
_LOCK_CLASS: Final = 0x63757266  # "curf"
_LOCK_POLL_SECONDS: Final = 0.1
_ALEMBIC: Final = threading.Lock()  # its context is global to the process


def upgrade(
    engine: Engine,
    *,
    schema: str = "public",
    wait: float = 600.0,
    on_wait: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> tuple[str | None, str]:
    """Bring *schema* up to date and return the versions before and after.

    What is missing is made even where the version says that it is there, as after a restore of a part. Waits up to
    *wait* seconds for another migration of the same schema; *on_wait* is called once if it has to. *tell* is given a
    line before each build of an index, which waits for older transactions without a bound, and one about what was
    missing. Raises `MigrationError`, with the remedy, and database errors as SQLAlchemy's.
    """
    tables = tables_in(schema)
    with _session(engine) as conn, _only_one(conn, schema, wait, on_wait), _explained(schema):
        before = found_version(conn, tables)
        if before is None or before[0] <= LATEST:
            _run_revisions(conn, schema, before[0] if before else "", tell)
        # A newer schema is left as it is, and is good enough unless it says otherwise.
        return (before[0] if before else None), verify(conn, tables)


def script(*, schema: str = "public") -> str:
    """The same migration as SQL for people who run their own: idempotent, and fit for an adopted schema.

    Statements with CONCURRENTLY are marked; they cannot run inside a transaction.
    """
    from alembic.operations import Operations  # noqa: PLC0415  (an extra brings Alembic)
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415

    from curfew_store.migrations import steps  # noqa: PLC0415

    checked_schema(schema)
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True, "curfew_schema": schema}
    context = MigrationContext.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, opts=options)
    with Operations.context(context):
        steps.create_foundation(schema)
        for revision in _revisions(_config(schema)):
            output.write(steps.comment(f"{revision.revision}: {(revision.doc or '').splitlines()[0]}"))
            revision.module.upgrade()
            steps.record_version(schema, revision.revision)
    return output.getvalue()


def _config(schema: str) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["schema"] = schema
    return config


def _revisions(config: Config) -> list[Script]:
    """Every revision, oldest first."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return list(ScriptDirectory.from_config(config).walk_revisions())[::-1]


def _run_revisions(conn: Connection, schema: str, version: str, tell: Callable[[str], None]) -> None:
    from alembic import command  # noqa: PLC0415
    from alembic.operations import Operations  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415

    from curfew_store.migrations import steps  # noqa: PLC0415

    config = _config(schema)
    config.attributes.update(connection=conn, tell=tell)
    revisions = [revision.module for revision in _revisions(config)]
    context = MigrationContext.configure(conn, opts={"curfew_schema": schema, "curfew_tell": tell})
    with _ALEMBIC:
        with Operations.context(context):
            for revision in revisions:
                revision.refuse(schema)
            steps.create_foundation(schema)
        if version < LATEST:
            command.upgrade(config, "head")
        with Operations.context(context):
            if missing := [name for revision in revisions for name in revision.missing(schema)]:
                tell(f"version {LATEST} is recorded, yet missing or invalid: {', '.join(missing)}")
                for revision in revisions:
                    revision.upgrade()


@contextmanager
def _session(engine: Engine) -> Iterator[Connection]:
    """A connection in autocommit that gives up soon on locks behind which others would queue, and never on builds."""
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        conn.execute(text(f"SET lock_timeout = '{DDL_LOCK_TIMEOUT}'"))
        conn.execute(text("SET statement_timeout = 0"))
        try:
            yield conn
        finally:
            # The settings must not go back to a pool that others use.
            conn.invalidate()


@contextmanager
def _only_one(conn: Connection, schema: str, wait: float, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the advisory lock of this schema; it goes with the session, however that ends."""
    key = {"class": _LOCK_CLASS, "schema": crc32(schema.encode()) - (1 << 31)}
    give_up = time.monotonic() + wait
    waited = False
    while not conn.execute(text("SELECT pg_try_advisory_lock(:class, :schema)"), key).scalar_one():
        if not waited:
            on_wait()
            waited = True
        if time.monotonic() > give_up:
            raise MigrationError(
                f"another migration of schema {schema!r} has been running for {wait:.0f} s; see pg_locks (advisory)"
            )
        time.sleep(_LOCK_POLL_SECONDS)
    yield


@contextmanager
def _explained(schema: str) -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        if sqlstate_of(error) == "42501":
            raise MigrationError(
                f"this role may not change schema {schema!r} ({str(error.orig).splitlines()[0]}): migrate as the owner "
                "of the tables, or as a member of the role that owns them"
            ) from error
        raise
