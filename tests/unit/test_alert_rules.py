"""The shipped rules, without Prometheus: they ask for metrics that exist, and lead to a runbook that says something."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from curfew_daemon.metrics import LAG_BUCKETS, METRICS, Metrics
from tests.system.prometheus import shipped
from tests.system.prometheus.promql import matchers_of, metrics_of

ALERTS = shipped.alerts()
EXPRESSIONS = {rule.get("alert") or rule["record"]: rule["expr"] for rule in shipped.rules()}
LATE_AFTER = 2.5


def exported() -> set[str]:
    """Names of the daemon's own series, as it exports them."""
    return {
        sample.name
        for family in Metrics().registry.collect()
        for sample in family.samples
        if sample.name.startswith("curfew_")
    }


def label_values() -> dict[str, set[str]]:
    """The values that each label of ours takes."""
    values: dict[str, set[str]] = {"le": {str(float(bound)) for bound in LAG_BUCKETS} | {"+Inf"}}
    for metric in METRICS:
        for label, taken in metric.labels.items():
            values.setdefault(label, set()).update(map(str, taken))
    return values


def anchor(heading: str) -> str:
    """The anchor that Markdown viewers give to a heading of one word."""
    return heading.lower()


def test_the_catalogue_and_the_registry_name_the_same_metrics() -> None:
    """Every metric of the catalogue is exported under its name, histograms with their three suffixes."""
    expected = set()
    for metric in METRICS:
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        expected |= {metric.name + suffix for suffix in suffixes}
    assert exported() == expected


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_rule_asks_for_metrics_that_exist(name: str) -> None:
    """Every series in a rule is exported by the daemon or recorded by another rule."""
    assert metrics_of(EXPRESSIONS[name]) <= exported() | set(shipped.recorded())


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_rule_selects_label_values_that_exist(name: str) -> None:
    """A bucket, state or outcome in a rule is one that the daemon exports."""
    values = label_values()
    for label, operator, value in matchers_of(EXPRESSIONS[name]):
        assert label == "job" or (operator in {"=", "!="} and value in values[label]), (label, value)


@pytest.mark.parametrize("name", shipped.recorded())
def test_a_recorded_name_says_level_metric_and_operation(name: str) -> None:
    """Recording rules are called level:metric:operation, and a rate says its window."""
    level, metric, operation = name.split(":")
    assert (level, metric[:7]) == ("job", "curfew_")
    assert re.fullmatch(r"max|count|(ratio_)?rate\d+[mhd]", operation)
    if window := re.search(r"rate(\d+[mhd])$", operation):
        assert f"[{window[1]}]" in shipped.recorded()[name] or f"rate{window[1]}" in shipped.recorded()[name]


def test_every_recorded_series_is_used() -> None:
    """No rule records what no other rule asks for."""
    assert set(shipped.recorded()) <= set().union(*(metrics_of(expr) for expr in EXPRESSIONS.values()))


def test_late_means_the_same_everywhere() -> None:
    """Rules and dashboard draw the line at the same bucket, above the longest default poll interval."""
    texts = [*EXPRESSIONS.values(), *(expression.text for expression in shipped.dashboard_expressions())]
    bounds = {value for text in texts for label, _, value in matchers_of(text) if label == "le"}
    assert bounds == {str(LATE_AFTER)}
    assert LATE_AFTER in LAG_BUCKETS


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_where_to_read_on(name: str) -> None:
    """An alert has a severity, a summary, a description and the address of its section of the runbook."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(text.strip() for text in rule["annotations"].values())
    prefix = "{{ with $externalLabels.curfewd_runbook }}{{ . }}{{ else }}deploy/RUNBOOK.md{{ end }}"
    assert rule["annotations"]["runbook_url"] == f"{prefix}#{anchor(name)}"


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else() -> None:
    """Sections and alerts are the same, in the same order; so is the table at the top, with their severities."""
    assert list(shipped.runbook_sections()) == list(ALERTS)
    table = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \|", shipped.RUNBOOK.read_text(), re.MULTILINE)
    assert table == [(name, anchor(name), rule["labels"]["severity"]) for name, rule in ALERTS.items()]


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    """Every section has its three parts, in this order, and something to run or to ask."""
    section = shipped.runbook_sections()[name]
    parts = re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE)
    assert parts == ["What it means.", "First look.", "What to do."]
    assert "```" in section


def test_links_within_the_runbook_lead_somewhere() -> None:
    """Every anchor that the runbook links to is one of its headings."""
    links = set(re.findall(r"\]\(#([\w-]+)\)", shipped.RUNBOOK.read_text(encoding="utf-8")))
    assert links <= {anchor(heading) for heading in shipped.runbook_sections()}


def rule_tests() -> list[dict[str, Any]]:
    return [test for path in shipped.RULE_TESTS for test in shipped.load(path)["tests"]]


@pytest.mark.parametrize("name", ALERTS)
def test_a_rule_test_shows_an_alert_silent_then_firing_then_resolved(name: str) -> None:
    """For every alert some test of promtool expects it silent, later firing, and later silent again."""
    stories = []
    for test in rule_tests():
        checks = [check for check in test["alert_rule_test"] if check["alertname"] == name]
        stories.append("".join("F" if check["exp_alerts"] else "s" for check in checks))
    assert any(re.search("s+F+s", story) for story in stories), stories


def test_no_group_is_called_like_another() -> None:
    """Names of groups are unique over all files, and the rule tests name them all in their order."""
    names = [group["name"] for path in shipped.RULE_FILES for group in shipped.load(path)["groups"]]
    assert len(set(names)) == len(names)
    for path in shipped.RULE_TESTS:
        assert set(shipped.load(path)["group_eval_order"]) == set(names)


def test_the_scrape_configuration_names_jobs_that_the_rules_know() -> None:
    """The example's job, and those that its comments promise, match the pattern of the alert on missing daemons."""
    patterns = {value for label, _, value in matchers_of(ALERTS["CurfewDaemonDown"]["expr"]) if label == "job"}
    assert len(patterns) == 1
    pattern = re.compile(patterns.pop())
    jobs = [job["job_name"] for job in shipped.load(shipped.PROMETHEUS / "scrape.yml")["scrape_configs"]]
    assert jobs == ["curfewd"]
    assert all(pattern.fullmatch(job) for job in [*jobs, "curfewd-billing", "monitoring/curfewd"])
    assert not any(pattern.fullmatch(job) for job in ["curfewdish", "node", "mycurfewd"])


@pytest.mark.parametrize("path", sorted(shipped.PROMETHEUS.rglob("*.yml")), ids=lambda path: path.name)
def test_no_mapping_names_a_key_twice(path: Any) -> None:
    """YAML keeps the last of two equal keys and says nothing."""

    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), (path, keys)
        children = node.value if isinstance(node.value, list) else []
        for child in children:
            for each in child if isinstance(child, tuple) else (child,):
                check(each)

    node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    assert node is not None
    check(node)
