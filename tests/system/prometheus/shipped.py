"""What `deploy/` ships for Prometheus and Grafana, read as data, for the tests with and without Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARD = DEPLOY / "grafana" / "curfewd.json"
RUNBOOK = DEPLOY / "RUNBOOK.md"

# What Grafana puts in for its variables. Its rate interval is at least four scrapes.
GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+"}


class Expression(NamedTuple):
    """A PromQL expression of the dashboard as Prometheus gets it, and where it stands."""

    place: str
    text: str


def load(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    """Every rule, recording or alerting, of every rule file."""
    return [rule for path in RULE_FILES for group in load(path)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """The expressions of the recording rules by the name that they record."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that show something: all but the headings of the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> Iterator[Expression]:
    """Every expression of the dashboard, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield Expression(f"{panel['title']} / {target['refId']}", _filled(target["expr"]))
    for annotation in dashboard()["annotations"]["list"]:
        yield Expression(f"annotation {annotation['name']}", _filled(annotation["expr"]))


def runbook_sections() -> dict[str, str]:
    """The text of the runbook's sections by heading."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def runbook_code(language: str) -> list[str]:
    """The code blocks of the runbook in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _filled(expression: str) -> str:
    for variable, value in GRAFANA_VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression
