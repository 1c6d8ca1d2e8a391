"""The tables of FlowOrchestrator, made or adopted, and what curfewd adds to them.

An adopted table is neither rewritten nor locked for long: a column with a stable default is a change of
the catalogue only, and the index is built beside the traffic.
"""

from __future__ import annotations

from curfew_store.migrations import steps
from curfew_store.schema import ARMED_INDEX, CONTROLS, KEYS, KEYS_RUN_ID_INDEX

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = "timestamp with time zone"

_CONTROLS: steps.Columns = {
    "run_id": ("uuid", True),
    "flow_id": ("uuid", True),
    "trigger_key": ("character varying(256)", True),
    "idempotency_key": ("character varying(256)", False),
    "timeout_at_utc": (_TIME, False),
    "cancel_requested": ("boolean", True),
    "cancel_reason": ("text", False),
    "cancel_requested_at_utc": (_TIME, False),
    "timed_out_at_utc": (_TIME, False),
}

_KEYS: steps.Columns = {
    "flow_id": ("uuid", True),
    "trigger_key": ("character varying(256)", True),
    "idempotency_key": ("character varying(256)", True),
    "run_id": ("uuid", True),
    "created_at_utc": (_TIME, True),
}


def upgrade() -> None:
    """Makes what is missing and leaves alone what is there."""
    schema = steps.schema_name()
    controls, keys = steps.quoted(schema, CONTROLS), steps.quoted(schema, KEYS)
    steps.refuse_other_shape(schema, CONTROLS, _CONTROLS, ("run_id",))
    steps.refuse_other_shape(schema, KEYS, _KEYS, ("flow_id", "trigger_key", "idempotency_key"))

    steps.execute(
        f"CREATE TABLE IF NOT EXISTS {controls} ("
        "run_id uuid PRIMARY KEY, "
        "flow_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000', "
        "trigger_key varchar(256) NOT NULL DEFAULT '', "
        "idempotency_key varchar(256), "
        "timeout_at_utc timestamptz, "
        "cancel_requested boolean NOT NULL DEFAULT false, "
        "cancel_reason text, "
        "cancel_requested_at_utc timestamptz, "
        "timed_out_at_utc timestamptz)"
    )
    steps.execute(
        f"CREATE TABLE IF NOT EXISTS {keys} ("
        "flow_id uuid NOT NULL, "
        "trigger_key varchar(256) NOT NULL, "
        "idempotency_key varchar(256) NOT NULL, "
        "run_id uuid NOT NULL, "
        "created_at_utc timestamptz NOT NULL DEFAULT now(), "
        "PRIMARY KEY (flow_id, trigger_key, idempotency_key))"
    )
    steps.add_column(schema, CONTROLS, "created_at_utc", "timestamptz NOT NULL DEFAULT now()")
    steps.add_column(schema, CONTROLS, "completed_at_utc", "timestamptz")
    steps.create_index(schema, KEYS, KEYS_RUN_ID_INDEX, "run_id")
    steps.create_index(
        schema,
        CONTROLS,
        ARMED_INDEX,
        "timeout_at_utc, run_id",
        where="timed_out_at_utc IS NULL AND completed_at_utc IS NULL AND NOT cancel_requested "
        "AND timeout_at_utc IS NOT NULL",
    )
