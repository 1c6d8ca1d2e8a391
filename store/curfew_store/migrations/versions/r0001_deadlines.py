"""The tables of FlowOrchestrator, made or adopted, and what curfewd adds to them.

An adopted table is neither rewritten nor locked for long: a column with a stable default is a change of
the catalogue only, and the index is built beside the traffic.
"""

from __future__ import annotations

from curfew_store.migrations import steps
from curfew_store.schema import ARMED_INDEX, CONTROLS, KEYS, KEYS_RUN_ID_INDEX, VERSION_TABLE

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = "timestamp with time zone"
_KEY = "character varying(256)"

_CONTROLS: steps.Columns = {
    "run_id": ("uuid", True, False),
    "flow_id": ("uuid", True, True),
    "trigger_key": (_KEY, True, True),
    "idempotency_key": (_KEY, False, False),
    "timeout_at_utc": (_TIME, False, False),
    "cancel_requested": ("boolean", True, True),
    "cancel_reason": ("text", False, False),
    "cancel_requested_at_utc": (_TIME, False, False),
    "timed_out_at_utc": (_TIME, False, False),
}

_ADDED: steps.Columns = {"created_at_utc": (_TIME, True, True), "completed_at_utc": (_TIME, False, False)}

_KEYS: steps.Columns = {
    "flow_id": ("uuid", True, False),
    "trigger_key": (_KEY, True, False),
    "idempotency_key": (_KEY, True, False),
    "run_id": ("uuid", True, False),
    "created_at_utc": (_TIME, True, True),
}

_INDEXES = (
    steps.Index(KEYS_RUN_ID_INDEX, KEYS, "run_id"),
    steps.Index(
        ARMED_INDEX,
        CONTROLS,
        "timeout_at_utc, run_id",
        "timed_out_at_utc IS NULL AND completed_at_utc IS NULL AND NOT cancel_requested AND timeout_at_utc IS NOT NULL",
    ),
)


def refuse(schema: str) -> None:
    """Raises `MigrationError` for tables of these names that are not upstream's, before anything is changed."""
    steps.refuse_other_shape(schema, CONTROLS, _CONTROLS, ("run_id",), _ADDED)
    steps.refuse_other_shape(schema, KEYS, _KEYS, ("flow_id", "trigger_key", "idempotency_key"), {})


def upgrade() -> None:
    """Makes what is missing and leaves alone what is there."""
    schema = steps.schema_name()
    steps.create_table(
        schema,
        CONTROLS,
        "run_id uuid PRIMARY KEY, "
        "flow_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000', "
        "trigger_key varchar(256) NOT NULL DEFAULT '', "
        "idempotency_key varchar(256), "
        "timeout_at_utc timestamptz, "
        "cancel_requested boolean NOT NULL DEFAULT false, "
        "cancel_reason text, "
        "cancel_requested_at_utc timestamptz, "
        "timed_out_at_utc timestamptz",
    )
    steps.create_table(
        schema,
        KEYS,
        "flow_id uuid NOT NULL, "
        "trigger_key varchar(256) NOT NULL, "
        "idempotency_key varchar(256) NOT NULL, "
        "run_id uuid NOT NULL, "
        "created_at_utc timestamptz NOT NULL DEFAULT now(), "
        "PRIMARY KEY (flow_id, trigger_key, idempotency_key)",
    )
    steps.add_column(schema, CONTROLS, "created_at_utc", "timestamptz NOT NULL DEFAULT now()")
    steps.add_column(schema, CONTROLS, "completed_at_utc", "timestamptz")
    for table in (KEYS, VERSION_TABLE):
        steps.share_owner(schema, table, like=CONTROLS)
    for index in _INDEXES:
        steps.create_index(schema, index)


def missing(schema: str) -> list[str]:
    """What of this revision is not there, or not as it should be, whatever version is recorded."""
    tables = [table for table in (CONTROLS, KEYS) if not steps.exists(schema, table)]
    return [
        *tables,
        *(f"{CONTROLS}.{name}" for name in steps.missing_columns(schema, CONTROLS, _ADDED) if CONTROLS not in tables),
        *(index.name for index in _INDEXES if index.table not in tables and steps.lacks_index(schema, index)),
    ]
