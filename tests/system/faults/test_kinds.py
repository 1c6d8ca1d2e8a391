"""Every kind of fault strikes once, on every stage, and all invariants hold."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults import campaign
from tests.faults.kinds import ABSENT, KINDS, STAGES, TITLES
from tests.faults.lab import Kind
from tests.faults.needs import missing

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_no_kind_is_missing_on_a_machine_with_debians_packages() -> None:
    """Everything of the list can be injected here, or says in the table why it cannot be anywhere."""
    assert [kind.name for kind in KINDS if missing(kind)] == []
    assert {kind.code for kind in KINDS} | ABSENT.keys() == TITLES.keys()


def struck_once(kinds: Sequence[Kind]) -> campaign.Outcome:
    """What came of a strike by each kind, all of which were carried out and judged."""
    outcome = campaign.run(campaign.Campaign(kinds, seed=11, seconds=600, once=True), print, quiet=False)
    assert outcome.lost == []
    assert outcome.botched == []
    assert {each.kind.name for each in outcome.struck} == {kind.name for kind in kinds}
    return outcome


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_fault_is_survived(stage: str) -> None:
    """Struck once by each kind of a stage, nothing is lost, early, late, twice, or left behind.

    Two seconds are little on a machine with much else to do. A stage in which something was late, and nothing but
    late, is struck once more, and then nothing may be.
    """
    kinds = [kind for kind in KINDS if kind.stage == stage]
    outcome = struck_once(kinds)
    if outcome.violations and all(each.lateness for each in outcome.violations):
        print(f"late ({outcome.stalled:.1f} s of standstill): once more")
        outcome = struck_once(kinds)
    assert outcome.violations == []
