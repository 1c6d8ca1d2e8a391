"""When jobs are due: on a clock that never steps, with no wake-up lost."""

from __future__ import annotations

import ast
import inspect
import threading

import pytest

from curfew_daemon import pacing
from curfew_daemon.pacing import LONGEST_SLEEP, Pacer


class Bench:
    """A pacer on a clock that stands until it is moved, and what it did."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.poked: list[str] = []
        self.changes = 0
        self.pacer = Pacer(self.poked.append, self._changed, lambda: self.now)
        self.pacer.add("sweep")

    def _changed(self) -> None:
        self.changes += 1

    def pass_time(self, seconds: float) -> float:
        self.now += seconds
        return self.pacer.run_due()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_new_job_is_due_at_once_and_poked_once(bench: Bench) -> None:
    """Until its end is told a job counts as running and is not poked again."""
    bench.pacer.run_due()
    bench.pass_time(100)
    assert bench.poked == ["sweep"]
    assert not bench.pacer.idle("sweep")


def test_the_next_run_is_due_after_the_delay_and_not_before(bench: Bench) -> None:
    """The delay counts from the end of the run; the sleep ends when it is over."""
    bench.pacer.run_due()
    bench.now += 5
    bench.pacer.ended("sweep", 0.5)
    assert bench.pacer.idle("sweep")
    assert bench.pacer.run_due() == pytest.approx(0.5)
    assert bench.pass_time(0.4) == pytest.approx(0.1)
    assert bench.poked == ["sweep"]
    bench.pass_time(0.1)
    assert bench.poked == ["sweep", "sweep"]


def test_a_wake_up_while_the_job_runs_is_not_lost(bench: Bench) -> None:
    """The run in hand may have looked already, so another follows it at once, whatever delay it asked for."""
    bench.pacer.run_due()
    bench.pacer.wake("sweep")
    assert bench.pacer.run_due() == LONGEST_SLEEP
    assert bench.poked == ["sweep"]
    bench.pacer.ended("sweep", 3600)
    bench.pacer.run_due()
    assert bench.poked == ["sweep", "sweep"]


def test_one_wake_up_is_good_for_one_run(bench: Bench) -> None:
    """After the run that followed it, the job's own delay counts again."""
    bench.pacer.run_due()
    bench.pacer.wake("sweep")
    bench.pacer.wake("sweep")
    bench.pacer.ended("sweep", 3600)
    bench.pacer.run_due()
    bench.pacer.ended("sweep", 10)
    bench.pass_time(9)
    assert bench.poked == ["sweep", "sweep"]


def test_a_wake_up_while_the_job_waits_runs_it_now(bench: Bench) -> None:
    """A wake-up cuts a wait short and is not counted once more when that run ends."""
    bench.pacer.run_due()
    bench.pacer.ended("sweep", 3600)
    bench.pacer.wake("sweep")
    bench.pacer.run_due()
    bench.pacer.ended("sweep", 3600)
    bench.pass_time(1)
    assert bench.poked == ["sweep", "sweep"]


def test_whoever_sleeps_is_told_of_every_change(bench: Bench) -> None:
    """Ends and wake-ups come from other threads while the main thread sleeps for what was due before."""
    bench.pacer.run_due()
    bench.pacer.wake("sweep")
    bench.pacer.ended("sweep", 1)
    assert bench.changes == 2


def test_jobs_do_not_wait_for_each_other(bench: Bench) -> None:
    """With one job running for ever the other keeps its time."""
    bench.pacer.add("observe")
    bench.pacer.run_due()
    bench.pacer.ended("observe", 0.3)
    assert bench.pacer.run_due() == pytest.approx(0.3)
    bench.pass_time(0.3)
    assert bench.poked == ["sweep", "observe", "observe"]


def test_a_sleep_is_bounded_and_never_negative(bench: Bench) -> None:
    """With nothing to wait for, or with something long due, the main thread still looks around."""
    assert bench.pacer.run_due() == LONGEST_SLEEP
    bench.pacer.ended("sweep", 3600)
    assert bench.pacer.run_due() == LONGEST_SLEEP
    bench.pacer.ended("sweep", -5)
    assert bench.pass_time(1) == LONGEST_SLEEP
    assert bench.poked == ["sweep", "sweep"]


def test_a_job_may_end_within_the_poke(bench: Bench) -> None:
    """The scheduler may run a short job to its end before the poke returns: no lock is held meanwhile."""
    pacer = Pacer(lambda name: pacer.ended(name, 7), lambda: None, lambda: bench.now)
    pacer.add("sweep")
    worker = threading.Thread(target=pacer.run_due, daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()
    assert pacer.idle("sweep")


def test_the_wall_clock_has_no_say() -> None:
    """The module reads the monotonic clock and no other: no datetime, no time.time."""
    tree = ast.parse(inspect.getsource(pacing))
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in read if name.startswith("time.")} == {"time.monotonic"}
    assert "datetime" not in imported


def test_a_waiting_job_may_be_put_off(bench: Bench) -> None:
    """It runs at the later moment; a moment before the planned one changes nothing."""
    bench.pacer.run_due()
    bench.pacer.ended("sweep", 1.0)
    bench.pacer.postpone("sweep", bench.now + 1.5)
    bench.pacer.postpone("sweep", bench.now + 0.5)
    bench.pass_time(1.4)
    assert bench.poked == ["sweep"]
    bench.pass_time(0.1)
    assert bench.poked == ["sweep", "sweep"]


def test_a_job_that_was_woken_or_runs_is_not_put_off(bench: Bench) -> None:
    """Nor is what follows the run in hand."""
    bench.pacer.run_due()
    bench.pacer.postpone("sweep", bench.now + 9)
    bench.pacer.ended("sweep", 1.0)
    bench.pacer.wake("sweep")
    bench.pacer.postpone("sweep", bench.now + 9)
    bench.pacer.run_due()
    assert bench.poked == ["sweep", "sweep"]
