"""Settings for commands that are called as functions."""

from __future__ import annotations

from curfew_daemon.config import Settings
from tests.conftest import Database


def settings_for(database: Database | str, **variables: str) -> Settings:
    """Settings as a process would load them that had only these variables."""
    url = database if isinstance(database, str) else database.conninfo
    return Settings.load({"CURFEW_DATABASE_URL": url, **variables})
