"""`python -m tests.faults.sabotage`: does the laboratory notice a daemon that has lost one of its safeties?

Each safety is taken away in turn (`tests/faults/sabotages`), the fault that it is for strikes a few times, and the
checker has to report the invariant that then no longer holds. Writes `tests/faults/sabotage.json` and the table in
`tests/README.md`, and exits with 0 if every loss was noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.faults import campaign, report
from tests.faults.kinds import chosen

__all__ = ["EXPECTED", "FILE", "Expected", "Seen", "section", "tried"]

FILE: Final = Path(__file__).with_name("sabotage.json")
BEGIN: Final = "<!-- sabotage:begin -->"
END: Final = "<!-- sabotage:end -->"
_PATCHES: Final = Path(__file__).with_name("sabotages")


@dataclass(frozen=True)
class Expected:
    """What a sabotaged daemon does, the kind of fault that shows it ("" where the load alone does), the invariant."""

    sabotage: str
    kind: str
    invariant: str


EXPECTED: Final = (
    Expected("marks the timed out", "kill", "I3"),
    Expected("marks the completed", "kill", "I4"),
    Expected("marks the cancelled", "kill", "I4"),
    Expected("marks before the deadline", "kill", "I1"),
    Expected("waits for locked rows", "hold-rows", "I2"),
    Expected("knows no limit", "flood", "I10"),
    Expected("never looks behind its mark", "late-commit", "I2"),
    Expected("waits for ever", "silent-for-good", "I14"),
    Expected("keeps dead connections", "terminate-sessions", "I14"),
    Expected("retries after 8 s", "crash", "I2"),
    Expected("retries at once", "refused", "I12"),
    Expected("spreads no reconnects", "large-fleet", "I12"),
    Expected("dies of database errors", "terminate-sessions", "I14"),
    Expected("isolates no run", "poison", "I2"),
    Expected("polls every 5 s", "kill", "I2"),
)


@dataclass(frozen=True)
class Seen:
    """What came of it: the fault that struck, and the invariants found violated, with how often."""

    sabotage: str
    fault: str
    invariant: str
    violations: dict[str, int]

    @property
    def noticed(self) -> bool:
        """Whether the invariant that belongs to it was among them."""
        return self.violations.get(self.invariant, 0) > 0


def tried(expected: Expected, *, strikes: int = 3, seed: int = 1) -> Seen:
    """A short stay in the laboratory with daemons that all have lost this safety."""
    kinds = chosen(expected.kind)
    settings = {"LAB_SABOTAGE": expected.sabotage, "PYTHONPATH": _python_path()}
    plan = campaign.Campaign(
        kinds, seed, 20, most=strikes, daemons=3, producers=4, rate=80, horizon=2.0, settings=settings
    )
    outcome = campaign.run(plan, lambda _: None, quiet=True)
    counts: dict[str, int] = {}
    for violation in outcome.violations:
        counts[violation.invariant] = counts.get(violation.invariant, 0) + 1
    return Seen(expected.sabotage, kinds[0].code, expected.invariant, counts)


def _python_path() -> str:
    return os.pathsep.join(path for path in (str(_PATCHES), os.environ.get("PYTHONPATH")) if path)


def section(seen: Sequence[Seen]) -> str:
    """The table for `tests/README.md`."""
    if not seen:
        return "Not run yet.\n"
    lines = ["| a daemon that … | fault | invariant | also |", "|---|---|---|---|"]
    for each in seen:
        also = ", ".join(sorted((name for name in each.violations if name != each.invariant), key=lambda n: int(n[1:])))
        found = each.invariant if each.noticed else f"{each.invariant}: not noticed"
        lines.append(f"| {each.sabotage} | {each.fault} | {found} | {also} |")
    return "\n".join(lines) + "\n"


def loaded() -> list[Seen]:
    """What the last complete run saw."""
    return [Seen(**each) for each in json.loads(FILE.read_text(encoding="utf-8"))] if FILE.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Try what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sabotage", description="Does the laboratory notice a missing safety?")
    parser.add_argument("--only", help="a part of what a daemon does, such as 'limit'; writes nothing")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    seen = []
    for expected in EXPECTED:
        if options.only is None or options.only in expected.sabotage:
            seen.append(tried(expected, seed=options.seed))
            said = "noticed" if seen[-1].noticed else "NOT NOTICED"
            print(f"a daemon that {expected.sabotage}: {said} {seen[-1].violations}", flush=True)
    if options.only is None:
        # A part of the table would pass for all of it, so it is written at the end alone.
        FILE.write_text(json.dumps([asdict(each) for each in seen], indent=1) + "\n", encoding="utf-8")
        page = report.PAGE.read_text(encoding="utf-8")
        report.PAGE.write_text(report.with_section(page, section(seen), BEGIN, END), encoding="utf-8")
    return 0 if seen and all(each.noticed for each in seen) else 1


if __name__ == "__main__":
    sys.exit(main())
