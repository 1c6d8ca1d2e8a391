"""The laboratory's papers: the schedule follows from the seed, and the page says what the recorded runs say."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults import report, results
from tests.faults.campaign import Campaign, Outcome, run
from tests.faults.checker import TITLES as PROMISES
from tests.faults.kinds import KINDS, STAGES, TITLES, chosen
from tests.faults.lab import Kind, Lab, LabOptions
from tests.faults.nemesis import GROUP, LIGHT_TURNS, Nemesis, Struck, digest_of, schedule
from tests.faults.strikes import NEEDS, Strike, Violation, now


def struck(code: str, recovery: float, *found: Violation) -> Struck:
    kind = next(kind for kind in KINDS if kind.code == code)
    return Struck(kind, Strike(code, now(), now(), "something", found=found), recovery)


def recorded(seed: int = 7) -> dict[str, Any]:
    """The data of a run with three strikes and one violation."""
    violation = Violation("I14", "it outlived SIGTERM", code="F7")
    outcome = Outcome(struck=[struck("F1", 0.2), struck("F1", 0.4), struck("F7", 1.0, violation)])
    outcome.violations.append(violation)
    return results.as_data(Campaign(KINDS, seed, 60), outcome, KINDS)


def test_the_page_says_what_the_recorded_runs_say() -> None:
    """tests/README.md holds what `make faults-report` makes of the results: the lists alone, where there are none."""
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_section(page, report.section(report.loaded())) == page, "run: make faults-report"


def test_the_recorded_runs_are_as_many_and_as_mixed_as_they_should_be() -> None:
    """Two thousand faults, every one often, none too often; no promise broken and no lab lost."""
    runs = report.loaded()
    times = Counter({code: sum(run["faults"].get(code, {"times": 0})["times"] for run in runs) for code in TITLES})
    heavy = {code for code in TITLES if all(kind.heavy for kind in KINDS if kind.code == code)}
    assert {code: often for code, often in times.items() if often < (5 if code in heavy else 20)} == {}
    assert times.total() >= 2_000
    assert max(times.values()) <= 0.15 * times.total()
    assert [run["seed"] for run in runs if run["labs_lost"] or any(run["violations"].values())] == []


def test_a_seed_plans_the_same_strikes_again() -> None:
    """Kinds, order and details follow from the seed, and another seed plans another run."""
    assert digest_of(schedule(KINDS, 1), 200) == digest_of(schedule(KINDS, 1), 200)
    assert digest_of(schedule(KINDS, 1), 200) != digest_of(schedule(KINDS, 2), 200)


def test_no_fault_is_more_than_its_share_of_a_long_run() -> None:
    """No kind is more than 15 % of the strikes of its stage that has enough kinds for that, and each has its turn."""
    plain = [kind for kind in KINDS if kind.stage == "plain"]
    planned = [each.kind for each in itertools.islice(schedule(plain, 3), 1_000)]
    codes = Counter(kind.code for kind in planned)
    assert max(codes.values()) <= 150
    assert set(planned) == set(plain)


def test_strikes_that_may_overlap_come_together() -> None:
    """One alone waits for those before it; between groups come those alone, and a round has all of its turns."""
    plain = [kind for kind in KINDS if kind.stage == "plain"]
    round_of = sum(1 if kind.heavy else LIGHT_TURNS for kind in plain)
    planned = [each.kind for each in itertools.islice(schedule(plain, 3), round_of)]
    assert Counter(planned) == {kind: 1 if kind.heavy else LIGHT_TURNS for kind in plain}
    groups = [len(list(group)) for alone, group in itertools.groupby(planned, lambda kind: kind.alone) if not alone]
    assert min(groups) >= GROUP - 2


def test_a_lab_that_is_lost_fails_the_run_and_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was struck elsewhere is judged and counted all the same; the result names the lab and the reason."""

    @contextmanager
    def unopened(_options: LabOptions) -> Iterator[Lab]:
        raise TimeoutError("not ready")
        yield

    monkeypatch.setitem(STAGES, "plain", unopened)
    plan = Campaign(chosen("kill"), 1, 60)
    outcome = run(plan, lambda _: None)
    data = results.as_data(plan, outcome, KINDS)
    assert data["labs_lost"] == ["plain, schedule 10000: TimeoutError: not ready"]
    said = results.shown(data)
    assert "LOST LAB plain" in said
    assert "faults: FAIL" in said


