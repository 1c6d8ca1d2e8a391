"""The status page in a real browser: what a reader sees, what a screen reader is told, and what moves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curfew_daemon.results import DatabaseState
from tests.conftest import Database
from tests.e2e.daemon_process import DaemonProcess
from tests.integration.contract.rows import Rows
from tests.servers import migrated_server
from tests.system.status.browser import Browser
from tests.system.status.scenes import SCENES, backlog, database_down, on_time, served

pytestmark = pytest.mark.system

WINDOWS = {
    "desk-light": (1180, "light"),
    "desk-dark": (1180, "dark"),
    "phone-light": (390, "light"),
    "phone-dark": (390, "dark"),
}
LIVE: dict[str, Any] = {"CURFEW_OBSERVE_INTERVAL": "0.5", "CURFEW_OBSERVE_BUDGET": "0.5"}


def violations(chromium: Browser, axe: str) -> list[str]:
    """What every rule of axe-core objects to, those that are best practice and the enhanced ones included."""
    chromium.evaluate(axe)
    found: dict[str, Any] = json.loads(
        chromium.evaluate("axe.run(document, {resultTypes: ['violations']}).then(JSON.stringify)")
    )
    return [
        f"{rule['id']}: {node['html']} {node.get('failureSummary')}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_accessible_and_fits(chromium: Browser, axe: str, name: str, window: str) -> None:
    """No rule is broken, contrast included; nothing sticks out at the side; the policy blocks nothing of ours.

    With SCREENSHOTS set to a folder, a picture of each is left there.
    """
    width, scheme = WINDOWS[window]
    with served(SCENES[name]()) as url:
        chromium.look(width=width, scheme=scheme, scale=2 if width < 600 else 1)
        chromium.open(f"{url}/")
        assert chromium.evaluate("document.documentElement.scrollWidth") == width
        assert violations(chromium, axe) == []
        assert [entry["entry"]["text"] for entry in chromium.events("Log.entryAdded")] == []
        assert {each["request"]["url"] for each in chromium.events("Network.requestWillBeSent")} <= {
            f"{url}/",
            "data:,",
        }
        if folder := os.environ.get("SCREENSHOTS"):
            chromium.screenshot(Path(folder) / f"{name}-{window}.png")


def test_every_link_and_list_is_reached_by_keyboard(chromium: Browser) -> None:
    """Tab leads through the lists, which can be scrolled, and the links; what has the focus is outlined."""
    with served(backlog()) as url:
        chromium.look(width=390)
        chromium.open(f"{url}/")
        reached = []
        for _ in range(6):
            chromium.press("Tab")
            at = "document.activeElement"
            name = chromium.evaluate(f"{at}.getAttribute('href') ?? {at}.getAttribute('aria-labelledby')")
            outline = chromium.evaluate(f"getComputedStyle({at}).outline")
            assert "solid 2px" in outline, name
            reached.append(name)
    assert reached == ["overdue", "newest", "/status.json", "/metrics", "/healthz", "/readyz"]


def test_the_page_moves_without_flicker(chromium: Browser) -> None:
    """What changed is replaced where it stands: the same nodes, the same focus, the same selection."""
    scene = on_time()
    with served(scene) as url:
        chromium.look(width=1180)
        chromium.open(f"{url}/")
        chromium.evaluate(
            """
            window.kept = [...document.querySelectorAll('h2, td, rect, dd, nav a')];
            document.querySelector('nav a').focus();
            getSelection().selectAllChildren(document.querySelector('td.id'));
            window.selected = getSelection().toString();
            window.removed = 0;
            new MutationObserver((all) => { for (const each of all) removed += each.removedNodes.length; })
              .observe(document.querySelector('main'), {subtree: true, childList: true});
            """
        )
        before = chromium.evaluate("document.querySelector('.when time').textContent")
        scene.moment += 1.0
        chromium.wait(f"document.querySelector('.when time').textContent !== {json.dumps(before)}")
        assert chromium.evaluate("kept.every((node) => node.isConnected)")
        assert chromium.evaluate("removed") == 0
        assert chromium.evaluate("document.activeElement === document.querySelector('nav a')")
        assert chromium.evaluate("getSelection().toString() === selected && selected.length === 36")


def test_a_change_of_state_reaches_an_open_page(chromium: Browser) -> None:
    """Without a reload, in the title too; the database's return takes the notice away again."""
    scene = on_time()
    with served(scene) as url:
        chromium.look(width=1180)
        chromium.open(f"{url}/")
        scene.board.database(DatabaseState.STANDBY)
        chromium.wait("document.querySelector('.notice:not([hidden])')")
        assert "Database: standby" in chromium.text()
        assert chromium.evaluate("document.title").startswith("Database down")
        scene.board.database(DatabaseState.UP)
        chromium.wait("!document.querySelector('.notice:not([hidden])')")
        assert chromium.evaluate("document.title").startswith("On time")


