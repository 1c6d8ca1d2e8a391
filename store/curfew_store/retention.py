"""Deleting what is old: runs that have ended, their idempotency keys, and keys that point to no run.

A run has ended with the moment of its completion, else of its time-out, else of its cancel. A run that is none of
these is never deleted, however old it is and whether or not it has a deadline; nor is a cancelled one whose moment
somebody else left out. With a run go its keys: the same key starts another run from then on.

`purge` is a service's own call, by moment and limit, and looks through the table from its start each time. The daemon
goes through a table of any size by `purge_ended_runs` and `purge_orphaned_keys`, a range of its pages per statement:

- A whole walk over 1,000,000 records (15,151 pages) with nothing to delete took 0.13 s in ranges of 512 pages, and
  1.0 s by the primary key, whose order is no order of the table (PostgreSQL 18, all of it in memory). An index on the
  end of a run would find the rows at once and doubles the WAL of every completion: 8.7 MB instead of 4.2 MB for 20,000.
- A row that moves behind the walk is found by the next one. No walk promises to see all.
- Each statement commits by itself, takes only rows that nobody holds, and judges a row again once it holds it: a run
  that was reopened meanwhile stays.
- Each takes an advisory lock of the schema for as long as it runs, and looks at nothing without it. However many
  daemons purge, one statement at a time does.

Longer than other modules, so that everything that deletes stands in one place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    select,
)
from sqlalchemy.types import UserDefinedType

from curfew_store.deadlines import checked_moment, required_timeout
from curfew_store.errors import InvalidValue, WrongType
from curfew_store.execution import PLAINLY
from curfew_store.operations import Operation
from curfew_store.schema import TIMESTAMPTZ, Tables, quoted
from curfew_store.statements import equals

__all__ = [
    "PageRange",
    "PurgedRange",
    "count_old",
    "missing_rights",
    "purge",
    "purge_ended_runs",
    "purge_orphaned_keys",
]

LARGEST_PURGE: Final = 1_000_000


def purge(tables: Tables, before: datetime, *, limit: int) -> Operation[int]:
    """Deletes ended runs with their keys, then keys that point to no record; rows in use are passed over.

    Returns how many rows of both were deleted, *limit* at most, keys of runs not counted. Raises `WrongType` or
    `InvalidValue` for a moment that is naive or out of range, and for a limit that is not from 1 to a million.
    """
    moment = checked_moment("before", before)
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise WrongType("limit", "an int", limit)
    if not 1 <= limit <= LARGEST_PURGE:
        raise InvalidValue("limit", f"must be between 1 and {LARGEST_PURGE:,}, got {limit}")
    runs, orphans = _purge_runs(tables), _purge_orphans(tables)

    def remove(conn: Connection) -> int:
        removed = len(conn.execute(runs, {"moment": moment, "limit": limit}, execution_options=PLAINLY).all())
        if removed < limit:
            rest = {"moment": moment, "limit": limit - removed}
            removed += len(conn.execute(orphans, rest, execution_options=PLAINLY).all())
        return removed

    return remove


@cache
def _purge_runs(tables: Tables) -> Any:
    ended = _locked(
        select(tables.controls.c.run_id).where(_ended_at(tables.controls) < bindparam("moment", type_=TIMESTAMPTZ)),
        of=tables.controls,
        name="ended",
    )
    gone, their_keys = _with_their_keys(tables, ended)
    return select(gone.c.run_id).add_cte(their_keys)


@cache
def _purge_orphans(tables: Tables) -> Any:
    controls, keys = tables.controls, tables.keys
    orphaned = _locked(
        select(*keys.primary_key).where(
            keys.c.created_at_utc < bindparam("moment", type_=TIMESTAMPTZ),
            ~exists().where(controls.c.run_id == keys.c.run_id),
        ),
        of=keys,
        name="orphaned",
    )
    return delete(keys).where(*_same_key(keys, orphaned)).returning(keys.c.run_id)


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages *first* to *end* of a table, the last not among them; of each partition, if it has some."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class PurgedRange:
    """What one statement deleted: *rows* of its own table, up to its limit, and *keys* that went with runs.

    *pages* is the size of the table. *took_turn* is false where another session was purging: nothing was looked at.
    """

    rows: int
    keys: int
    pages: int
    took_turn: bool


def purge_ended_runs(
    conn: Connection, tables: Tables, pages: PageRange, *, older_than: timedelta, limit: int
) -> PurgedRange:
    """Deletes up to *limit* runs within *pages* that ended longer ago than *older_than*, with their keys."""
    return _purged(conn, _ended_runs_statement(tables), tables, pages, older_than, limit)


def purge_orphaned_keys(
    conn: Connection, tables: Tables, pages: PageRange, *, older_than: timedelta, limit: int
) -> PurgedRange:
    """Deletes up to *limit* keys within *pages* that were registered longer ago and point to no record."""
    return _purged(conn, _orphaned_keys_statement(tables), tables, pages, older_than, limit)


def _purged(
    conn: Connection, statement: Any, tables: Tables, pages: PageRange, older_than: timedelta, limit: int
) -> PurgedRange:
    parameters = {
        "turn": turn_key(tables.schema),
        "seconds": required_timeout(older_than),
        "first": f"({pages.first},0)",
        "end": f"({pages.end},0)",
        "limit": limit,
    }
    return PurgedRange(*conn.execute(statement, parameters).one())


def turn_key(schema: str) -> int:
    """The advisory lock that a statement of the purge holds; two keys of 32 bits, as `migrate` has, never equal it."""
    return int.from_bytes(hashlib.sha256(f"curfewd purge {schema}".encode()).digest()[:8], "big", signed=True)


@cache
def _ended_runs_statement(tables: Tables) -> Any:
    turn, run = _turn(), tables.controls.alias("old")
    found = select(run.c.run_id).where(*_within(turn), _ended_at(run) < _moment(turn))
    gone, their_keys = _with_their_keys(tables, _locked(found, of=run, name="ended"))
    return select(_count(gone), _count(their_keys), _size(tables.schema, tables.controls.name), _mine(turn))


@cache
def _orphaned_keys_statement(tables: Tables) -> Any:
    turn, key = _turn(), tables.keys.alias("old")
    found = select(*(key.c[column.name] for column in tables.keys.primary_key)).where(
        *_within(turn), key.c.created_at_utc < _moment(turn), _has_no_record(tables, key)
    )
    orphaned = _locked(found, of=key, name="orphaned")
    gone = delete(tables.keys).where(*_same_key(tables.keys, orphaned)).returning(tables.keys.c.run_id).cte("gone")
    none: ColumnElement[int] = literal_column("0")
    return select(_count(gone), none, _size(tables.schema, tables.keys.name), _mine(turn))


def count_old(conn: Connection, tables: Tables, *, older_than: timedelta) -> tuple[int, int]:
    """How many ended runs, and how many orphaned keys, a purge would find; reads both tables once and locks nothing."""
    seconds = {"seconds": required_timeout(older_than)}
    run, key = tables.controls.alias("run"), tables.keys.alias("key")
    moment = _ago()
    runs = conn.execute(select(func.count()).select_from(run).where(_ended_at(run) < moment), seconds).scalar_one()
    orphaned = ~exists().where(tables.controls.c.run_id == key.c.run_id)
    found = select(func.count()).select_from(key).where(key.c.created_at_utc < moment, orphaned)
    return runs, conn.execute(found, seconds).scalar_one()


def missing_rights(conn: Connection, tables: Tables) -> list[str]:
    """What this role lacks for purging, as the GRANT that would give it; empty if nothing.

    To name the place of a row takes SELECT on its whole table, to lock it UPDATE on some column, whichever.
    """
    privilege = func.pg_catalog
    wanted = []
    for table in (tables.controls, tables.keys):
        name = quoted(tables.schema, table.name)
        wanted += [
            (privilege.has_table_privilege(name, "SELECT"), f"SELECT ON {name}"),
            (privilege.has_any_column_privilege(name, "UPDATE"), f"UPDATE (created_at_utc) ON {name}"),
            (privilege.has_table_privilege(name, "DELETE"), f"DELETE ON {name}"),
        ]
    held = conn.execute(select(*(has for has, _ in wanted))).one()
    return [grant for has, (_, grant) in zip(held, wanted, strict=True) if not has]


# The parts of the statements.


class _Tid(UserDefinedType[str]):
    """PostgreSQL's type of a row's place: page and number within the page."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


