"""A short stay in the laboratory: a few faults that need neither root nor Debian's packages."""

from __future__ import annotations

from tests.faults import campaign
from tests.faults.kinds import chosen

QUICK = "kill,terminate-sessions,crash"


def test_nothing_is_lost_under_a_few_faults() -> None:
    """Daemons killed, sessions terminated, a crash of the server: all invariants hold."""
    short = campaign.Campaign(
        chosen(QUICK), seed=1, seconds=60, once=True, daemons=2, producers=2, rate=60, horizon=0.5
    )
    outcome = campaign.run(short, lambda _: None, quiet=True)
    assert (outcome.botched, outcome.violations) == ([], [])
    assert {each.kind.code for each in outcome.struck} == {"F1", "F5", "F7"}
    assert outcome.calls > 50
    assert outcome.marks > 5
