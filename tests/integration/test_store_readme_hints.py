"""The README's store that notifies, as written."""

from __future__ import annotations

import psycopg
from psycopg import sql

from curfew_store.hints import channel_of, parsed
from tests.conftest import Database
from tests.integration import readme_snippets
from tests.integration.readme_snippets import Readme, claims

readme = readme_snippets.readme


@claims("hints")
def test_a_store_that_tells_of_near_deadlines(readme: Readme, database: Database) -> None:
    """Whoever listens hears of the run; the README's other store tells nobody."""
    readme.run("trigger")
    with psycopg.connect(database.conninfo, autocommit=True) as ear:
        ear.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel_of("public"))))
        readme["store"].start_run(readme["FLOW"], "order", timeout=readme["timedelta"](milliseconds=1))
        readme.run("hints")
        heard = [parsed(notify.payload) for notify in ear.notifies(timeout=20, stop_after=1)]
        assert [hint.run_id for hint in heard if hint] == [readme["run_id"]]