def _ended_at(controls: Any) -> ColumnElement[Any]:
    """When a run ended; NULL for one that has not."""
    cancelled_at = case((controls.c.cancel_requested, controls.c.cancel_requested_at_utc))
    return func.coalesce(controls.c.completed_at_utc, controls.c.timed_out_at_utc, cancelled_at)


def _ago() -> ColumnElement[Any]:
    zero: ColumnElement[int] = literal_column("0")
    age = func.make_interval(zero, zero, zero, zero, zero, zero, bindparam("seconds", type_=Double))
    return func.statement_timestamp(type_=TIMESTAMPTZ) - age


def _turn() -> Any:
    """Whether it is this session's turn, and the moment before which things are old: each asked once a statement."""
    mine = func.pg_try_advisory_xact_lock(bindparam("turn", type_=BigInteger)).label("mine")
    return select(mine, _ago().label("moment")).cte("turn").prefix_with("MATERIALIZED", dialect="postgresql")


def _mine(turn: Any) -> ColumnElement[bool]:
    return select(turn.c.mine).scalar_subquery()


def _moment(turn: Any) -> ColumnElement[Any]:
    return select(turn.c.moment).scalar_subquery()


def _within(turn: Any) -> tuple[ColumnElement[bool], ...]:
    """A table called ``old`` within the pages: a scan of this range and nothing else (from PostgreSQL 14 on)."""
    place: ColumnElement[str] = literal_column("old.ctid")
    first, end = (cast(bindparam(name, type_=Text), _Tid) for name in ("first", "end"))
    return _mine(turn), place >= first, place < end


