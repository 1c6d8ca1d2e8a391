"""The fixtures for users, in a pytest run of their own, as a trigger service would use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import curfew_store.testing
from curfew_store.testing import DatabaseTemplate, Server

SERVICE = """
import asyncio
from uuid import UUID

FLOW, RUN = UUID(int=1), UUID(int=2)

def test_a_run_is_started_once(curfew_store):
    assert curfew_store.try_register_idempotency_key(FLOW, "nightly", "2026-01-01", RUN)
    assert not curfew_store.try_register_idempotency_key(FLOW, "nightly", "2026-01-01", RUN)

def test_every_test_has_a_database_of_its_own(curfew_store):
    assert curfew_store.find_run_id_by_idempotency_key(FLOW, "nightly", "2026-01-01") is None

def test_both_stores_of_a_test_share_it(curfew_store, async_curfew_store, curfew_url):
    assert curfew_url.startswith("postgresql+psycopg://")
    for _ in range(2):  # two event loops
        asyncio.run(async_curfew_store.configure_run(RUN, FLOW, "nightly"))
    assert curfew_store.get_run_control(RUN).flow_id == FLOW
"""


@pytest.fixture
def service(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n")
    pytester.makepyfile(test_service=SERVICE)
    return pytester


@pytest.fixture
def databases(server: Server) -> Callable[[], set[str]]:
    """Asks for the names of all databases on the server."""

    def names() -> set[str]:
        engine = create_engine(server.sqlalchemy_url(), poolclass=NullPool)
        with engine.connect() as connection:
            return set(connection.exec_driver_sql("SELECT datname FROM pg_database").scalars())

    return names


def test_a_service_tests_against_a_real_store_with_no_set_up(service: pytest.Pytester) -> None:
    """With nothing but the package installed, the fixtures give stores on databases of the test's own."""
    service.runpytest_subprocess().assert_outcomes(passed=3)


@pytest.mark.parametrize("by", ["option", "ini", "environment"])
def test_a_given_server_is_used_and_left_as_it_was(
    service: pytest.Pytester,
    server: Server,
    databases: Callable[[], set[str]],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """A URL by option, ini file or variable decides on the server; all databases made there are dropped."""
    url = server.url()
    if by == "environment":
        monkeypatch.setenv("CURFEW_TEST_DATABASE_URL", url.replace("postgresql://", "postgres://"))
    elif by == "ini":
        with service.path.joinpath("tox.ini").open("a") as ini:
            ini.write(f"\ncurfew_database_url = {url}\n")
    service.makeconftest(
        "import pytest\n"
        "from urllib.parse import unquote\n"
        "@pytest.fixture(autouse=True)\n"
        "def on_the_given_server(curfew_server):\n"
        f"    assert unquote(curfew_server.url()) == {url!r}\n"
    )
    before = databases()
    options = [f"--curfew-database-url={url}"] if by == "option" else []
    service.runpytest_subprocess(*options).assert_outcomes(passed=3)
    assert databases() == before


@pytest.mark.parametrize("url", ["sqlite:///x", "host=localhost password=secret"])
def test_another_kind_of_url_is_refused(service: pytest.Pytester, url: str) -> None:
    """What is not a PostgreSQL URL is refused, without repeating a password."""
    result = service.runpytest_subprocess(f"--curfew-database-url={url}", "--tb=line")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*UsageError: the database URL for curfew's fixtures is *"])
    assert "secret" not in "\n".join(line for line in result.outlines if line.startswith("E "))


def test_only_databases_of_ours_are_dropped(curfew_database: DatabaseTemplate) -> None:
    """A name that was not made here is refused, and a database that has gone is no error."""
    name = curfew_database.create(empty=True)
    curfew_database.drop(name)
    curfew_database.drop(name)
    with pytest.raises(ValueError, match="not one of the databases"):
        curfew_database.drop("postgres")


def test_the_plugin_itself_imports_nothing_but_pytest() -> None:
    """Every pytest run in the environment imports the plugin, so it must not bring a database driver
    along."""
    path = curfew_store.testing.__file__
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({path!r})\n"
        "sys.exit(' '.join({'sqlalchemy', 'psycopg', 'alembic', 'curfew_store'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
