"""The shipped dashboard, without Grafana: it answers in order, every panel explains itself, and metrics exist."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from curfew_daemon.metrics import METRICS
from tests.system.prometheus import shipped
from tests.system.prometheus.promql import matchers_of, metrics_of
from tests.unit.test_alert_rules import exported, label_values

QUESTIONS = ["Are deadlines met?", "How late?", "How many?", "By which daemon?", "Is the database well?"]
COLUMNS = 24
EXPRESSIONS = list(shipped.dashboard_expressions())
PANELS = shipped.panels()


def by_title(panel: Any) -> str:
    return str(panel["title"])


def area(panel: dict[str, Any]) -> set[tuple[int, int]]:
    """The cells of the grid that a panel covers."""
    grid = panel["gridPos"]
    rows = range(grid["y"], grid["y"] + grid["h"])
    return set(itertools.product(range(grid["x"], grid["x"] + grid["w"]), rows))


def test_the_rows_answer_the_questions_in_order() -> None:
    """Are deadlines met, how late, how many, by which daemon, is the database well: each with panels of its own."""
    rows = sorted((p for p in shipped.dashboard()["panels"] if p["type"] == "row"), key=lambda p: p["gridPos"]["y"])
    assert [row["title"] for row in rows] == QUESTIONS
    edges = [row["gridPos"]["y"] for row in rows] + [10_000]
    for above, below in itertools.pairwise(edges):
        assert any(above < panel["gridPos"]["y"] < below for panel in PANELS)


def test_identifiers_are_fixed_and_unique() -> None:
    """The dashboard has a fixed uid and no database id; the panels' ids are unique."""
    board = shipped.dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert board["uid"] == "curfewd"
    assert "id" not in board
    assert len(set(ids)) == len(ids)
    assert board["schemaVersion"] >= 39


def test_no_panel_lies_on_another() -> None:
    """Panels neither overlap nor leave the grid, and no two share a title."""
    panels = shipped.dashboard()["panels"]
    for one, other in itertools.combinations(panels, 2):
        assert not area(one) & area(other), (one["title"], other["title"])
    assert all(0 <= x < COLUMNS for panel in panels for x, _ in area(panel))
    assert len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Every panel has a description, a unit, and takes its data from the chosen source."""
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    for holder in (panel, *panel["targets"]):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_the_variables_are_the_source_and_the_job() -> None:
    """The source and the scrape jobs can be chosen; nothing else is asked."""
    variables = {each["name"]: each for each in shipped.dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job"]
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["job"]["definition"] == "label_values(curfew_build_info, job)"


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_an_expression_asks_for_what_is_exported(expression: shipped.Expression) -> None:
    """Every series of the dashboard is exported by the daemon itself: it needs no recording rule."""
    assert "$" not in expression.text
    assert metrics_of(expression.text) <= exported()
    values = label_values()
    for label, operator, value in matchers_of(expression.text):
        if label in values:
            assert operator in {"=", "!="}
            assert value in values[label]


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_heeds_the_chosen_job(panel: dict[str, Any]) -> None:
    """Every selector of the daemon's series is bound to the job that was chosen."""
    for target in panel["targets"]:
        selectors = re.findall(r"\b(?:curfew_\w+|up)\b(\S*)", target["expr"])
        assert selectors
        assert all(selector.startswith('{job=~"$job"') for selector in selectors)


def test_every_metric_that_says_how_it_goes_is_shown() -> None:
    """Each metric of the catalogue stands in the dashboard, but for those that qualify or repeat another."""
    shown = set().union(*(metrics_of(expression.text) for expression in EXPRESSIONS))
    qualify = {"curfew_overdue_runs_capped", "curfew_armed_runs_capped", "curfew_loop_heartbeat_timestamp_seconds"}
    missing = {m.name for m in METRICS if not any(name.startswith(m.name) for name in shown)}
    assert missing == qualify