def _has_no_record(tables: Tables, key: Any) -> ColumnElement[bool]:
    """By a look-up for each key: NOT EXISTS would let the planner read the whole of the other table for a few."""
    record = tables.controls.alias("record")
    return select(record.c.run_id).where(record.c.run_id == key.c.run_id).scalar_subquery().is_(None)


def _locked(found: Any, *, of: Any, name: str) -> Any:
    """Up to ``:limit`` of the rows *found*, held until the end of the statement; those of others are passed over."""
    locked = found.limit(bindparam("limit", type_=Integer)).with_for_update(skip_locked=True, of=of)
    return locked.cte(name).prefix_with("MATERIALIZED", dialect="postgresql")


def _with_their_keys(tables: Tables, ended: Any) -> tuple[Any, Any]:
    """Deletes the runs and their keys, each found by its index: the ids come as an array and not by a join."""
    controls, keys = tables.controls, tables.keys
    gone = delete(controls).where(controls.c.run_id == any_(_ids(ended))).returning(controls.c.run_id).cte("gone")
    their_keys = delete(keys).where(keys.c.run_id == any_(_ids(gone))).returning(keys.c.run_id).cte("their_keys")
    return gone, their_keys


def _ids(cte: Any) -> Any:
    return func.array(select(cte.c.run_id).scalar_subquery(), type_=ARRAY(Uuid()))


def _same_key(keys: Any, found: Any) -> Sequence[Any]:
    return [equals(keys.c[column.name], found.c[column.name]) for column in keys.primary_key]


def _count(cte: Any) -> ColumnElement[int]:
    return select(func.count()).select_from(cte).scalar_subquery()


def _size(schema: str, name: str) -> ColumnElement[int]:
    """The pages of a table, or of its largest partition."""
    table: ColumnElement[Any] = cast(bindparam(None, quoted(schema, name), type_=Text), _Regclass)
    tree = func.pg_partition_tree(table).table_valued("relid")  # no rows for a table without partitions
    in_tree = select(func.max(func.pg_relation_size(tree.c.relid, type_=BigInteger))).scalar_subquery()
    page = cast(func.pg_catalog.current_setting(literal_column("'block_size'")), BigInteger)
    return func.greatest(in_tree, func.pg_relation_size(table), type_=BigInteger) // page


class _Regclass(UserDefinedType[str]):
    """PostgreSQL's type of a table's name."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "regclass"
