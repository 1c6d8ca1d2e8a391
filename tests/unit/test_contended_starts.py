"""What another call took at the same moment is looked at once more by both façades, and handed on otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore, KeyContended

URL = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"


def answers(kind: str, outcomes: list[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a store of this *kind* makes of an operation that comes to each of *outcomes*."""

    def come_to(_store: object, _operation: object) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def come_to_later(store: object, operation: object) -> Any:
        return come_to(store, operation)

    operation: Any = None
    if kind == "sync":
        monkeypatch.setattr(FlowRunControlStore, "_committed", come_to)
        return FlowRunControlStore(create_engine(URL))._in_own_transaction(operation)
    monkeypatch.setattr(AsyncFlowRunControlStore, "_committed", come_to_later)
    return asyncio.run(AsyncFlowRunControlStore(create_async_engine(URL))._in_own_transaction(operation))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_first_try_that_lost_is_made_once_more(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner has committed, so the second finds it; a second loss is the caller's."""
    assert answers(kind, [KeyContended(1), "found"], monkeypatch) == "found"
    with pytest.raises(KeyContended):
        answers(kind, [KeyContended(1), KeyContended(1), "too late"], monkeypatch)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("attempts", [2, 3])
def test_what_was_tried_again_already_is_handed_on(kind: str, attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement itself was repeated in vain."""
    with pytest.raises(KeyContended):
        answers(kind, [KeyContended(attempts), "not asked for"], monkeypatch)
