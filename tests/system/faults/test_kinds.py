"""Every kind of fault strikes once, on every stage, and all invariants hold."""

from __future__ import annotations

import pytest

from tests.faults import campaign
from tests.faults.kinds import ABSENT, KINDS, STAGES, TITLES
from tests.faults.needs import missing

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_no_kind_is_missing_on_a_machine_with_debians_packages() -> None:
    """Everything of the list can be injected here, or says in the table why it cannot be anywhere."""
    assert [kind.name for kind in KINDS if missing(kind)] == []
    assert {kind.code for kind in KINDS} | ABSENT.keys() == TITLES.keys()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_fault_is_survived(stage: str) -> None:
    """Struck once by each kind of a stage, nothing is lost, early, late, twice, or left behind."""
    kinds = [kind for kind in KINDS if kind.stage == stage]
    outcome = campaign.run_as_test(campaign.Campaign(kinds, seed=11, seconds=600, once=True), print)
    assert (outcome.lost, outcome.botched) == ([], [])
    assert {each.kind.name for each in outcome.struck} == {kind.name for kind in kinds}
    assert outcome.violations == []
