"""The modelled daemon asks the database what the real `Sweeper` asks, in the same order, whatever it finds."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import Connection

from curfew_daemon import passes, sweeper
from curfew_daemon.enforcer import seen_by
from curfew_daemon.results import SweepResult
from curfew_daemon.scan import LowWaterMark
from curfew_daemon.sweeper import Sweeper
from curfew_daemon.wake import Pace, Seen, Wake
from curfew_store.records import ClaimedBatch, ClaimedRun, LookAhead, ScanStart
from curfew_store.schema import tables_in
from tests.simulation.clockwork import Clockwork, Sleep
from tests.simulation.daemon import Daemon, Habits, moment_of, seconds_of
from tests.simulation.database import Claim, Claimed, Look, Looked
from tests.simulation.table import ArmedRuns, Place

BATCH = 5
SWEEPS = 300
ROUND_TRIP = 0.001


class Script:
    """A table with a story that depends on the seed and on the time alone, and a log of what was asked."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.now = 0.0
        self.runs = ArmedRuns()
        self.log: list[tuple[object, ...]] = []
        self._story = sorted(self._lines(chance), key=lambda line: line[:2])

    def _lines(self, chance: random.Random) -> Any:
        for number in range(250):
            deadline = round(chance.uniform(0, 40), 6)
            yield max(0.0, deadline - chance.uniform(-2, 4)), 0, "armed", (deadline, number)
            if chance.random() < 0.6:
                yield deadline + chance.uniform(0, 0.002), 1, "marked by another", (deadline, number)
        for number in range(250, 280):  # committed late and together: more than one batch
            yield 20.0, 0, "armed", (round(chance.uniform(18, 20), 6), number)

    def ask(self, *question: object) -> None:
        """A question of the daemon takes a round trip, in which others go on."""
        self.log.append((round(self.now, 6), *question))
        self.now += ROUND_TRIP
        while self._story and self._story[0][0] <= self.now:
            _, _, what, place = self._story.pop(0)
            if what == "armed":
                self.runs.arm(place)
            elif self.runs.state[place[1] : place[1] + 1] == b"\0":
                self.runs.state[place[1]] = 1
                self.runs.release([place], marked=True)

    def look(self, since: float | None, expected: tuple[int, float] | None) -> Looked:
        told = None if expected is None else (expected[0], round(expected[1], 5))
        self.ask("look", None if since is None else round(since, 5), told)
        overdue, following = self.runs.edges(self.now, since)
        return Looked(self.now, overdue, following, None if expected is None else self.runs.state[expected[0]] == 2)

    def claim(self, limit: int, after: Place | None) -> Claimed:
        self.ask("claim", limit, None if after is None else (round(after[0], 5), after[1]))
        found = self.runs.lock_due(self.now, self.now, limit, after)
        self.runs.release(found, marked=True)
        return Claimed(self.now, found)


class AsEnforcement:
    """A script in the place of `curfew_store.enforcement`, and of the clock."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def monotonic(self) -> float:
        return self.script.now

    def compile_statements(self, _tables: object) -> None:
        """A script has no statements."""

    def look_ahead(
        self, _conn: object, _tables: object, *, since: datetime | None, expected: tuple[UUID, datetime] | None
    ) -> LookAhead:
        looked = self.script.look(
            None if since is None else seconds_of(since),
            None if expected is None else (expected[0].int - 1, seconds_of(expected[1])),
        )
        following = looked.following
        return LookAhead(
            None if following is None else following[0] - looked.now,
            None if following is None else UUID(int=following[1] + 1),
            None if looked.overdue is None else moment_of(looked.overdue[0]),
            moment_of(looked.now),
            expected_marked=looked.expected_marked,
        )

    def claim_overdue(
        self, _conn: object, _tables: object, *, limit: int, after: ClaimedRun | ScanStart | None, **_rest: object
    ) -> ClaimedBatch:
        place = None if after is None else (seconds_of(after.deadline), after.run_id.int - 1)
        claimed = self.script.claim(limit, place)
        flow, stamp = UUID(int=1), moment_of(claimed.now)
        return ClaimedBatch.of(
            ClaimedRun(UUID(int=number + 1), flow, moment_of(deadline), stamp) for deadline, number in claimed.places
        )


def of_the_real_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(seed)
    fake = AsEnforcement(script)
    for module in (sweeper, passes):
        monkeypatch.setattr(module, "enforcement", fake)
        monkeypatch.setattr(module, "time", fake)
    real = Sweeper(
        tables_in("public"),
        lambda: cast("Connection", fake),
        batch_size=lambda: BATCH,
        on_batch=lambda _batch: None,
        mark=LowWaterMark(lambda: 1.0, fake.monotonic),
    )
    pace, wake = Pace(), Wake(0.0, "start")
    for _ in range(SWEEPS):
        result: SweepResult = real.run_once(wake.reason, slack=pace.patience)
        pace, wake = pace.after_sweep(seen_by(result), poll_interval=1.0)
        script.now += wake.delay
    return script


def of_the_model(seed: int) -> Script:
    script, clockwork = Script(seed), Clockwork()
    daemon = Daemon(0, clockwork, replace(Habits(), batch_size=BATCH), random.Random(0))
    wake = Wake(0.0, "start")
    for _ in range(SWEEPS):
        steps = daemon._sweep(wake.reason)
        answer: Looked | Claimed | None = None
        while True:
            clockwork.now = script.now
            try:
                request = steps.send(answer)
            except StopIteration as end:
                seen: Seen = end.value
                break
            if isinstance(request, Look):
                answer = script.look(request.since, request.expected)
            elif isinstance(request, Claim):
                answer = script.claim(request.limit, request.after)
            else:
                assert isinstance(request, Sleep)
                answer = None
        daemon.pace, wake = daemon.pace.after_sweep(seen, poll_interval=1.0)
        script.now += wake.delay
    return script


@pytest.mark.parametrize("seed", range(4))
def test_the_model_and_the_sweeper_ask_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 sweeps beside a rival and late commits: each statement, its moment, its place and its limit."""
    monkeypatch.setattr(passes, "FIRST_BATCH", 2)
    monkeypatch.setattr("tests.simulation.daemon.FIRST_BATCH", 2)
    model, real = of_the_model(seed), of_the_real_one(seed, monkeypatch)
    kinds = [question[1] for question in real.log]
    assert kinds.count("claim") > 50
    assert kinds.count("look") >= SWEEPS
    assert {2, 4, BATCH} <= {question[2] for question in real.log if question[1] == "claim"}, "batches grow"
    for number, (ours, theirs) in enumerate(zip(model.log, real.log, strict=False)):
        assert ours == theirs, f"statement {number}"
    assert len(model.log) == len(real.log)
