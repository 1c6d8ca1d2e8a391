"""Autovacuum cleans the control table by rows, not by a fifth of it.

A run leaves a dead row and a dead index entry behind for each change of its deadline and for its end; none of these
updates can be HOT, since the index of armed deadlines has every column that they change in its key or its predicate.
By default autovacuum waits for a fifth of the table, which is two million dead rows where ten million finished runs
are kept. No release needs these settings, so ``minimum_client`` stays as it is.
"""

from __future__ import annotations

from curfew_store.migrations import steps
from curfew_store.schema import CONTROLS

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def refuse(schema: str) -> None:
    """Nothing to refuse: settings of an operator's own are left as they are."""


def upgrade() -> None:
    """Sets the parameters where the operator has not."""
    steps.set_parameters(
        steps.schema_name(),
        CONTROLS,
        {"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "1000"},
    )


def missing(schema: str) -> list[str]:  # noqa: ARG001  (what every revision is asked)
    """Nothing that anybody needs: an operator may have taken the parameters away."""
    return []
