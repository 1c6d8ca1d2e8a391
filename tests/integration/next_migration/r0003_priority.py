"""What the next release may change: a column with a default, and an index built beside the traffic.

No release has this revision. It follows the rules of the real ones: additive, online, repeatable, and fit for
daemons and producers of the release before, so that ``minimum_client`` stays as it is.
"""

from __future__ import annotations

from curfew_store.migrations import steps
from curfew_store.schema import CONTROLS

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEX = steps.Index("ix_flow_run_controls_priority", CONTROLS, "priority")


def refuse(schema: str) -> None:
    """Nothing to refuse: the columns are new."""


def upgrade() -> None:
    """Adds the column and the index where they are missing."""
    schema = steps.schema_name()
    steps.add_column(schema, CONTROLS, "priority", "smallint NOT NULL DEFAULT 0")
    steps.create_index(schema, _INDEX)


def missing(schema: str) -> list[str]:
    """The column, or else the index, where it is not there."""
    columns = steps.missing_columns(schema, CONTROLS, ["priority"])
    return columns or [_INDEX.name] * steps.lacks_index(schema, _INDEX)
