"""The path of deploy/README.md under systemd, from nothing to a daemon that is scraped and alerted on."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.system.prometheus.shipped import rules
from tests.system.systemd.machine import DAEMON, Machine, booted
from tests.system.systemd.readme import FOLDER, commands

pytestmark = pytest.mark.system

DEPLOY = FOLDER.parent
FIRES_WITHIN = 180.0
"""Seconds: two scrapes, the minute for which the alert waits, and room for a loaded machine."""


class Operator:
    """Types the commands of the pages, in the folder of each page, on one machine."""

    def __init__(self, machine: Machine, password: str) -> None:
        self._machine = machine
        self._password = password

    def follow(self, page: str, block: str, *, stdin: str = "") -> str:
        """Run a block as written, but for the host of the database and what the server asks for; returns its output."""
        session = (
            f"export PGHOST=/run/database PGUSER=postgres PGPASSWORD={self._password} PATH=$PATH:/opt/curfewd/bin\n"
        )
        done = self._machine.system.run(
            "sh",
            "-eu",
            "-c",
            session + block.replace("@db.example.com/", "@%2Frun%2Fdatabase/"),
            stdin=stdin,
            cwd=f"/srv/deploy/{page}",
        )
        return done.stdout

    def ask_prometheus(self, endpoint: str, **parameters: str) -> Any:
        """What its API answers."""
        url = f"http://127.0.0.1:9090/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        answer = self._machine.system.run("curl", "-sS", url, check=False).stdout
        return json.loads(answer)["data"] if answer.startswith("{") else None

    def value(self, expression: str) -> str | None:
        """The value of the only sample of a query."""
        samples = (self.ask_prometheus("query", query=expression) or {"result": []})["result"]
        return str(samples[0]["value"][1]) if len(samples) == 1 else None

    def health_of_rules(self) -> dict[str, int]:
        """How many rules it has, by their health."""
        groups = (self.ask_prometheus("rules") or {"groups": []})["groups"]
        return dict(Counter(rule["health"] for group in groups for rule in group["rules"]))

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = (self.ask_prometheus("alerts") or {"alerts": []})["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


def set_passwords(machine: Machine, password: str) -> None:
    """What an operator does with \\password, between the first command for the roles and the second."""
    with psycopg.connect(machine.server.url("app"), autocommit=True) as connection:
        for account in ("curfew_migrator", "curfew_daemon"):
            connection.execute(f"ALTER ROLE {account} PASSWORD '{password}'")


def test_from_nothing_to_scraped_and_alerting(wheels: Path) -> None:
    """Every command copied as written: a daemon with the least rights marks, is scraped, and is missed when gone."""
    with booted(wheels, {DEPLOY: "/srv/deploy"}) as machine:
        system, password = machine.system, machine.server_password
        operator = Operator(machine, password)
        program, settings, check, service = commands("Install")
        operator.follow("systemd", program)

        roles, migrate, grants = commands("Set up", DEPLOY / "postgres" / "README.md")[0].splitlines()
        operator.follow("postgres", roles)
        set_passwords(machine, password)
        operator.follow("postgres", migrate)
        operator.follow("postgres", grants)

        url = f"postgresql://curfew_daemon:{password}@/app?host=/run/database"
        operator.follow("systemd", settings, stdin=f"{url}\n")
        without_migrate = re.sub(r"^.*curfewd migrate\n", "", check, flags=re.MULTILINE)
        assert without_migrate != check
        operator.follow("systemd", without_migrate)
        operator.follow("systemd", service)
        system.wait_shown(DAEMON, "StatusText", "database: up")
        machine.wait_marked(machine.overdue_run())

        (scrape,) = commands("On Debian", DEPLOY / "prometheus" / "README.md")
        operator.follow("prometheus", scrape)
        system.wait(lambda: operator.value('up{job="curfewd"}'), "1", patience=60)
        system.wait(lambda: operator.value('curfew_runs_timed_out_total{job="curfewd"}'), "1", patience=60)
        system.wait(operator.health_of_rules, {"ok": len(rules())}, patience=60)
        assert operator.firing() == set()

        system.run("systemctl", "stop", DAEMON)
        system.wait(lambda: "CurfewDaemonDown" in operator.firing(), True, patience=FIRES_WITHIN)
        system.run("systemctl", "start", DAEMON)
        system.wait(lambda: "CurfewDaemonDown" in operator.firing(), False, patience=FIRES_WITHIN)
