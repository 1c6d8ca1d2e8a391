"""A real Prometheus scrapes a real daemon: alerts fire and resolve, and every panel has something to show."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import psycopg
import pytest

from curfew_store.testing import DatabaseTemplate
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.system.prometheus import shipped
from tests.system.prometheus.server import Prometheus

pytestmark = pytest.mark.system

LATE = 20
"""More than the ten late marks below which nobody is woken."""


@dataclass(frozen=True)
class Monitored:
    """A daemon on a database of its own, and the Prometheus that watches it."""

    url: str
    conninfo: str
    daemon: DaemonProcess
    prometheus: Prometheus

    def arm(self, count: int, *, first: float, last: float) -> None:
        """Runs whose deadlines are spread evenly from *first* to *last*, in seconds from now."""
        with psycopg.connect(self.conninfo) as conn:
            conn.execute(
                "INSERT INTO flow_run_controls (run_id, timeout_at_utc)"
                " SELECT gen_random_uuid(), now() + make_interval(secs => %s + (%s - %s) * n / %s::float)"
                " FROM generate_series(1, %s) AS n",
                [first, last, first, count, count],
            )

    def wait_overdue(self, seconds: float) -> None:
        """Return when the newest run that is armed and will have been due has been so for *seconds*."""
        with psycopg.connect(self.conninfo) as conn:
            conn.execute(
                "SELECT pg_sleep(greatest(0, extract(epoch FROM max(timeout_at_utc) - now()) + %s))"
                " FROM flow_run_controls WHERE timed_out_at_utc IS NULL AND timeout_at_utc < now() + interval '1 min'",
                [seconds],
            )

    def marked(self) -> int:
        """Runs that Prometheus knows to have timed out."""
        samples = self.prometheus.query("sum(curfew_runs_timed_out_total)")
        return int(float(samples[0]["value"][1])) if samples else 0

    def wait_marked(self, count: int) -> None:
        """Return once Prometheus knows of *count* marks."""
        self.prometheus.wait_until(f"{count} runs marked", lambda: self.marked() >= count)


@pytest.fixture(scope="module")
def monitored(curfew_database: DatabaseTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Scraped since before its first marks, which were in time."""
    name = curfew_database.create()
    url, conninfo = curfew_database.server.sqlalchemy_url(name), curfew_database.server.url(name)
    try:
        with DaemonProcess(url, CURFEW_RETENTION="1d") as daemon:  # the panels of the purge have something to show
            daemon.wait_up()
            target = daemon.url.removeprefix("http://")
            with Prometheus(tmp_path_factory.mktemp("prometheus"), target) as prometheus:
                system = Monitored(url, conninfo, daemon, prometheus)
                prometheus.wait_until("scraped twice", lambda: scrapes(prometheus) >= 2)
                system.arm(50, first=1.5, last=2.5)
                system.arm(1, first=3600, last=3600)
                system.wait_marked(50)
                yield system
    finally:
        curfew_database.drop(name)


def scrapes(prometheus: Prometheus) -> int:
    """How often the daemon has been scraped."""
    samples = prometheus.query("count_over_time(curfew_build_info[1h])")
    return int(samples[0]["value"][1]) if samples else 0


EXPRESSIONS = list(shipped.dashboard_expressions())


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_a_panel_has_something_to_show(monitored: Monitored, expression: shipped.Expression) -> None:
    """Every expression of the dashboard is answered, now and over a range, with at least one number."""
    monitored.prometheus.wait_until(
        f"a number for {expression.text}",
        lambda: any(not isnan(float(sample["value"][1])) for sample in monitored.prometheus.query(expression.text)),
    )
    series = monitored.prometheus.query_range(expression.text, seconds=10)
    assert any(not isnan(float(value)) for each in series for _, value in each["values"])


def test_a_stopped_daemon_is_reported_and_so_are_the_deadlines_that_it_missed(monitored: Monitored) -> None:
    """Stopped: no daemon answers. Resumed: what it marks late raises the alert, which ends when marks are in time."""
    prometheus = monitored.prometheus
    assert not {"CurfewDaemonDown", "CurfewDeadlinesLate"} & set(prometheus.firing())

    monitored.daemon.signal(signal.SIGSTOP)
    try:
        monitored.arm(LATE, first=0.1, last=0.5)
        down = prometheus.wait_firing("CurfewDaemonDown")
        monitored.wait_overdue(3)
        assert "CurfewDeadlinesLate" not in prometheus.firing()  # nobody has marked, nobody can see the table
    finally:
        monitored.daemon.signal(signal.SIGCONT)
    assert down["summary"] == "No curfewd daemon answers (curfewd)"
    late = prometheus.wait_firing("CurfewDeadlinesLate")
    assert late["summary"] == "Deadlines are enforced late (curfewd)"
    assert late["runbook_url"] == "deploy/RUNBOOK.md#curfewdeadlineslate"
    assert "of the last hour's marks came later" in late["description"]
    prometheus.wait_resolved("CurfewDaemonDown")

    # Enough marks in time for the late ones to be a small share again: 20 of 8,000 is 0.25 %.
    monitored.arm(8_000, first=2, last=6)
    prometheus.wait_resolved("CurfewDeadlinesLate")


@pytest.mark.parametrize("query", shipped.runbook_code("sql"), ids=lambda query: " ".join(query.split())[:40])
def test_the_sql_of_the_runbook_runs(monitored: Monitored, query: str) -> None:
    """Every statement that the runbook gives is accepted, and the runs stay as they are."""
    with psycopg.connect(monitored.conninfo, autocommit=True) as conn:
        conn.execute(query.encode())
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_the_query_for_held_runs_shows_those_and_no_others(monitored: Monitored) -> None:
    """A run whose row somebody holds locked is listed while it is overdue; one that is free is not."""
    (query,) = [each for each in shipped.runbook_code("sql") if "SKIP LOCKED" in each]
    select = query.removeprefix("BEGIN;\n").removesuffix("ROLLBACK;\n")
    monitored.daemon.signal(signal.SIGSTOP)
    try:
        with psycopg.connect(monitored.conninfo) as holder, psycopg.connect(monitored.conninfo) as asking:
            held, _free = [
                holder.execute(
                    "INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (gen_random_uuid(), now())"
                    " RETURNING run_id"
                ).fetchone()
                for _ in range(2)
            ]
            holder.commit()
            assert held is not None
            holder.execute("SELECT FROM flow_run_controls WHERE run_id = %s FOR UPDATE", held)
            assert [row[0] for row in asking.execute(select.encode())] == [held[0]]
    finally:
        monitored.daemon.signal(signal.SIGCONT)


COMMANDS = sorted({line for block in shipped.runbook_code("sh") for line in block.splitlines()})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_runbook_runs(monitored: Monitored, command: str) -> None:
    """Every command that the runbook gives ends well where nothing is wrong."""
    program, *arguments = shlex.split(command)
    assert program == "curfewd"
    done = curfewd(*arguments, CURFEW_DATABASE_URL=monitored.url)
    assert done.returncode == os.EX_OK, done.stderr
