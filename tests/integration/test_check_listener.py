"""`curfewd check` where CURFEW_LISTEN is set: it tries out whether the daemon would hear anything."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from curfew_daemon import check_listener
from curfew_daemon.check import Finding, Level, examine
from curfew_store.migrate import upgrade
from tests.conftest import Database
from tests.integration.settings import settings_for


def found(database: Database, **variables: str) -> Finding | None:
    """The finding on the listener, ``None`` where nothing was said of it."""
    findings = examine(settings_for(database, **variables))
    return next((each for each in findings if each.topic == "listener"), None)


def test_a_channel_that_is_heard_is_in_order(database: Database) -> None:
    """Nothing to do where a notification arrives; and nothing is tried where nobody wants to listen."""
    heard = found(database, CURFEW_LISTEN="true")
    assert heard is not None
    assert heard.level is Level.OK
    assert found(database) is None


def test_a_channel_that_is_silent_is_a_warning_with_its_remedy(
    database: Database, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the listener would be elsewhere than the sweep, nothing arrives: marking goes on, so it is no error."""
    monkeypatch.setattr(check_listener, "PROVE_WITHIN", 0.1)
    upgrade(empty_database.engine)
    silent = found(database, CURFEW_LISTEN="true", CURFEW_LISTEN_URL=empty_database.conninfo)
    assert silent is not None
    assert silent.level is Level.WARNING
    assert "CURFEW_LISTEN_URL" in silent.remedy


def test_a_listener_that_cannot_connect_is_a_warning_too(database: Database) -> None:
    """What the server, or the way to it, said is in the message; no secret is."""
    nowhere = make_conninfo(database.conninfo, dbname="no_such_place", password="canary")
    refused = found(database, CURFEW_LISTEN="true", CURFEW_LISTEN_URL=nowhere)
    assert refused is not None
    assert (refused.level, "no_such_place" in refused.message) == (Level.WARNING, True)
    assert "canary" not in refused.message
