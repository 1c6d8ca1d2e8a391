"""Statements with CONCURRENTLY: they keep nobody from reading or writing, so they may wait for as long as it takes.

What they wait for is every transaction that is older than they are, a ``pg_dump`` say. The bound on waits for locks
is there for statements behind which the traffic would queue; here it would only throw a build away, to begin anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op
from sqlalchemy import Connection, TextClause, text

from curfew_store.schema import quoted

__all__ = ["build_index", "drop_index", "literal"]


def literal(sql: str) -> TextClause:
    """*sql* with nothing in it taken for a parameter."""
    return text(sql.replace(":", "\\:"))


def build_index(statement: str, schema: str, name: str) -> None:
    """Run the *statement* that builds the index *name*, and tell before what it may wait for; only online."""
    op.get_context().opts["curfew_tell"](
        f"building {schema}.{name} beside the traffic; transactions that are older have to end first "
        "(pg_stat_activity shows them)"
    )
    _run(statement)


def drop_index(schema: str, name: str) -> None:
    """Drop an index that a failed build has left behind; only online."""
    _run(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(schema, name)}")


def _run(statement: str) -> None:
    with _unbounded(op.get_bind()):
        op.execute(literal(statement))


@contextmanager
def _unbounded(conn: Connection) -> Iterator[None]:
    """No lock_timeout in this block, and afterwards the one from before."""
    both = "SELECT current_setting('lock_timeout'), set_config('lock_timeout', '0', false)"
    bound, _ = conn.execute(text(both)).one()
    try:
        yield
    finally:
        if not conn.invalidated:
            conn.execute(text("SELECT set_config('lock_timeout', :bound, false)"), {"bound": bound})
