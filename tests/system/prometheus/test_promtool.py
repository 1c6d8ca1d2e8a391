"""Promtool on what is shipped: rules, their tests, the scrape configuration, the page, the dashboard."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import Database
from tests.e2e.daemon_process import DaemonProcess
from tests.system.prometheus import shipped

pytestmark = pytest.mark.system


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What promtool says; fails with it unless promtool is content."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    """Every rule file is valid, with duplicate rules counting as errors."""
    said = promtool("check", "rules", "--lint-fatal", *shipped.RULE_FILES)
    assert said.count("SUCCESS") == len(shipped.RULE_FILES) == 2


@pytest.mark.parametrize("path", shipped.RULE_TESTS, ids=lambda path: path.name)
def test_every_alert_fires_stays_silent_and_resolves(path: Path) -> None:
    """The rule tests beside the rules pass."""
    assert "SUCCESS" in promtool("test", "rules", path)


def test_promtool_accepts_the_scrape_configuration() -> None:
    """The example is a whole configuration that finds the rule files beside it."""
    said = promtool("check", "config", shipped.PROMETHEUS / "scrape.yml")
    assert "2 rule files found" in said


def test_promtool_accepts_the_page_of_a_real_daemon(database: Database) -> None:
    """Names, types and help texts of the page follow Prometheus' conventions, after marks as well as before."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (gen_random_uuid(), now())")
    with DaemonProcess(database.url) as daemon:
        daemon.wait_page("/metrics", 200, "curfew_runs_timed_out_total 1.0")
        assert promtool("check", "metrics", text=daemon.get("/metrics")[1]) == ""


def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    """Each expression parses once Grafana's variables are filled in."""
    expressions = list(shipped.dashboard_expressions())
    rules = [{"record": f"dashboard:{number}", "expr": each.text} for number, each in enumerate(expressions)]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"{len(expressions)} rules found" in promtool("check", "rules", path)
