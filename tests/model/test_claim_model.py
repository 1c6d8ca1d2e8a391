"""The small model of the claim: what exploring it shows, and that PostgreSQL behaves like it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import Connection, create_engine

from curfew_store.enforcement import claim_statement
from curfew_store.testing import DatabaseTemplate
from tests.conftest import Database
from tests.integration.roles import new_role
from tests.model.claim_model import Model
from tests.model.claim_states import Action, Call, Row, Rules, Scenario
from tests.model.explorer import explore, scenarios, walk
from tests.model.gates import TABLES, Claim, Theatre, set_up, shipped_claim
from tests.model.replay import Mismatch, Replay

# One scenario in which every safety of the claim is needed.
TENSE = Scenario((Row(1), Row(2)), (Call("extend", 0, 3), Call("complete", 1)), 1)
CANCELLING = Scenario((Row(1), Row(1)), (Call("cancel", 0), Call("configure", 1, 3)), 2)
COMPLETING = Scenario((Row(1), Row(1)), (Call("complete", 0), Call("extend", 1, 3)), 1)
SCENARIOS = {"tense": TENSE, "cancelling": CANCELLING, "completing": COMPLETING}


@pytest.mark.contract("E-2", "E-3", "E-5", "E-7", "E-8", "E-9")
def test_no_interleaving_breaks_a_promise() -> None:
    """In every interleaving of two claims, two calls, a tick and crashes, nothing that is promised is broken."""
    found = explore(TENSE)
    assert not found.violations
    assert found.states > 1000
    assert found.interleavings > 100_000


@pytest.mark.parametrize(
    ("safeties", "scenario", "broken"),
    [
        ("skips_locked", "tense", "a claim waits"),
        ("rechecks", "tense", "an extension is not honoured"),
        ("rechecks", "completing", "twice for one arming"),
        ("due_when_equal", "tense", "due and never marked"),
        ("passes_cancelled", "cancelling", "a cancelled run is marked"),
        ("passes_completed", "completing", "a completed run is marked"),
        # A mark sets the cancel flag too, so after a mark each of these two predicates covers for the other.
        ("passes_marked passes_cancelled", "cancelling", "twice for one arming"),
        ("database_clock", "tense", "early"),
        ("keeps_limit", "completing", "more than the limit"),
    ],
)
def test_without_a_safety_the_promise_that_it_keeps_is_broken(safeties: str, scenario: str, broken: str) -> None:
    """Each safety of the claim is there for a promise: the explorer names it as soon as the safety goes."""
    rules = Rules(**dict.fromkeys(safeties.split(), False))
    assert broken in explore(SCENARIOS[scenario], rules).violations


@pytest.fixture(scope="module")
def gated_database(curfew_database: DatabaseTemplate) -> Iterator[tuple[Database, str]]:
    """A database with gates and a clock, and the role that the daemons act as."""
    name = curfew_database.create()
    url, conninfo = curfew_database.server.sqlalchemy_url(name), curfew_database.server.url(name)
    engine = create_engine(url)
    database = Database(name, url, conninfo, engine)
    with new_role(database, "daemon") as role:
        set_up(conninfo, role)
        yield database, role
    engine.dispose()
    curfew_database.drop(name)


def _replay(gated: tuple[Database, str], claim: Claim, traces: int, *, rules: Rules, seed: int) -> set[str]:
    """Replay so many random interleavings; the kinds of steps that were taken."""
    database, role = gated
    chance, taken = random.Random(seed), set()
    theatre = Theatre(database.url, database.conninfo, role, claim)
    try:
        for scenario in chance.choices(scenarios(), k=traces):
            trace = walk(Model(scenario, rules), chance)
            Replay(theatre, scenario).run(trace)
            taken |= {action.kind for action, _ in trace}
    finally:
        theatre.close()
    return taken


@pytest.mark.contract("E-1", "E-2", "E-3", "E-5", "E-9")
def test_postgresql_goes_every_step_as_the_model_does(gated_database: tuple[Database, str]) -> None:
    """Locks, waits, answers and rows after every step of 50 interleavings are the model's."""
    taken = _replay(gated_database, shipped_claim, 50, rules=Rules(), seed=1)
    assert taken == {"tick", "snapshot", "lock", "mark", "commit", "crash", "call"}


def _mutant(pattern: str, replacement: str) -> Claim:
    def claim(conn: Connection, limit: int) -> list[UUID]:
        compiled = claim_statement(TABLES, continued=False).compile(dialect=conn.dialect)
        sql = str(compiled)
        assert pattern in sql
        found = conn.exec_driver_sql(sql.replace(pattern, replacement), compiled.construct_params({"limit": limit}))
        return [UUID(str(row.run_id)) for row in found]

    return claim


def test_the_claim_sent_as_text_is_still_the_claim(gated_database: tuple[Database, str]) -> None:
    """Sent the way that its mutants are, the shipped statement goes every step as the model does."""
    _replay(gated_database, _mutant("SKIP LOCKED", "SKIP LOCKED"), 20, rules=Rules(), seed=2)


SQL_MUTANTS = {
    "waits for locks": _mutant("FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE"),
    "locks nothing": _mutant("FOR NO KEY UPDATE SKIP LOCKED", ""),
    "not due when equal": _mutant("timeout_at_utc <= now()", "timeout_at_utc < now()"),
    "marks cancelled runs": _mutant("AND NOT flow_run_controls.cancel_requested", ""),
    "another clock": _mutant("<= now()", "<= pg_catalog.now()"),
    "no limit": _mutant("LIMIT %(limit)s::INTEGER", "OFFSET %(limit)s::INTEGER - %(limit)s::INTEGER"),
}


@pytest.mark.parametrize("mutant", SQL_MUTANTS)
def test_a_mutant_of_the_claim_is_told_from_the_model(gated_database: tuple[Database, str], mutant: str) -> None:
    """Replaying notices when the statement is another one: the comparison bites."""
    with pytest.raises(Mismatch):
        _replay(gated_database, SQL_MUTANTS[mutant], 100, rules=Rules(), seed=2)


@pytest.mark.parametrize("safety", ["rechecks", "due_when_equal", "passes_cancelled", "keeps_limit"])
def test_a_mutant_of_the_model_is_told_from_the_claim(gated_database: tuple[Database, str], safety: str) -> None:
    """Replaying notices when the model is another one."""
    with pytest.raises(Mismatch):
        _replay(gated_database, shipped_claim, 300, rules=Rules(**{safety: False}), seed=3)


def test_an_action_is_part_of_what_is_reported() -> None:
    """A trace begins where its scenario does and every step of it is one that the model allows."""
    model = Model(TENSE)
    state = TENSE.begin()
    for action, after in walk(model, random.Random(4)):
        assert isinstance(action, Action)
        assert action in set(model.actions(state))
        assert model.successors(state, action) == [after]
        state = after
    assert not list(model.actions(state))
