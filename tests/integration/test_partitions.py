"""Tables that an operator has partitioned by hash: migration, plans, claims, keys."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import claim_overdue, look_ahead
from curfew_store.errors import MigrationError
from curfew_store.inspection import claim_uses_index
from curfew_store.migrate import upgrade
from curfew_store.records import RunConfiguration
from curfew_store.schema import ARMED_INDEX, KEYS_RUN_ID_INDEX, tables_in
from curfew_store.testing import DatabaseTemplate
from tests.integration.partitioned import PARTITIONS, partition, partition_and_migrate
from tests.integration.sessions import together
from tests.integration.test_claim_plan import STATES, explained, nodes_of, statements

TABLES = tables_in("public")
FLOW = uuid.UUID("6f0c5c5e-0000-4000-8000-000000000001")
_INDEXES = """
SELECT parent.relname, x.indisvalid, (SELECT count(*) FROM pg_inherits i JOIN pg_index child
    ON child.indexrelid = i.inhrelid AND child.indisvalid WHERE i.inhparent = parent.oid)
FROM pg_class parent JOIN pg_index x ON x.indexrelid = parent.oid
WHERE parent.relname IN (%(armed)s, %(keys)s) ORDER BY 1
"""


@pytest.fixture
def empty(curfew_database: DatabaseTemplate) -> Iterator[Engine]:
    """An empty database; its sessions are in autocommit."""
    name = curfew_database.create(empty=True)
    url = curfew_database.server.sqlalchemy_url(name)
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()
    curfew_database.drop(name)


@pytest.fixture(scope="module")
def conn(curfew_database: DatabaseTemplate) -> Iterator[Connection]:
    """A session on partitioned and migrated tables whose statistics only a test gathers."""
    name = curfew_database.create(empty=True)
    engine = create_engine(curfew_database.server.sqlalchemy_url(name), isolation_level="AUTOCOMMIT")
    partition_and_migrate(engine)
    with engine.connect() as session:
        for number in range(PARTITIONS):
            session.exec_driver_sql(f"ALTER TABLE flow_run_controls_{number} SET (autovacuum_enabled = false)")
        yield session
    engine.dispose()
    curfew_database.drop(name)


@pytest.fixture
def store(conn: Connection) -> Iterator[FlowRunControlStore]:
    """A store on the same tables, which are empty."""
    conn.exec_driver_sql("TRUNCATE flow_run_controls, flow_idempotency_keys")
    engine = create_engine(conn.engine.url, pool_size=16)
    yield FlowRunControlStore(engine)
    engine.dispose()


def indexes(engine: Engine) -> list[tuple[str, bool, int]]:
    """Our two indexes: whether the parent's is valid, and how many partitions have a valid one attached to it."""
    with engine.connect() as conn:
        names = {"armed": ARMED_INDEX, "keys": KEYS_RUN_ID_INDEX}
        return [tuple(row) for row in conn.exec_driver_sql(_INDEXES, names)]


HARDEST = (
    "empty",
    "due, never analysed",
    "mixed, never analysed",
    "due, analysed when nothing was",
    "nothing due, analysed when all were",
)
"""Of the states of a table those in which a plan goes wrong most easily."""
COMPLETE = [(KEYS_RUN_ID_INDEX, True, PARTITIONS), (ARMED_INDEX, True, PARTITIONS)]


# Migration


@pytest.mark.contract("T-9")
def test_migrate_adopts_partitioned_tables(empty: Engine) -> None:
    """Each partition gets its index and the parent's is valid; once more changes nothing."""
    partition_and_migrate(empty)
    assert indexes(empty) == COMPLETE
    before, after = upgrade(empty)
    assert before == after
    assert indexes(empty) == COMPLETE


