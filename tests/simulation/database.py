"""The modelled database: what a statement costs, when it sees the table, and when its commit is acknowledged.

A statement travels half a round trip, waits for a free core, sees the table as it is then, keeps the core for its
cost, and if it wrote waits for its commit, without a core. Costs vary; a slow spell multiplies them and delays
commits; in an outage everything fails, also what was under way. What a claim has locked is marked by its commit
whether or not the daemon that sent it still lives.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.clockwork import Clockwork
from tests.simulation.table import ArmedRuns, DatabaseClock, Place


class Down(Exception):
    """The database could not be reached, or went away while it was asked."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim: mark up to *limit* runs that are due and lie behind *after*."""

    limit: int
    after: Place | None


@dataclass(frozen=True, slots=True)
class Look:
    """The look ahead: the edges of the index, and whether the *expected* run has been marked since a moment."""

    since: float | None
    expected: tuple[int, float] | None


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to a `Look`; times by the database's clock."""

    now: float
    overdue: Place | None
    following: Place | None
    expected_marked: bool | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a `Claim`: the places whose runs it marked, and its stamp by the database's clock."""

    now: float
    places: list[Place]


@dataclass(frozen=True)
class Costs:
    """Seconds. The first three keep a core of the server busy: processor time of its process for a look, a claim and
    each mark in it, as `python -m tests.bench --only size` measured it on PostgreSQL 18 (0.08 to 0.12 ms, 0.4 to
    0.7 ms, 0.0086 to 0.0096 ms). The rest only takes time, and is a choice: a disk that syncs in a millisecond, and
    a network within one building.
    """

    look: float = 0.0001
    claim: float = 0.0005
    mark: float = 0.000009
    commit: float = 0.001
    round_trip: float = 0.0002
    cores: int = 2


@dataclass(frozen=True)
class Spell:
    """From *begin* to *end* every cost is multiplied, and commits take *stall* longer. *down*: nothing works."""

    begin: float
    end: float
    factor: float = 1.0
    stall: float = 0.0
    down: bool = False


@dataclass
class Tally:
    """What the database has seen."""

    looks: int = 0
    claims: int = 0
    empty_claims: int = 0
    failures: int = 0
    busy: float = 0.0
    lags: list[tuple[float, float]] = field(default_factory=list)
    """For each marked run when it could first be marked, in true time, and its lag to the commit."""
    by_daemon: dict[int, int] = field(default_factory=dict)

    @property
    def statements(self) -> int:
        """All that was asked."""
        return self.looks + self.claims


class Database:
    """Serves the requests of daemons in virtual time."""

    def __init__(
        self, clockwork: Clockwork, clock: DatabaseClock, costs: Costs, spells: Sequence[Spell], chance: random.Random
    ) -> None:
        self.runs = ArmedRuns()
        self.tally = Tally()
        self._clockwork, self._clock, self._costs, self._spells, self._chance = clockwork, clock, costs, spells, chance
        self._waiting: deque[Callable[[], None]] = deque()
        self._idle_cores = costs.cores
        self._armed_at: list[float] = []
        self.recent: dict[int, float] = {}
        """When each daemon last marked a run."""

    def arm(self, timeout: float, held_for: float | None = None) -> None:
        """A run becomes visible that is due in *timeout* seconds; from then on its row may be held for a while."""
        number, now = len(self._armed_at), self._clockwork.now
        self._armed_at.append(now)
        if held_for is not None:
            self.runs.held_until[number] = now + timeout + held_for
        self.runs.arm((self._clock.at(now) + timeout, number))

    def serve(self, daemon: int, request: Claim | Look, answer: Callable[..., None]) -> None:
        """Answer a request in its time; `Down` where the database is down before that."""
        sent = self._clockwork.now

        def executed() -> None:
            if self._down_since(sent):
                self.tally.failures += 1
                self._later(self._half_way(), lambda: answer(None, Down()))
                self._core_free()
            elif isinstance(request, Claim):
                self._execute_claim(daemon, request, answer)
            else:
                self._execute_look(request, answer)

        self._later(self._half_way(), lambda: self._queue(executed))

    def _execute_claim(self, daemon: int, request: Claim, answer: Callable[..., None]) -> None:
        moment = self._clockwork.now
        found = self.runs.lock_due(self._clock.at(moment), moment, request.limit, request.after)
        self.tally.claims += 1
        self.tally.empty_claims += not found
        claimed, spell = Claimed(self._clock.at(moment), found), self._spell(moment)
        cost = self._varied(self._costs.claim + self._costs.mark * len(found)) * spell.factor
        commit = self._varied(self._costs.commit) * spell.factor + spell.stall if found else 0.0

        def committed() -> None:
            survived = not self._down_since(moment)
            self.runs.release(found, marked=survived)
            if survived:
                self._note_marks(daemon, found)
            self._later(self._half_way(), lambda: answer(claimed) if survived else answer(None, Down()))

        self._busy(cost, lambda: self._later(commit, committed))

    def _execute_look(self, request: Look, answer: Callable[..., None]) -> None:
        now = self._clock.at(self._clockwork.now)
        overdue, following = self.runs.edges(now, request.since)
        self.tally.looks += 1
        # Here nobody marks a run before its deadline, so since when is no question.
        marked = None if request.expected is None else self.runs.state[request.expected[0]] == 2
        looked = Looked(now, overdue, following, marked)
        cost = self._varied(self._costs.look) * self._spell(self._clockwork.now).factor
        self._busy(cost, lambda: self._later(self._half_way(), lambda: answer(looked)))

    def _note_marks(self, daemon: int, found: list[Place]) -> None:
        now = self._clockwork.now
        for deadline, number in found:
            due = self._clock.due_since(deadline, now)
            could = self._up_from(max(due, self._armed_at[number], self.runs.held_until.get(number, 0.0)))
            self.tally.lags.append((could, now - could))
        self.recent[daemon] = now
        self.tally.by_daemon[daemon] = self.tally.by_daemon.get(daemon, 0) + len(found)

    # Time and cores

    def _queue(self, job: Callable[[], None]) -> None:
        if self._idle_cores:
            self._idle_cores -= 1
            job()
        else:
            self._waiting.append(job)

    def _busy(self, cost: float, then: Callable[[], None]) -> None:
        """Keeps the core that the job runs on for a while, and hands it to the next."""
        self.tally.busy += cost

        def over() -> None:
            then()
            self._core_free()

        self._later(cost, over)

    def _core_free(self) -> None:
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._idle_cores += 1

    def _later(self, seconds: float, action: Callable[[], Any]) -> None:
        self._clockwork.at(self._clockwork.now + seconds, action)

    def _half_way(self) -> float:
        return self._varied(self._costs.round_trip) / 2

    def _varied(self, seconds: float) -> float:
        """Half of it at least, and now and then several times as much; *seconds* on average."""
        return seconds * (0.5 + self._chance.expovariate(2.0))

    def _spell(self, moment: float) -> Spell:
        return next((spell for spell in self._spells if spell.begin <= moment < spell.end), _CALM)

    def _up_from(self, moment: float) -> float:
        return next((spell.end for spell in self._spells if spell.down and spell.begin <= moment < spell.end), moment)

    def _down_since(self, moment: float) -> bool:
        now = self._clockwork.now
        return any(spell.down and spell.begin <= now and moment < spell.end for spell in self._spells)


_CALM = Spell(0.0, 0.0)
