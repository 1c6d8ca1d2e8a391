"""A server that the user names for the fixtures."""

from __future__ import annotations

import pytest

from curfew_store.testing import DatabaseTemplate, GivenServer


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_the_url_gives_both(scheme: str) -> None:
    """libpq gets its own scheme and SQLAlchemy psycopg's; password, host and query stay."""
    server = GivenServer(f"{scheme}://me:p%40@db:5433/mine?sslmode=require")
    assert server.url() == "postgresql://me:p%40@db:5433/mine?sslmode=require"
    assert server.sqlalchemy_url("other") == "postgresql+psycopg://me:p%40@db:5433/other?sslmode=require"


def test_a_url_without_a_database_means_postgres() -> None:
    """Without a database in the URL, the fixtures connect to the one that every server has."""
    assert GivenServer("postgresql://db").url() == "postgresql://db/postgres"


@pytest.mark.parametrize("url", ["sqlite:///x", "host=db password=secret"])
def test_another_kind_of_url_is_refused(url: str) -> None:
    """What is not a PostgreSQL URL is refused without repeating it."""
    with pytest.raises(pytest.UsageError, match="the database URL for curfew's fixtures is") as caught:
        GivenServer(url)
    assert "secret" not in str(caught.value)


def test_a_template_that_was_never_asked_for_is_not_dropped() -> None:
    """Closing drops what was made, and nothing was."""
    DatabaseTemplate(GivenServer("postgresql://nobody@/nowhere?host=/nonexistent")).close()
