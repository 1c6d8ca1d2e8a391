"""The page as bytes: what it says in each state, that nothing of others' is taken for markup, and its JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import curfew_daemon
from curfew_daemon.results import DatabaseState
from curfew_daemon.status import TableFacts
from curfew_store.daemon_sessions import DaemonSessions
from tests.system.status.scenes import (
    QUIET,
    SCENES,
    Scene,
    backlog,
    database_down,
    first_minute,
    fresh,
    on_time,
    served,
)

GUIDE = Path(curfew_daemon.__file__).parents[1] / "README.md"


def html(scene: Scene) -> str:
    """The page, with ordinary spaces."""
    return scene.page.render(False).decode().replace("\u202f", " ")


def words(scene: Scene) -> str:
    """What stands on the page, without markup, style, script and the pictures' hidden words."""
    text = re.sub(r"<(style|script|title)\b.*?</\1>", "", html(scene), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


def document(scene: Scene) -> dict[str, Any]:
    """The JSON."""
    return dict(json.loads(scene.page.render(True)))


# What it says


def test_nothing_overdue() -> None:
    """On time, with the lag, the counts, both kinds of source and no alarm."""
    said = words(on_time())
    assert "Lag now 4.9ms On time the greatest of the last two minutes" in said
    assert "Nothing is overdue." in said
    assert "Armed1,874" in said
    assert "from this daemon's memory" in said
    assert "database, 3 s ago" in said
    assert "last known" not in said


def test_a_hundred_thousand_overdue() -> None:
    """Late; a count that stopped says so, and what is stuck is named."""
    said = words(backlog())
    assert "2h 3min Late the oldest overdue run still waits" in said
    assert "Overdue10,000+" in said
    assert "More than 10,000 overdue: counting stops there. These 10 have waited longest." in said
    assert said.count("stuck") == 3


def test_the_database_down() -> None:
    """What is wrong, since when and what to do; what was known is called old, with its age."""
    scene = database_down()
    said = words(scene)
    assert "Database: unreachable for 2 min 14 s. This daemon enforces no deadline meanwhile. Check that" in said
    assert "database, last known 2 min 18 s ago" in said
    assert "how long the oldest overdue run had waited at the last reading" in said
    assert html(scene).count('class="stale"') == 6


def test_a_fresh_start() -> None:
    """No number is made up before the first answer."""
    said = words(fresh())
    assert "Lag now \N{EN DASH} Starting waiting for the first answer of the database" in said
    assert said.count("Not read yet.") == 3


def test_lists_switched_off_behind_a_pooler() -> None:
    """No id anywhere, and the page says what it cannot know."""
    scene = first_minute()
    scene.mark(5, lambda: 0.001)
    scene.observe(QUIET, scene.overdue(2, lambda place: 5.0), pooled=True)
    found = html(scene) + json.dumps(document(scene))
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-4", found)
    assert "The lists of runs are switched off." in found
    assert "through a pooler" in found
    assert document(scene)["table"]["daemons"] is None
    assert document(scene)["timed_out"]["newest"] is None


@pytest.mark.parametrize("state", list(DatabaseState))
def test_every_state_of_the_database_has_a_page(state: DatabaseState) -> None:
    """Each renders in both forms; all but one say that no deadline is enforced."""
    scene = on_time()
    scene.board.database(state)
    assert ("enforces no deadline" in words(scene)) is (state is not DatabaseState.UP)
    assert document(scene)["database"]["state"] == state


def test_a_reading_without_the_pages_own_queries_has_the_gauges() -> None:
    """The counts are there; what the queries would have told is said to be missing, and null for scripts."""
    scene = Scene()
    scene.board.database(DatabaseState.UP)
    scene.board.observed(replace(QUIET, overdue=3, oldest_overdue_age=61.0), None)
    said = words(scene)
    assert said.count("The database did not answer in time.") == 2
    assert "Not read yet." not in said
    assert "3 overdue. The oldest for" in said
    table = document(scene)["table"]
    assert (table["overdue"]["count"], table["overdue"]["longest"], table["daemons"]) == (3, None, None)
    assert table["falls_due"] == {"per_minute": None, "capped": None}


# What it must not say

HOSTILE = "<script>alert('x')</script>&\"><img/src=x>"


def test_names_are_text() -> None:
    """An instance can be called anything printable, and any client may claim to be a daemon."""
    scene = Scene(instance=HOSTILE[:54])
    scene.board.database(DatabaseState.UP)
    other = DaemonSessions("\"'><svg/onload=x>{{7*7}}", 1, None)
    scene.board.observed(QUIET, TableFacts((), (), (DaemonSessions(HOSTILE[:54], 2, None), other)))
    page = html(scene)
    assert "<img" not in page
    assert "<svg/" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page
    assert "{{7*7}}" in page
    assert document(scene)["table"]["daemons"][1]["instance"] == other.instance


@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_loaded_and_nothing_runs_but_our_own(name: str) -> None:
    """The policy allows the page's own style and script by their hashes; no attribute carries style or script."""
    scene = SCENES[name]()
    page = scene.page.render(False).decode()
    for element in ("style", "script"):
        (source,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in scene.page.policy
    assert scene.page.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in scene.page.policy
    assert not re.search(r"<[^>]*\s(style|on\w+|src)=", page)
    assert "http" not in page.lower()
    assert set(re.findall(r'href="([^"]*)"', page)) == {"data:,", "/status.json", "/metrics", "/healthz", "/readyz"}


@pytest.mark.parametrize("name", SCENES)
def test_every_picture_has_words(name: str) -> None:
    """A title and a description, both referred to; ids are unique."""
    page = SCENES[name]().page.render(False).decode()
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for referred in re.findall(r'aria-labelledby="([^"]*)"', page):
        assert set(referred.split()) <= set(ids)
    assert page.count('role="img"') == page.count("<desc ") == (2 if name == "fresh" else 3)


# How it is served


def test_fifty_requests_render_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second each form is rendered once, whoever asks and how often; a second later, once more."""
    scene = on_time()
    rendered: list[bool] = []
    render, now = scene.page.render, 0.0

    def counting(as_document: bool) -> bytes:
        rendered.append(as_document)
        return render(as_document)

    monkeypatch.setattr(scene.page, "render", counting)
    with served(scene, clock=lambda: now) as url, httpx.Client(base_url=url, trust_env=False) as client:
        pages = {client.get("/").content for _ in range(50)}
        documents = {client.get("/status.json").content for _ in range(50)}
        assert (len(pages), len(documents), rendered) == (1, 1, [False, True])
        now = 0.999
        client.get("/")
        assert rendered == [False, True]
        now = 1.0
        scene.moment += 1.0
        assert {client.get("/").content for _ in range(50)}.isdisjoint(pages)
        assert rendered == [False, True, False]


def test_every_link_leads_somewhere() -> None:
    """Each page that the page names is served beside it."""
    with served(on_time()) as url, httpx.Client(base_url=url, trust_env=False) as client:
        links = re.findall(r'href="(/[^"]*)"', client.get("/").text)
        assert [client.get(link).status_code for link in links] == [200] * 4


def test_headers() -> None:
    """HTML with its policy, JSON as JSON, and neither is stored anywhere."""
    scene = on_time()
    with served(scene) as url, httpx.Client(base_url=url, trust_env=False) as client:
        page, data = client.get("/"), client.get("/status.json")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == scene.page.policy
    assert data.headers["content-type"] == "application/json"
    assert page.headers["cache-control"] == data.headers["cache-control"] == "no-store"


# The JSON


def paths(value: Any, at: str = "") -> Iterator[str]:
    """The dotted names of everything in a document; ``[]`` stands for the items of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from paths(item, f"{at}[]")
    else:
        yield at


def test_the_keys_are_those_of_the_guide() -> None:
    """Every key of the fullest document is in the operator's guide, and no other; they stay in their order."""
    guide = GUIDE.read_text(encoding="utf-8")
    documented = guide.partition("<!-- status:begin -->")[2].partition("<!-- status:end -->")[0]
    names = re.findall(r"^\| `([^`]+)` \|", documented, re.MULTILINE)
    assert names == list(dict.fromkeys(paths(document(backlog()))))


@pytest.mark.parametrize("name", SCENES)
def test_the_document_is_whole_in_every_state(name: str) -> None:
    """The same keys at the top whatever is known, sixty minutes in every list, and no number that JSON lacks."""
    found = document(SCENES[name]())
    assert list(found) == list(document(backlog()))
    assert len(found["lag"]["per_minute"]) == len(found["timed_out"]["per_minute"]) == 60
    if found["table"]:
        assert len(found["table"]["falls_due"]["per_minute"]) == len(found["table"]["falls_due"]["capped"]) == 60
