"""When a stay in the laboratory that is a test is repeated, and when it is not."""

from __future__ import annotations

import pytest

from tests.faults import campaign
from tests.faults.campaign import Campaign, Outcome, run_as_test
from tests.faults.kinds import KINDS
from tests.faults.lab import Violation

LATE = Violation("I2", "late", lateness=True)
TWICE = Violation("I3", "twice")


def outcomes(monkeypatch: pytest.MonkeyPatch, *script: Outcome) -> list[Outcome]:
    """Has the next runs come to these; those that are left."""
    left = list(script)
    monkeypatch.setattr(campaign, "run", lambda *_, **__: left.pop(0))
    return left


def judged(monkeypatch: pytest.MonkeyPatch, first: Outcome, second: Outcome) -> Outcome | None:
    """What counts of two runs: the second, or ``None`` if only the first was made, which is then the verdict."""
    left = outcomes(monkeypatch, first, second)
    found = run_as_test(Campaign(KINDS[:1], 1, 1), lambda _: None)
    assert found is (first if left else second)
    return None if left else found


@pytest.mark.parametrize(
    "first",
    [Outcome(violations=[LATE, LATE]), Outcome(botched=[(KINDS[0], "no port")]), Outcome(lost=["no server"])],
    ids=["late", "botched", "lost"],
)
def test_what_was_late_or_not_carried_out_is_repeated_once(monkeypatch: pytest.MonkeyPatch, first: Outcome) -> None:
    """The second run is the verdict, whatever it is."""
    again = Outcome(violations=[LATE])
    assert judged(monkeypatch, first, again) is again


@pytest.mark.parametrize(
    "first",
    [Outcome(), Outcome(violations=[TWICE]), Outcome(violations=[LATE, TWICE], botched=[(KINDS[0], "no port")])],
    ids=["clean", "wrong", "wrong and late"],
)
def test_nothing_else_is_repeated(monkeypatch: pytest.MonkeyPatch, first: Outcome) -> None:
    """A run that kept everything needs no other, and one that broke a promise gets no other."""
    assert judged(monkeypatch, first, Outcome()) is None
