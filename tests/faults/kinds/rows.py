"""Faults of what is in the tables: stale statistics, poison, a flood, and a schema that is not there."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

from curfew_store.enforcement import _claim_text
from curfew_store.schema import tables_in
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, Strike, Violation, now
from tests.faults.producers import FLOW
from tests.faults.spare import armed_runs

__all__ = ["KINDS"]

_FLOOD: Final = 4_000
_FORGET: Final = (
    "DELETE FROM pg_statistic WHERE starelid = 'flow_run_controls'::regclass",
    "UPDATE pg_class SET reltuples = 0, relpages = 1 WHERE oid = 'flow_run_controls'::regclass",
)


def stale_statistics(lab: Lab, rng: random.Random) -> Strike:
    """What the planner knows of the table is lost, and a burst falls due: the claim keeps to its index."""
    found: list[Violation] = []
    with lab.admin() as admin:
        began = now()
        for statement in _FORGET:
            admin.execute(statement)
        armed_runs(lab, rng, 1_000, within=0.5)
        claim, constants = _claim_text(tables_in("public"), continued=False, skipping=False)
        plan = "\n".join(str(row[0]) for row in admin.execute(f"EXPLAIN {claim}", constants | {"limit": 500}))
        if "ix_flow_run_controls_armed" not in plan or "Sort" in plan.partition("CTE due")[2].partition("InitPlan")[0]:
            found.append(Violation("I2", f"the claim was planned without its index: {plan[:400]}"))
        lab.pause(rng.uniform(0.5, 1))
        admin.execute("ANALYZE flow_run_controls")
    return Strike("F21", began, now(), "statistics lost before a burst", found=tuple(found))


def poison(lab: Lab, rng: random.Random) -> Strike:
    """Rows that the store would never write, and one whose update raises: the others are met in time."""
    bad, odd = uuid4(), [uuid4(), uuid4(), uuid4()]
    name = f"lab_poison_{rng.getrandbits(32):08x}"
    with lab.admin() as admin:
        began = now()
        for run, deadline, key in zip(
            odd, ("-infinity", "infinity", "0044-03-15 BC"), ("", "\x1b[31m", "é\u202e"), strict=True
        ):
            admin.execute(
                "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc) VALUES (%s, %s, %s, %s)",
                (run, FLOW, key, deadline),
            )
        admin.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF OLD.run_id = '{bad}' THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$;"
            f"CREATE TRIGGER {name} BEFORE UPDATE ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
        admin.execute(
            "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)"
            " VALUES (%s, %s, 'poison', now() - interval '1 minute')",
            (bad, FLOW),
        )
        armed_runs(lab, rng, 30, within=2.0)
        lab.pause(rng.uniform(2.5, 4))
        admin.execute(f"DROP TRIGGER {name} ON flow_run_controls; DROP FUNCTION {name}()")
    return Strike("F33", began, now(), "poison rows", held=frozenset({bad}))


def flood(lab: Lab, rng: random.Random) -> Strike:
    """Thousands of runs with one deadline, among thousands with a later one."""
    with lab.admin() as admin:
        began = now()
        for count, ahead in ((_FLOOD, "1 day"), (_FLOOD, "300 milliseconds")):
            admin.execute(
                "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)"
                " SELECT gen_random_uuid(), %s, 'flood', now() + %s::interval FROM generate_series(1, %s)",
                (FLOW, ahead, count),
            )
        lab.pause(rng.uniform(0.5, 1.5))
    return Strike("F34", began, now(), f"{_FLOOD} equal deadlines")


def missing_schema(lab: Lab, rng: random.Random) -> Strike:
    """A column, a table or the version is gone for a while: the daemons stay, say so, and resume by themselves."""
    away, back = rng.choice(
        (
            (
                "ALTER TABLE flow_run_controls RENAME COLUMN completed_at_utc TO lost",
                "ALTER TABLE flow_run_controls RENAME COLUMN lost TO completed_at_utc",
            ),
            (
                "ALTER TABLE flow_run_controls RENAME TO lost_controls",
                "ALTER TABLE lost_controls RENAME TO flow_run_controls",
            ),
            (
                "ALTER TABLE curfew_schema_version RENAME TO lost_version",
                "ALTER TABLE lost_version RENAME TO curfew_schema_version",
            ),
        )
    )
    with lab.admin() as admin:
        began = now()
        admin.execute(away)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'")
        lab.pause(rng.uniform(0.5, 2))
        admin.execute(back)
    return Strike("F40", began, now(), away, outage=True, lame=everyone(lab))


def mixed(lab: Lab, rng: random.Random) -> Strike:
    """Three to five strikes of other kinds at the same time."""
    strikes: list[Strike] = []
    errors: list[BaseException] = []

    def strike(kind: Kind, seed: int) -> None:
        try:
            strikes.append(kind.strike(lab, random.Random(seed)))
        except BaseException as error:  # noqa: BLE001  (raised below, in the thread that asked)
            errors.append(error)

    picked = rng.sample(_mixable(), rng.randint(3, 5))
    threads = [threading.Thread(target=strike, args=(kind, rng.getrandbits(48))) for kind in picked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return _together(strikes)


def _mixable() -> Sequence[Kind]:
    wanted = {"F1", "F5", "F10", "F12", "F22", "F23"}
    from tests.faults.kinds import KINDS as ALL

    return [kind for kind in ALL if kind.code in wanted and kind.stage == "plain" and kind.name != "rewrite-table"]


def _together(strikes: list[Strike]) -> Strike:
    held: frozenset[UUID] = frozenset().union(*(each.held for each in strikes))
    return Strike(
        "F41",
        min(each.began for each in strikes),
        max(each.ended for each in strikes),
        " + ".join(each.code for each in strikes),
        outage=any(each.outage for each in strikes),
        grace=max(each.grace for each in strikes),
        lame=frozenset().union(*(each.lame for each in strikes)),
        held=held,
        found=tuple(violation for each in strikes for violation in each.found),
    )


KINDS: Final = (
    Kind("F21", "stale-statistics", "statistics gone stale", stale_statistics),
    Kind("F33", "poison", "poison rows", poison, alone=True),
    # By itself: it takes all the processor there is, and what is late meanwhile could not be laid to anything else.
    Kind("F34", "flood", "a great many equal deadlines", flood, alone=True),
    Kind("F40", "missing-schema", "columns, tables or the schema version missing", missing_schema, alone=True),
    Kind("F41", "mixed", "several faults at once", mixed, alone=True, recovery=20.0),
)
