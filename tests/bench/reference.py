"""The reference: a bare loop of psycopg that claims, looks up the next deadline and sleeps.

No metrics, no logs, no health, no recovery: what the least possible enforcer does. The daemon is measured beside
it in the same run. The statements are the daemon's own, so that what is compared is everything around them.

    python -m tests.bench.reference CONNINFO [--batch 500] [--poll 1.0]
"""

from __future__ import annotations

import argparse
import signal
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy.dialects.postgresql import psycopg as dialect

from curfew_store import enforcement
from curfew_store.schema import tables_in


def statements() -> tuple[str, str, str, dict[str, Any]]:
    """The claim from the start, the claim behind a cursor, the look ahead, and the constants among their parameters."""
    tables = tables_in("public")
    compiled = [
        statement.compile(dialect=dialect.dialect())  # type: ignore[no-untyped-call]
        for statement in (
            enforcement.claim_statement(tables, continued=False),
            enforcement.claim_statement(tables, continued=True),
            enforcement.look_ahead_statement(tables),
        )
    ]
    first, behind, ahead = (str(each) for each in compiled)
    constants = {name: value for name, value in compiled[1].params.items() if value is not None}
    return first, behind, ahead, constants


def loop(conninfo: str, batch: int, poll: float, announce: bool = False) -> None:
    """Enforce until killed; with *announce* it writes a line when it is connected."""
    first, behind, ahead, constants = statements()
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, row_factory=tuple_row) as conn:
        if announce:
            print("connected", flush=True)
        while True:
            cursor: dict[str, Any] | None = None
            passes = 0
            while True:
                parameters = {**constants, "limit": batch, **(cursor or {})}
                rows = conn.execute(behind if cursor else first, parameters).fetchall()
                passes += 1
                if len(rows) < batch:
                    if passes == 1:
                        break
                    cursor, passes = None, 0
                    continue
                last = max((row[0], row[1]) for row in rows)
                cursor = {"after_deadline": datetime.fromtimestamp(last[0], UTC), "after_run_id": last[1]}
            asked = time.monotonic()
            row = conn.execute(ahead).fetchone()
            assert row is not None
            if row[2] is None:  # nothing is overdue
                wait = poll if row[0] is None else min(poll, row[0])
                time.sleep(max(0.0, asked + wait - time.monotonic()))


def main() -> None:
    """Run the loop from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conninfo")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--poll", type=float, default=1.0)
    parser.add_argument("--announce", action="store_true", help="write a line once connected")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    loop(arguments.conninfo, arguments.batch, arguments.poll, arguments.announce)


if __name__ == "__main__":
    main()
