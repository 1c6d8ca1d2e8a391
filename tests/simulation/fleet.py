"""One experiment: a fleet, a load, what goes wrong, and what came of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.clockwork import Actor, Clockwork
from tests.simulation.daemon import Daemon, Habits
from tests.simulation.database import Costs, Database, Spell, Tally
from tests.simulation.table import DatabaseClock

_ARM_EVERY = 0.01


@dataclass(frozen=True)
class Load:
    """*rate* deadlines a second, at random moments, each armed between the two *ahead* before it (seconds).

    The share *late* of them becomes visible up to *late_by* after its deadline instead, as by a slow transaction; the
    share *held* is locked by others for up to *held_for* from its deadline on. *burst* more are due at *burst_at*.
    """

    rate: float
    ahead: tuple[float, float] = (1.2, 2.0)
    late: float = 0.0
    late_by: float = 5.0
    held: float = 0.0
    held_for: float = 5.0
    burst: int = 0
    burst_at: float = 15.0


@dataclass(frozen=True)
class Experiment:
    """*seconds* of load after *settle* seconds that are not counted; *kills* are (moment, how many, active first)."""

    name: str
    daemons: int
    load: Load
    seconds: float = 20.0
    settle: float = 10.0
    costs: Costs = field(default_factory=Costs)
    habits: Habits = field(default_factory=Habits)
    spells: tuple[Spell, ...] = ()
    steps: tuple[tuple[float, float], ...] = ()
    kills: tuple[float, ...] = ()
    together: bool = False
    """Whether all daemons start in the same instant, as after an outage; else within a poll interval."""


@dataclass
class Outcome:
    """What came of it, from the end of `settle` on; lag in seconds, from when a run could be marked to its commit."""

    experiment: Experiment
    expected: int
    lags: list[float] = field(repr=False)
    statements: int
    empty_claims: int
    busy: float
    tally: Tally = field(repr=False)
    slacks: list[float] = field(repr=False)

    @property
    def per_deadline(self) -> float:
        """Statements per marked run, the polls of idle daemons included."""
        return self.statements / max(1, len(self.lags))

    def lag(self, share: float) -> float:
        """A percentile by nearest rank; NaN where nothing was marked."""
        ordered = sorted(self.lags)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def run(experiment: Experiment, seed: int) -> Outcome:
    """Let it happen; the same experiment and seed give the same outcome."""
    chance = random.Random(f"{seed} {experiment.name}")
    clockwork, clock = Clockwork(), DatabaseClock(list(experiment.steps))
    database = Database(clockwork, clock, experiment.costs, experiment.spells, random.Random(chance.random()))
    end = experiment.settle + experiment.seconds
    deadlines = sorted(_deadlines(experiment, chance, end))
    _arm_all(clockwork, database, deadlines)
    fleet = [Daemon(n, clockwork, experiment.habits, random.Random(chance.random())) for n in range(experiment.daemons)]
    actors = [Actor(clockwork, each.life(), partial(database.serve, each.number)) for each in fleet]
    for actor in actors:
        actor.start(0.0 if experiment.together else chance.uniform(0, experiment.habits.poll_interval))
    for moment in experiment.kills:
        clockwork.at(moment, partial(_kill_the_active, fleet, actors, database))
    tally = database.tally
    clockwork.run(experiment.settle)
    before = (tally.statements, tally.empty_claims, tally.busy)
    clockwork.run(end)
    after = (tally.statements, tally.empty_claims, tally.busy)
    clockwork.run(end + 2 * experiment.habits.poll_interval + 0.5)
    counted = [lag for could, lag in tally.lags if experiment.settle <= could < end]
    expected = sum(experiment.settle <= max(each) < end for each in deadlines)
    change = [later - earlier for earlier, later in zip(before, after, strict=True)]
    slacks = [each.pace.slack for each, actor in zip(fleet, actors, strict=True) if actor.alive]
    return Outcome(experiment, expected, counted, int(change[0]), int(change[1]), change[2], tally, slacks)


def _deadlines(experiment: Experiment, chance: random.Random, end: float) -> Iterator[tuple[float, float, float]]:
    """For each run when it becomes visible, its deadline, and until when others hold it."""
    load = experiment.load
    for _ in range(round(load.rate * end)):
        deadline = chance.uniform(0, end)
        late = load.late and chance.random() < load.late
        visible = deadline + chance.uniform(0, load.late_by) if late else deadline - chance.uniform(*load.ahead)
        held = load.held and chance.random() < load.held
        yield max(0.0, visible), deadline, deadline + chance.uniform(0, load.held_for) if held else 0.0
    for _ in range(load.burst):
        yield load.burst_at - load.ahead[0], load.burst_at, 0.0


def _arm_all(clockwork: Clockwork, database: Database, deadlines: list[tuple[float, float, float]]) -> None:
    """Every run becomes visible at its time; those of one hundredth of a second ahead come in one go."""
    groups: dict[int, list[tuple[float, float, float]]] = {}
    for each in deadlines:
        groups.setdefault(math.ceil(each[0] / _ARM_EVERY), []).append(each)

    def arm(group: list[tuple[float, float, float]]) -> None:
        for _, deadline, held_until in group:
            database.arm(deadline - clockwork.now, held_until - deadline if held_until else None)

    for number, group in groups.items():
        clockwork.at(number * _ARM_EVERY, partial(arm, group))


def _kill_the_active(fleet: list[Daemon], actors: list[Actor], database: Database) -> None:
    """SIGKILL to the living daemon that has marked most lately."""
    alive = [daemon for daemon, actor in zip(fleet, actors, strict=True) if actor.alive]
    active = max(alive, key=lambda daemon: database.recent.get(daemon.number, -1.0))
    actors[active.number].kill()
