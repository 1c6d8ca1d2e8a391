"""A short stay in the laboratory: a few faults that need neither root nor Debian's packages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults import campaign
from tests.faults.kinds import chosen

QUICK = "kill,terminate-sessions,crash"


def test_nothing_is_lost_under_a_few_faults(tmp_path: Path) -> None:
    """Daemons killed, sessions terminated, a crash of the server: all invariants hold; what was seen can be kept."""
    short = campaign.Campaign(
        chosen(QUICK),
        seed=1,
        seconds=60,
        once=True,
        daemons=2,
        producers=2,
        rate=60,
        horizon=0.5,
        keep=tmp_path,
        keep_all=True,
    )
    outcome = campaign.run_as_test(short, print, quiet=True)
    assert (outcome.lost, outcome.botched, outcome.violations) == ([], [], [])
    assert {each.kind.code for each in outcome.struck} == {"F1", "F5", "F7"}
    assert outcome.calls > 50
    assert outcome.marks > 5
    (kept,) = tmp_path.iterdir()
    assert {path.name for path in kept.iterdir()} >= {"lab-1.log", "lab-2.log", "server.log", "violations.jsonl"}
    for name, count in (("calls", outcome.calls), ("changes", outcome.changes), ("strikes", len(outcome.struck))):
        assert len([json.loads(line) for line in (kept / f"{name}.jsonl").read_text().splitlines()]) == count