def test_a_campaign_takes_no_longer_than_it_was_given() -> None:
    """Time is shared out among the stages, and a long share among labs."""
    labs = Campaign(KINDS, 1, 3600).plan()
    assert sum(seconds for *_, seconds in labs) == pytest.approx(3600)
    assert len({seed for _, _, seed, _ in labs}) == len(labs)


def test_every_kind_is_known_to_the_table_by_code_name_and_needs() -> None:
    """Codes are those of the list, names are unique, and needs have their words."""
    assert {kind.code for kind in KINDS} <= TITLES.keys()
    assert max(Counter(kind.name for kind in KINDS).values()) == 1
    assert all(kind.needs <= NEEDS for kind in KINDS)


def test_kinds_are_chosen_by_code_or_name() -> None:
    """A code chooses all of its kinds, a name one; a word that nothing answers to is an error."""
    assert {kind.code for kind in chosen("F3")} == {"F3"}
    assert [kind.name for kind in chosen("crash, kill")] == ["kill", "crash"]
    with pytest.raises(ValueError, match="no such fault: F99"):
        chosen("F1,F99")


def test_a_result_says_what_was_injected_and_why_the_rest_was_not(tmp_path: Path) -> None:
    """Counts, recovery and violations by fault; a reason for every fault of the list that was not injected."""
    data = json.loads(results.write(recorded(), tmp_path).read_text())
    assert data["injected"] == 3
    assert data["faults"]["F1"] == {"times": 2, "recovery": [0.2, 0.4], "never_recovered": 0, "violations": 0}
    assert data["faults"]["F7"]["violations"] == 1
    assert data["faults"].keys() | data["not_injected"].keys() == TITLES.keys()
    assert data["violations"]["I14"] == 1
    assert "FAIL seed=7 injected=3" in results.shown(data)


def test_the_report_sums_up_runs(tmp_path: Path) -> None:
    """Times and violations are added, recovery is taken over all runs, and what was never injected says why."""
    for seed in (7, 8):
        results.write(recorded(seed), tmp_path)
    said = report.section(report.loaded(tmp_path))
    assert "**6 faults in 0 minutes of 2 runs, 0 calls, 0 marks: 2 violations.**" in said
    assert "| F1 | a daemon killed | 4 | 0.30 s | 0.40 s | 0 |" in said
    assert "| F2 | SIGTERM in the middle of a statement | 0: not chosen" in said
    assert "| I14 | every daemon lives, works again in time, and ends as documented | 2 |" in said


def test_faults_and_invariants_are_named_whether_there_are_runs_or_not() -> None:
    """The page is where the codes of both are explained, so it always lists all of them."""
    for runs in ([], [recorded()]):
        said = report.section(runs)
        for code, title in {**TITLES, **PROMISES}.items():
            assert f"| {code} | {title} |" in said


def test_a_page_without_markers_is_refused() -> None:
    """The report never writes into a page that has no place for it."""
    with pytest.raises(ValueError, match="the page has no"):
        report.with_section("# Tests\n", "said")


def test_a_strike_that_fails_is_counted_apart() -> None:
    """It is no fault survived, and does not end the run."""

    def fails(_lab: Lab, _rng: random.Random) -> Strike:
        raise OSError("no such tool")

    said: list[str] = []
    lab = cast("Lab", SimpleNamespace(pause=lambda _: None, say=said.append))
    botched: list[tuple[Kind, str]] = []
    kind = Kind("F1", "fails", "a fault that cannot be injected", fails)
    nemesis = Nemesis(lab, schedule([kind], 1), botched)
    assert nemesis.strike_for(60, most=3) == []
    assert [why for _, why in botched] == ["OSError: no such tool"] * 3
    assert nemesis.begun == 3
    assert "COULD NOT BE STRUCK" in said[0]
