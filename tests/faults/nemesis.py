"""Strikes in their time: a schedule that follows from the seed alone, and its execution.

The schedule is endless, and a run takes as much of it as it has time for. It consists of rounds; in each round
every kind has its turns, light ones more often, in a random order. Strikes overlap unless a kind wants to be alone;
those that do come in groups, since each that does not would end before the next one alone and after the last.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Final

from tests.faults.canary import recovery_of
from tests.faults.lab import Kind, Lab, Strike, Violation

__all__ = ["Nemesis", "Planned", "Struck", "digest_of", "schedule"]

LIGHT_TURNS: Final = 4
GROUP: Final = 20
"""How many strikes that may overlap come in succession."""
OVERLAP: Final = 4
PAUSE: Final = (0.05, 0.4)
RECOVERY_PATIENCE: Final = 30.0


@dataclass(frozen=True)
class Planned:
    """One strike of the schedule: its kind, the seed of its choices, and the pause before it in seconds."""

    kind: Kind
    seed: int
    pause: float


@dataclass(frozen=True)
class Struck:
    """A strike that took place, and the seconds until a fresh canary was marked; ``None`` where it never was."""

    kind: Kind
    strike: Strike
    recovery: float | None


def schedule(kinds: Sequence[Kind], seed: int, *, light_turns: int = LIGHT_TURNS) -> Iterator[Planned]:
    """The endless schedule for *kinds* in their order; in a round each light one has so many turns."""
    rng = random.Random(seed)
    turns = [kind for kind in kinds for _ in range(1 if kind.heavy else light_turns)]
    while turns:
        rng.shuffle(turns)
        for kind in _grouped(turns):
            yield Planned(kind, rng.getrandbits(48), rng.uniform(*PAUSE))


def _grouped(turns: Sequence[Kind]) -> Iterator[Kind]:
    """The same in another order: groups that may overlap, and between them in even parts those that may not."""
    company = [kind for kind in turns if not kind.alone]
    alone = [kind for kind in turns if kind.alone]
    groups = max(1, round(len(company) / GROUP))
    for number in range(groups):
        # The long ones first, so that the others strike meanwhile.
        yield from sorted(_part(company, number, groups), key=lambda kind: not kind.heavy)
        yield from _part(alone, number, groups)


def _part(kinds: Sequence[Kind], number: int, parts: int) -> Sequence[Kind]:
    return kinds[len(kinds) * number // parts : len(kinds) * (number + 1) // parts]


def digest_of(planned: Iterator[Planned], count: int) -> str:
    """What the first *count* strikes of a schedule are, in 16 characters."""
    lines = [f"{each.kind.code} {each.kind.name} {each.seed}" for each in itertools.islice(planned, count)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Nemesis:
    """Strikes a lab; `strike_for` returns what it did, and what it could not do goes to *botched*."""

    def __init__(self, lab: Lab, planned: Iterator[Planned], botched: list[tuple[Kind, str]]) -> None:
        self._botched = botched
        self._lab = lab
        self._schedule = planned
        self._lock = threading.Lock()
        self.struck: list[Struck] = []
        self._begun: list[Planned] = []

    @property
    def begun(self) -> int:
        """How many strikes were begun."""
        return len(self._begun)

    @property
    def digest(self) -> str:
        """What was begun, in the form of `digest_of`."""
        return digest_of(iter(self._begun), len(self._begun))

    def strike_for(self, seconds: float, most: int | None = None) -> list[Struck]:
        """Strike for so many seconds, or *most* times, and return when the last strike has been recovered from."""
        until = time.monotonic() + seconds
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(OVERLAP, thread_name_prefix="lab-nemesis") as pool:
            for planned in itertools.islice(self._schedule, most):
                if time.monotonic() > until:
                    break
                running = self._settled(running, 0 if planned.kind.alone else OVERLAP - 1)
                self._lab.pause(planned.pause)
                self._begun.append(planned)
                future = pool.submit(self._strike, planned)
                running = self._settled({future}, 0) if planned.kind.alone else running | {future}
            self._settled(running, 0)
        return self.struck

    @staticmethod
    def _settled(running: set[Future[None]], most: int) -> set[Future[None]]:
        """Waits until at most *most* still run, and raises what any of them raised."""
        while True:
            done = {future for future in running if future.done()}
            for future in done:
                future.result()
            running -= done
            if len(running) <= most:
                return running
            wait(running, return_when="FIRST_COMPLETED")

    def _strike(self, planned: Planned) -> None:
        kind = planned.kind
        try:
            strike = kind.strike(self._lab, random.Random(planned.seed))
        except Exception as error:  # noqa: BLE001  (whatever it is, the run goes on)
            # No finding about the product, and it must not pass for a fault survived.
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            self._botched.append((kind, said))
            self._lab.say(f"  {kind.code:4} {kind.name} (seed {planned.seed}) COULD NOT BE STRUCK: {said}")
            return
        recovery = strike.recovered
        if recovery is None:
            recovery = recovery_of(self._lab, since=strike.ended.monotonic, patience=RECOVERY_PATIENCE)
        if recovery is None:
            missing = Violation("I14", f"no canary marked within {RECOVERY_PATIENCE:g} s of {strike.did}")
            strike = replace(strike, found=(*strike.found, missing))
        struck = Struck(kind, strike, recovery)
        with self._lock:
            self.struck.append(struck)
        shown = "never" if recovery is None else f"{recovery:.2f} s"
        self._lab.say(f"  {kind.code:4} {strike.did}: recovered in {shown}")
