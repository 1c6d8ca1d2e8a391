"""Every interleaving of the small model, and what must hold in each of them.

The invariants are checked where a mark commits, since a mark that never commits harms nobody: it replaces a version
that was committed, unlatched and due by the database's clock when the claim began, and changes nothing else. That is
"never early", "once per arming", "no mark of a cancelled or completed run" and "an extension that committed first
is honoured". Besides: a claim never waits, never takes more than its limit, nothing gets stuck, and an undisturbed
claim at the end leaves nothing due.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.model.claim_model import Model
from tests.model.claim_states import DAEMONS, SHIPPED, Action, Call, Row, Rules, Scenario, State

RUNS: Final = (0, 1)
METHODS: Final = (("configure", 1), ("configure", 3), ("extend", 1), ("extend", 3), ("cancel", 0), ("complete", 0))


def scenarios() -> list[Scenario]:
    """Every beginning (runs due now, at the tick, or absent) with every pair of calls and either limit."""
    calls = [Call(method, run, deadline) for method, deadline in METHODS for run in RUNS]
    beginnings = [(first, second) for first in (Row(1), Row(2), None) for second in (Row(1), Row(2))]
    pairs = list(itertools.combinations_with_replacement(calls, 2))
    return [Scenario(rows, pair, limit) for rows in beginnings for pair in pairs for limit in (1, 2)]


@dataclass
class Explored:
    """What the exploration of one or more scenarios found."""

    scenarios: int = 0
    states: int = 0
    steps: int = 0
    interleavings: int = 0
    violations: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Explored) -> Explored:
        self.scenarios += other.scenarios
        self.states += other.states
        self.steps += other.steps
        self.interleavings += other.interleavings
        self.violations += other.violations
        return self

    def __str__(self) -> str:
        found = ", ".join(f"{what} ({count})" for what, count in sorted(self.violations.items())) or "no violation"
        return (
            f"{self.scenarios} scenarios, {self.states:,} states, {self.steps:,} steps, "
            f"{self.interleavings:.2e} interleavings: {found}"
        )


def explore(scenario: Scenario, rules: Rules = SHIPPED) -> Explored:
    """Visit every state that can be reached, once, and count the paths through them."""
    model = Model(scenario, rules)
    found = Explored(scenarios=1)
    paths: dict[State, int] = {}

    def visit(state: State) -> int:
        known = paths.get(state)
        if known is not None:
            return known
        total, stuck = 0, True
        for daemon in DAEMONS:
            if model.waits(state, daemon):
                found.violations["a claim waits"] += 1
        for action in model.actions(state):
            stuck = False
            found.steps += 1
            found.violations.update(violations(model, state, action))
            for after in model.successors(state, action):
                total += visit(after)
        if stuck:
            found.violations.update(at_the_end(model, state))
            total = 1
        paths[state] = total
        return total

    found.interleavings = visit(scenario.begin())
    found.states = len(paths)
    return found


def violations(model: Model, state: State, action: Action) -> Iterator[str]:
    """What a step breaks: only the commit of a claim can break anything."""
    if action.kind != "commit" or action.actor not in DAEMONS:
        return
    claim = state.daemons[action.actor]
    if len(claim.locked) > model.scenario.limit:
        yield "more than the limit"
    for run in claim.locked:
        hold, old = state.held[run], state.rows[run]
        assert hold is not None
        if old is None or hold.version is None or hold.version.deadline != old.deadline:
            yield "a change is lost"
        elif old.marked:
            yield "twice for one arming"
        elif old.cancelled:
            yield "a cancelled run is marked"
        elif old.completed:
            yield "a completed run is marked"
        elif not old.deadline or old.deadline > claim.now:
            yield "an extension is not honoured"
        elif old.deadline > claim.clock:
            yield "early"


def at_the_end(model: Model, state: State) -> Iterator[str]:
    """What is wrong with a state after which nothing happens."""
    phases = [daemon.phase for daemon in state.daemons] + [producer.phase for producer in state.producers]
    if set(phases) != {"ended"}:
        yield "stuck"
    for row in state.rows:
        if SHIPPED.due(row, state.clock) and not model.rules.due(row, state.clock):
            yield "due and never marked"


def walk(model: Model, chance: random.Random) -> list[tuple[Action, State]]:
    """One interleaving at random, step by step, of those whose every step has one outcome.

    Crashes are less likely than anything else, else few claims would come to their end.
    """
    state = model.scenario.begin()
    trace: list[tuple[Action, State]] = []
    while True:
        outcomes = [(action, model.successors(state, action)) for action in model.actions(state)]
        certain = [(action, after[0]) for action, after in outcomes if len(after) == 1]
        if not certain:
            return trace
        weights = [0.15 if action.kind == "crash" else 1.0 for action, _ in certain]
        action, state = chance.choices(certain, weights)[0]
        trace.append((action, state))


def explore_all(chosen: Iterable[Scenario], rules: Rules = SHIPPED) -> Explored:
    """The sum over scenarios."""
    total = Explored()
    for scenario in chosen:
        total += explore(scenario, rules)
    return total
