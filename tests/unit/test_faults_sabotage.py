"""What the laboratory notices when a daemon has lost a safety: everything, and the page says so."""

from __future__ import annotations

from tests.faults import report
from tests.faults.checker import INVARIANTS
from tests.faults.kinds import KINDS
from tests.faults.sabotage import BEGIN, END, EXPECTED, Seen, loaded, section
from tests.faults.sabotages.sitecustomize import SABOTAGES


def test_every_safety_is_taken_away_by_a_fault_and_for_an_invariant_that_exist() -> None:
    """Each sabotage is expected to be noticed, once, in words that the laboratory knows."""
    assert [expected.sabotage for expected in EXPECTED] == list(SABOTAGES)
    assert {expected.kind for expected in EXPECTED} <= {kind.name for kind in KINDS}
    assert {expected.invariant for expected in EXPECTED} <= INVARIANTS.keys()


def test_every_loss_was_noticed() -> None:
    """The recorded run tried each sabotage, and each time the invariant that belongs to it was found violated."""
    seen = loaded()
    assert [each.sabotage for each in seen] == list(SABOTAGES), "run: make faults-sabotage"
    assert [each.sabotage for each in seen if not each.noticed] == []


def test_the_page_says_what_was_seen() -> None:
    """tests/README.md holds the table of the recorded run."""
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_section(page, section(loaded()), BEGIN, END) == page


def test_a_loss_that_went_unnoticed_says_so() -> None:
    """The table never passes over one."""
    said = section([Seen("sleeps", "F1", "I2", {"I4": 1})])
    assert said.endswith("| sleeps | F1 | I2: not noticed | I4 |\n")
