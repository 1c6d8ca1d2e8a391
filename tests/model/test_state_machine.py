"""A short walk of the state machine over both façades, and the proof that it would notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from curfew_store.testing import DatabaseTemplate
from tests.model.reference import Call, Reference, Row, Session
from tests.model.sessions import Stage
from tests.model.state_machine import explore, stages


@pytest.fixture(scope="module")
def by_facade(curfew_database: DatabaseTemplate) -> Iterator[dict[str, Stage]]:
    """A stage for each façade."""
    name = curfew_database.create()
    with stages(curfew_database.server.sqlalchemy_url(name), curfew_database.server.url(name)) as made:
        yield made
    curfew_database.drop(name)


@pytest.mark.contract("C-2", "C-4", "Q-1", "Q-2", "M-1", "M-5", "D-1", "D-3", "L-3", "L-5", "O-1", "O-2", "E-7", "E-9")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_whatever_sessions_do_in_whatever_order_the_store_does_what_the_contract_says(
    by_facade: dict[str, Stage], kind: str
) -> None:
    """Every answer, every row, key and stamp after every step is the reference's; some of the calls had to wait."""
    counts = explore(by_facade[kind], examples=16, shrink=False)
    assert counts["(of these waited)"] > 0
    assert min(counts[name] for name in ("claim", "commit", "rollback", "extend_deadline", "request_cancel")) > 0


def _extend_keeps_the_timeout(self: Reference, me: Session, run: UUID, deadline: Any) -> Call[bool]:
    return self._update(me, run, lambda r: r.completed is None, lambda r: replace(r, deadline=deadline))


def _configure_unlatches(self: Reference, me: Session, run: UUID, given: Row) -> Call[None]:
    yield from self._row_free(me, run)
    self.held_rows[run] = me, given


def _claim_waits_for_nobody_but_takes_held_rows(self: Reference, *args: Any) -> list[Any]:
    held, self.held_rows = self.held_rows, {}
    try:
        return _CLAIM(self, *args)
    finally:
        self.held_rows |= held


def _judged_once(self: Reference, me: Session, run: UUID, wanted: Callable[..., bool], change: Any) -> Call[bool]:
    row = self.row(me, run)
    if row is None or not wanted(row):
        return False
    yield from self._row_free(me, run)
    self.held_rows[run] = me, change(self.row(me, run))
    return True


_CLAIM = Reference.claim
OTHER_CONTRACTS = {
    "extend": _extend_keeps_the_timeout,
    "configure": _configure_unlatches,
    "claim": _claim_waits_for_nobody_but_takes_held_rows,
    "_update": _judged_once,
}


@pytest.mark.parametrize("method", OTHER_CONTRACTS)
def test_a_reference_that_promises_something_else_is_told_apart(
    by_facade: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The walk tells the store from one whose contract differs in one rule: the comparison bites."""
    monkeypatch.setattr(Reference, method, OTHER_CONTRACTS[method])
    with pytest.raises((AssertionError, ExceptionGroup)):
        explore(by_facade["sync"], examples=60, shrink=False)
