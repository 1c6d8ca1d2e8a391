"""Faults to plant before judgement, so that the judge is seen to find each of them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from curfew_store.enforcement import OVERDUE_REASON

_MARK = (
    "UPDATE flow_run_controls SET timed_out_at_utc = statement_timestamp(), cancel_requested = true,"
    " cancel_requested_at_utc = statement_timestamp(), cancel_reason = :reason"
)
ONE_EXPECTED: Final = "run_id = (SELECT run_id FROM proof.expected ORDER BY run_id LIMIT 1)"
ONE_BYSTANDER: Final = "run_id = (SELECT run_id FROM proof.bystander ORDER BY run_id LIMIT 1)"
_NEW_RUN = (
    "WITH added AS (INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)"
    " VALUES ('ffffffff-0000-7000-8000-000000000001', 'planted', {deadline}) RETURNING run_id, timeout_at_utc)"
    " INSERT INTO proof.expected SELECT * FROM added"
)

PLANTS: Final[dict[str, tuple[str, ...]]] = {
    "twice": (
        f"UPDATE flow_run_controls SET timed_out_at_utc = NULL WHERE {ONE_EXPECTED}",
        f"{_MARK} WHERE {ONE_EXPECTED}",
    ),
    "early": (
        _NEW_RUN.format(deadline="now() + interval '1 hour'"),
        f"{_MARK} WHERE trigger_key = 'planted'",
    ),
    "missed": (_NEW_RUN.format(deadline="now() - interval '1 second'"),),
    "touched": (f"UPDATE flow_run_controls SET trigger_key = trigger_key WHERE {ONE_BYSTANDER}",),
    "wrong": (f"UPDATE flow_run_controls SET cancel_reason = 'another' WHERE {ONE_EXPECTED}",),
}
"""The statements of each fault, by the count of `Verdict` that must show it."""


def plant(conn: Connection, fault: str) -> None:
    """Commit one fault of that kind to a judged database."""
    for statement in PLANTS[fault]:
        named = {"reason": OVERDUE_REASON} if ":reason" in statement else {}
        conn.execute(text(statement), named)
        conn.commit()