def test_a_migration_killed_between_two_partitions_goes_on_where_it_stopped(empty: Engine) -> None:
    """One partition done, one with an invalid index, the others untouched."""
    partition_and_migrate(empty)
    with empty.connect() as conn:
        conn.exec_driver_sql("UPDATE curfew_schema_version SET version_num = '0000'")
        name, attached = conn.exec_driver_sql(
            f"SELECT pg_get_indexdef(inhrelid) FROM pg_inherits WHERE inhparent = '{ARMED_INDEX}'::regclass LIMIT 2"
        ).scalars()
        done = name.split()[2]
        conn.exec_driver_sql(f"DROP INDEX {ARMED_INDEX}")
        where = name.split(" USING btree ")[1]
        conn.exec_driver_sql(f"CREATE INDEX {ARMED_INDEX} ON ONLY flow_run_controls {where}")
        conn.exec_driver_sql(f"CREATE INDEX {done} ON {name.split()[4]} {where}")
        conn.exec_driver_sql(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{done}'::regclass")
        conn.exec_driver_sql(attached)
        conn.exec_driver_sql(f"ALTER INDEX {ARMED_INDEX} ATTACH PARTITION {attached.split()[2]}")
        conn.exec_driver_sql("DELETE FROM curfew_schema_version")
    assert indexes(empty) == [COMPLETE[0], (ARMED_INDEX, False, 1)]
    upgrade(empty)
    assert indexes(empty) == COMPLETE


@pytest.mark.contract("T-9")
def test_partitions_of_partitions_are_refused(empty: Engine) -> None:
    """The message says what may be done instead."""
    with empty.connect() as conn:
        partition(conn)
        conn.exec_driver_sql("DROP TABLE flow_run_controls_0")
        conn.exec_driver_sql(
            "CREATE TABLE flow_run_controls_0 PARTITION OF flow_run_controls "
            "FOR VALUES WITH (MODULUS 8, REMAINDER 0) PARTITION BY HASH (run_id)"
        )
    with pytest.raises(MigrationError, match="may be partitioned once"):
        upgrade(empty)


def test_a_partition_that_is_made_anew_has_its_index_and_the_check_sees_it(empty: Engine) -> None:
    """PostgreSQL makes it with the partition, under a name of its own."""
    partition_and_migrate(empty)
    with empty.connect() as conn:
        conn.exec_driver_sql("DROP TABLE flow_run_controls_3")
        conn.exec_driver_sql(
            'CREATE TABLE "Third" PARTITION OF flow_run_controls FOR VALUES WITH (MODULUS 8, REMAINDER 3)'
        )
    assert indexes(empty) == COMPLETE
    with empty.connect().execution_options(isolation_level="READ COMMITTED") as conn, conn.begin():
        used, plan = claim_uses_index(conn, TABLES)
    assert used, plan
    with empty.connect() as conn:
        conn.exec_driver_sql(f"DROP INDEX {ARMED_INDEX}")
    with empty.connect().execution_options(isolation_level="READ COMMITTED") as conn, conn.begin():
        assert not claim_uses_index(conn, TABLES)[0]


# Plans


@pytest.mark.contract("E-4")
@pytest.mark.parametrize("state", HARDEST)
def test_the_plan_merges_the_armed_indexes_of_all_partitions(conn: Connection, state: str) -> None:
    """In order, without a sort, and nothing is read as a whole, whatever the statistics say.

    Partitions of some thousand rows: in smaller ones reading all is as cheap as looking up the ids of a batch.
    """
    conn.exec_driver_sql("TRUNCATE flow_run_controls")
    conn.exec_driver_sql(
        "DELETE FROM pg_statistic WHERE starelid IN (SELECT relid FROM pg_partition_tree('flow_run_controls'))"
    )
    for statement in STATES[state]:
        conn.exec_driver_sql(statement.format(rows=40_000).replace("%", "%%"))
    armed = set(
        conn.exec_driver_sql(
            f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{ARMED_INDEX}'::regclass"
        ).scalars()
    )
    for what, (statement, parameters) in statements().items():
        nodes = list(nodes_of(explained(conn, statement, parameters)))
        assert armed <= {node.get("Index Name") for node in nodes}, (what, nodes)
        kinds = [node["Node Type"] for node in nodes]
        assert "Merge Append" in kinds, (what, kinds)
        assert not {"Sort", "Incremental Sort"} & set(kinds), (what, kinds)
        assert state == "empty" or "Seq Scan" not in kinds, (what, kinds)


# What the tables promise


@pytest.mark.contract("T-9")
def test_a_claim_takes_the_earliest_of_all_partitions(store: FlowRunControlStore, conn: Connection) -> None:
    """In the order of their deadlines, up to the limit, and behind a cursor the next."""
    begin = datetime.now(UTC) - timedelta(hours=1)
    runs = {uuid.uuid4(): begin + timedelta(seconds=n) for n in range(100)}
    store.configure_runs([RunConfiguration(run, FLOW, "t", timeout_at_utc=at) for run, at in runs.items()])
    first = claim_overdue(conn, TABLES, limit=30)
    assert [run.run_id for run in first] == list(runs)[:30]
    second = claim_overdue(conn, TABLES, limit=100, after=first[-1])
    assert [run.run_id for run in second] == list(runs)[30:]
    assert look_ahead(conn, TABLES).earliest_overdue is None


def test_claims_at_once_mark_every_run_once(store: FlowRunControlStore, conn: Connection) -> None:
    """Four sessions, 2,000 due runs, eight partitions: nobody waits and nobody takes what another has."""
    past = datetime.now(UTC) - timedelta(minutes=1)
    store.configure_runs([RunConfiguration(uuid.uuid4(), FLOW, "t", timeout_at_utc=past) for _ in range(2_000)])
    engine = create_engine(conn.engine.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def drain() -> list[uuid.UUID]:
        with engine.connect() as session:
            marked: list[uuid.UUID] = []
            while batch := claim_overdue(session, TABLES, limit=50):
                marked += [run.run_id for run in batch]
            return marked

    marked = [run for each in together([drain] * 4) for run in each]
    assert len(marked) == len(set(marked)) == 2_000


@pytest.mark.contract("T-9")
def test_one_of_many_registers_a_key(store: FlowRunControlStore) -> None:
    """A key is unique over all partitions, in calls of its own and with the start of a run."""
    runs = [uuid.uuid4() for _ in range(8)]
    won = together([partial(store.try_register_idempotency_key, FLOW, "t", "key", run) for run in runs])
    assert won.count(True) == 1
    assert store.find_run_id_by_idempotency_key(FLOW, "t", "key") == runs[won.index(True)]
    started = together([lambda: store.start_run(FLOW, "t", "other", timeout=timedelta(hours=1))] * 8)
    assert len({each.run_id for each in started}) == 1
    assert [each.duplicate for each in started].count(False) == 1
