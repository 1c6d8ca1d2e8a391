"""A whole run: lab after lab, on each stage in turn, until the time is over; every lab is judged by itself.

A lab lives for some minutes only, so that its record stays small enough to be judged in seconds.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults import evidence
from tests.faults.checker import check
from tests.faults.kinds import STAGES
from tests.faults.lab import Kind, Lab, LabOptions, Violation
from tests.faults.nemesis import LIGHT_TURNS, Nemesis, Struck, digest_of, schedule
from tests.faults.record import Record

__all__ = ["Campaign", "Outcome", "run", "run_as_test"]

LAB_SECONDS: Final = 360.0
_SAID: Final = 20


@dataclass
class Outcome:
    """What one or more labs came to."""

    struck: list[Struck] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    botched: list[tuple[Kind, str]] = field(default_factory=list)
    """Strikes that could not be carried out, and why: they prove nothing."""
    calls: int = 0
    unknown: int = 0
    changes: int = 0
    marks: int = 0
    labs: int = 0
    lost: list[str] = field(default_factory=list)
    """Labs that could not be opened, or not be judged, and why: what was struck there is not counted."""
    stalled: float = 0.0
    """Seconds in which the machine itself stood still, over all labs."""
    seconds: float = 0.0
    server_version: str = ""
    digests: list[str] = field(default_factory=list)

    def add(self, record: Record, violations: list[Violation]) -> None:
        """Take in one lab."""
        self.struck += record.struck
        self.violations += violations
        self.calls += len(record.calls)
        self.unknown += sum(call.outcome == "unknown" for call in record.calls)
        self.changes += len(record.changes)
        self.marks += sum(change.is_mark for change in record.changes)
        self.labs += 1
        self.stalled += sum(end - begin for begin, end in record.stalls) / 1e6
        self.digests.append(digest_of_history(record))


def digest_of_history(record: Record) -> str:
    """A digest over all calls and changes of a lab, to tell whether a kept history is the one that was judged."""
    digest = hashlib.sha256()
    for call in record.calls:
        digest.update(f"{call.number} {call.method} {call.run_id} {call.outcome} {call.result}\n".encode())
    for change in record.changes:
        digest.update(f"{change.number} {change.run_id} {change.at} {change.session} {change.new}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Campaign:
    """What is to be run: *seconds* of strikes by *kinds*, or at *most* so many strikes per stage.

    With *once* each kind strikes once, in a random order, as far as the time goes. *keep* is a folder for what is to be
    known of labs in which something was violated, or of *keep_all*.
    """

    kinds: Sequence[Kind]
    seed: int
    seconds: float
    most: int | None = None
    once: bool = False
    daemons: int = 4
    producers: int = 6
    rate: float = 120.0
    horizon: float = 6.0
    settings: Mapping[str, str] = field(default_factory=dict)
    keep: Path | None = None
    keep_all: bool = False

    def plan(self) -> list[tuple[str, list[Kind], int, float]]:
        """The labs: stage, kinds, seed of the schedule, and seconds. Time is shared out by the number of kinds."""
        by_stage: dict[str, list[Kind]] = defaultdict(list)
        for kind in self.kinds:
            by_stage[kind.stage].append(kind)
        labs = []
        for place, (stage, kinds) in enumerate(by_stage.items()):
            share = self.seconds * len(kinds) / len(self.kinds)
            count = 1 if self.once else max(1, round(share / LAB_SECONDS))
            labs += [
                (stage, kinds, self.seed * 10_000 + place * 100 + number, share / count) for number in range(count)
            ]
        return labs


def run(campaign: Campaign, say: Callable[[str], None], *, quiet: bool = False) -> Outcome:
    """Run all labs of a campaign and judge each."""
    outcome = Outcome()
    begun = time.monotonic()
    for stage, kinds, seed, seconds in campaign.plan():
        say(f"lab {outcome.labs + 1} ({stage}, schedule {seed}): {seconds:.0f} s of {len(kinds)} kinds")
        load = (campaign.daemons, campaign.producers, campaign.rate, campaign.horizon)
        options = LabOptions(*load, seed=seed, settings=campaign.settings, quiet=quiet)
        try:
            _one_lab(stage, options, campaign, (kinds, seed, seconds), outcome, say)
        except Exception as error:  # noqa: BLE001  (an hour's other labs are not to be lost with it)
            outcome.lost.append(f"{stage}, schedule {seed}: {type(error).__name__}: {error}")
            say(f"  LAB LOST: {traceback.format_exc()}")
    outcome.seconds = time.monotonic() - begun
    return outcome


def run_as_test(campaign: Campaign, say: Callable[[str], None], *, quiet: bool = False) -> Outcome:
    """As `run`, and once more where something was late and nothing but late, or a strike could not be carried out.

    Two seconds are little on a machine with much else to do. Of the second time nothing is excused, nor is anything
    else of the first.
    """
    outcome = run(campaign, say, quiet=quiet)
    if (outcome.violations or outcome.botched or outcome.lost) and all(each.lateness for each in outcome.violations):
        reasons = [*outcome.lost, *(f"{kind.name}: {why}" for kind, why in outcome.botched)]
        late, still = len(outcome.violations), outcome.stalled
        say(f"{late} times late, not carried out: {reasons}, {still:.1f} s of standstill: once more")
        return run(campaign, say, quiet=quiet)
    return outcome


def _one_lab(
    stage: str,
    options: LabOptions,
    campaign: Campaign,
    part: tuple[Sequence[Kind], int, float],
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    with STAGES[stage](options) as lab:
        outcome.server_version = lab.server.server_version
        record = _struck_and_rested(lab, campaign, *part, outcome.botched)
        violations = check(record)
        outcome.add(record, violations)
        for violation in violations[:_SAID]:
            say(f"  VIOLATION {violation.invariant}: {violation.said}")
        if len(violations) > _SAID:
            say(f"  VIOLATION … and {len(violations) - _SAID} more")
        if campaign.keep and (violations or campaign.keep_all):
            folder = campaign.keep / f"{stage.replace(' ', '-')}-{part[1]}"
            evidence.keep(lab, record, violations, folder)
            say(f"  kept: {folder}")


def _struck_and_rested(
    lab: Lab,
    campaign: Campaign,
    kinds: Sequence[Kind],
    seed: int,
    seconds: float,
    botched: list[tuple[Kind, str]],
) -> Record:
    turns, most = (1, len(kinds)) if campaign.once else (LIGHT_TURNS, campaign.most)
    nemesis = Nemesis(lab, schedule(kinds, seed, light_turns=turns), botched)
    struck = nemesis.strike_for(seconds, most)
    evidence.rest(lab)
    # Another drawing of the same schedule: what was struck has to be its beginning.
    planned = digest_of(schedule(kinds, seed, light_turns=turns), nemesis.begun)
    return evidence.collected(lab, struck, (planned, nemesis.digest))