def test_a_daemon_that_no_longer_answers_is_told(chromium: Browser) -> None:
    """The page stays and says from when it is."""
    with served(on_time()) as url:
        chromium.look(width=1180)
        chromium.open(f"{url}/")
        chromium.wait("performance.getEntriesByType('resource').length > 0")
        assert chromium.evaluate("document.getElementById('connection').hidden")
    chromium.wait("!document.getElementById('connection').hidden")
    assert "This daemon no longer answers. Below is what it last said, at " in chromium.text()
    assert "Lag now" in chromium.text()


def test_it_is_read_without_script(chromium: Browser) -> None:
    """Everything is in the first answer; only the reload is left to the reader."""
    chromium.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        with served(database_down()) as url:
            chromium.open(f"{url}/")
            tree = chromium.send("Accessibility.getFullAXTree")["nodes"]
    finally:
        chromium.send("Emulation.setScriptExecutionDisabled", value=False)
    names = {node["name"]["value"] for node in tree if node.get("name", {}).get("value")}
    assert {"Lag now", "Reload for newer facts.", "Database: unreachable"} <= names


# A real daemon on a real database


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    seen = Rows(database.url)
    yield seen
    seen.close()


def shot(chromium: Browser, name: str) -> None:
    """A picture, if anybody wants it."""
    if folder := os.environ.get("SCREENSHOTS"):
        chromium.screenshot(Path(folder) / f"{name}.png")


def test_a_daemon_at_work(chromium: Browser, axe: str, database: Database, rows: Rows) -> None:
    """A run that falls due while somebody looks appears, marked within milliseconds, with the page never reloaded."""
    with DaemonProcess(database.conninfo, **LIVE) as daemon:
        daemon.wait_up()
        chromium.look(width=1180)
        chromium.open(f"{daemon.url}/")
        chromium.evaluate("window.stayed = true")
        chromium.wait("document.querySelector('.daemons .self')")
        run = rows.insert(timeout_at_utc="now() + interval '2 seconds'")
        chromium.wait(f"document.body.innerText.includes('{run}')")
        assert chromium.evaluate("window.stayed")
        assert chromium.evaluate("document.querySelector('.verdict strong').textContent") == "On time"
        assert chromium.evaluate("document.querySelector('.number .unit').textContent") == "ms"
        assert violations(chromium, axe) == []
        shot(chromium, "live-on-time")


def test_a_hundred_thousand_overdue(chromium: Browser, axe: str, database: Database, rows: Rows) -> None:
    """Held by somebody, so that no daemon can mark them: late, counted to the bound, the longest listed as stuck."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc) SELECT gen_random_uuid(),"
        " gen_random_uuid(), 'trigger', now() - n * interval '20 ms' FROM generate_series(1, 100000) n"
    )
    hold = rows.held("SELECT 1 FROM flow_run_controls FOR UPDATE")
    with hold, DaemonProcess(database.conninfo, **LIVE) as daemon:
        chromium.look(width=1180, scheme="dark")
        chromium.open(f"{daemon.url}/")
        chromium.wait("document.querySelectorAll('td em').length === 10")
        assert "More than 10,000 overdue: counting stops there." in chromium.text()
        assert chromium.evaluate("document.querySelector('.verdict strong').textContent") == "Late"
        assert violations(chromium, axe) == []
        shot(chromium, "live-backlog")


def test_the_database_goes_down(chromium: Browser, axe: str) -> None:
    """An open page says so within seconds, keeps what was known, greyed and with its age, and recovers by itself."""
    with migrated_server() as own, DaemonProcess(own.url(), **LIVE) as daemon:
        daemon.wait_up()
        chromium.look(width=1180)
        chromium.open(f"{daemon.url}/")
        chromium.wait("document.querySelector('.daemons .self')")
        own.halt()
        chromium.wait("document.querySelector('.notice:not([hidden])')")
        assert "last known" in chromium.text()
        assert "Nothing was overdue." in chromium.text()
        assert chromium.evaluate("document.querySelectorAll('.stale').length") == 6
        assert violations(chromium, axe) == []
        shot(chromium, "live-database-down")
        own.resume()
        chromium.wait("!document.querySelector('.notice:not([hidden])') && !document.querySelector('.stale')")


def test_behind_a_pooler(chromium: Browser, pooled: str) -> None:
    """The daemons are not guessed from the pooler's sessions; all else is there."""
    with DaemonProcess(pooled, **LIVE) as daemon:
        daemon.wait_up()
        chromium.open(f"{daemon.url}/")
        chromium.wait("document.body.innerText.includes('Nothing is overdue.')")
        assert "This daemon reaches the database through a pooler" in chromium.text()
        assert chromium.evaluate("document.querySelector('.daemons')") is None


def test_a_frozen_daemon_is_told(chromium: Browser, database: Database) -> None:
    """A process that is stopped answers nobody; the page waits for it no longer than five seconds."""
    with DaemonProcess(database.conninfo, **LIVE) as daemon:
        daemon.wait_up()
        chromium.open(f"{daemon.url}/")
        daemon.signal(signal.SIGSTOP)
        chromium.wait("!document.getElementById('connection').hidden")
        daemon.signal(signal.SIGCONT)
        chromium.wait("document.getElementById('connection').hidden")
