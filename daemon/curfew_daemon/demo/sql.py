"""Every SQL statement of the demo: its audit trigger, and what it reads back from it.

The trigger belongs to the demo alone. A product's database has none, since it would slow every mark and could
stop one; here it is the independent witness against which the daemon is judged.
"""

from __future__ import annotations

from typing import Final

from psycopg.sql import Identifier

__all__ = ["DEMO_SCHEMA_COMMENT", "DEMO_SCHEMA_PREFIX", "Statements"]

DEMO_SCHEMA_PREFIX: Final = "curfew_demo_"
DEMO_SCHEMA_COMMENT: Final = "made by `curfewd demo`, which drops it when it ends"

SERVER: Final = """
    SELECT current_setting('server_version'), current_setting('track_commit_timestamp') = 'on',
           current_database()
"""

GIVE_UP_ON_LOCKS: Final = "SET lock_timeout = '10s'"

# The lock tells a schema in use from one whose demo was killed. The comment and the pattern together make
# sure that a schema of somebody else is never dropped.
OWN_SCHEMA: Final = "SELECT pg_try_advisory_lock(1668641382, hashtext(:schema))"
LEFT_BEHIND: Final = """
    SELECT nspname FROM pg_namespace
    WHERE nspname ~ '^curfew_demo_[0-9a-f]{8}$' AND obj_description(oid, 'pg_namespace') = :comment
          AND pg_has_role(nspowner, 'USAGE')
"""

_AUDIT = """
CREATE TABLE SCHEMA.curfew_demo_audit (
    -- Numbered under the row lock of the run, so the order within a run is the order of its changes.
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    statement_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    inserted boolean NOT NULL,
    old_deadline timestamptz, old_timed_out_at timestamptz, old_completed boolean, old_cancelled boolean,
    new_deadline timestamptz, new_timed_out_at timestamptz, new_completed boolean, new_cancelled boolean
);

CREATE FUNCTION SCHEMA.curfew_demo_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO SCHEMA.curfew_demo_audit (
        run_id, flow_id, inserted,
        old_deadline, old_timed_out_at, old_completed, old_cancelled,
        new_deadline, new_timed_out_at, new_completed, new_cancelled
    ) VALUES (
        NEW.run_id, NEW.flow_id, TG_OP = 'INSERT',
        OLD.timeout_at_utc, OLD.timed_out_at_utc, OLD.completed_at_utc IS NOT NULL, OLD.cancel_requested,
        NEW.timeout_at_utc, NEW.timed_out_at_utc, NEW.completed_at_utc IS NOT NULL, NEW.cancel_requested
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER curfew_demo_audit AFTER INSERT OR UPDATE ON SCHEMA.flow_run_controls
    FOR EACH ROW EXECUTE FUNCTION SCHEMA.curfew_demo_audit();
"""

# Taking the rows away keeps the table small for ever. The snapshot of one statement holds whole transactions
# and, run by run, a prefix of the changes, so what is committed later is simply seen later.
_TAKE = """
DELETE FROM SCHEMA.curfew_demo_audit
RETURNING id, run_id, flow_id, transaction::text::bigint, statement_at, COMMITTED_AT, inserted,
          old_deadline, old_timed_out_at, old_completed, old_cancelled,
          new_deadline, new_timed_out_at, new_completed, new_cancelled
"""

# In the words of the contract, and on purpose not with the expressions that the daemon marks with.
_UNLATCHED = "timed_out_at_utc IS NULL AND completed_at_utc IS NULL AND NOT cancel_requested"

_OUTLOOK = """
SELECT count(*) FILTER (WHERE timeout_at_utc > now()),
       count(*) FILTER (WHERE timeout_at_utc <= now()),
       CAST(extract(epoch FROM min(timeout_at_utc) FILTER (WHERE timeout_at_utc > now()) - now()) AS float8),
       now()
FROM SCHEMA.flow_run_controls WHERE UNLATCHED
"""

_OVERDUE = """
SELECT run_id, CAST(extract(epoch FROM now() - timeout_at_utc) AS float8)
FROM SCHEMA.flow_run_controls WHERE UNLATCHED AND timeout_at_utc <= now()
ORDER BY timeout_at_utc
"""


class Statements:
    """The statements for one schema. *commit_times* says whether the server keeps the time of each commit."""

    def __init__(self, schema: str, *, commit_times: bool) -> None:
        quoted = Identifier(schema).as_string(None)
        self.create_schema = (
            f"CREATE SCHEMA {quoted}",
            f"COMMENT ON SCHEMA {quoted} IS '{DEMO_SCHEMA_COMMENT}'",
        )
        self.drop_schema = f"DROP SCHEMA IF EXISTS {quoted} CASCADE"
        self.install_audit = _AUDIT.replace("SCHEMA", quoted)
        committed_at = "pg_xact_commit_timestamp(transaction::xid)" if commit_times else "NULL::timestamptz"
        self.take_audit = _TAKE.replace("SCHEMA", quoted).replace("COMMITTED_AT", committed_at)
        self.outlook = _OUTLOOK.replace("SCHEMA", quoted).replace("UNLATCHED", _UNLATCHED)
        self.overdue = _OVERDUE.replace("SCHEMA", quoted).replace("UNLATCHED", _UNLATCHED)
