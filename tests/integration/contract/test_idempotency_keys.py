"""`try_register_idempotency_key` and `find_run_id_by_idempotency_key`: one winner, one normal form."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from uuid import uuid4

import pytest

from curfew_store import FlowRunControlStore
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import FLOW, OTHER_FLOW, Rows
from tests.patience import PATIENCE

# Text that is nothing special to the store, however special it looks to somebody else.
PLAIN_TEXT = {
    "SQL": "'; DROP TABLE flow_idempotency_keys; --",
    "printf placeholder": "%s %(name)s %d %%",
    "other placeholders": "{} {0} :name $1 ?",
    "backslashes": r"\x00 \\ \' E'\n'",
    "line break and escape": "a\nb\x1b[31m\r\tc",
    "right to left": "\u202eabc\u05d0\u0627",
    "zero width": "a\u200bb\u200d\ufeffc",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "private use and noncharacters": "\ue000\uffff\U0010ffff",
}


@pytest.mark.contract("I-1", "X-7")
def test_a_key_is_registered_once(store: FlowRunControlStore, rows: Rows) -> None:
    """The first call says yes; repeating it, with another run or the same one, says no and changes nothing."""
    key, run_id = f"key-{uuid4()}", uuid4()
    assert store.try_register_idempotency_key(FLOW, "trigger", key, run_id) is True
    before = rows.everything()
    assert store.try_register_idempotency_key(FLOW, "trigger", key, run_id) is False
    assert store.try_register_idempotency_key(FLOW, "trigger", key, uuid4()) is False
    assert rows.everything() == before
    assert store.find_run_id_by_idempotency_key(FLOW, "trigger", key) == run_id


@pytest.mark.contract("I-1", "I-2")
def test_of_many_at_once_one_registers(store: FlowRunControlStore) -> None:
    """Eight calls with one key: one yes, and all of them then find the winner."""
    key, ids = f"key-{uuid4()}", [uuid4() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: store.try_register_idempotency_key(FLOW, "trigger", key, i), ids))
        found = set(pool.map(lambda _: store.find_run_id_by_idempotency_key(FLOW, "trigger", key), ids))
    assert answers.count(True) == 1
    assert found == {ids[answers.index(True)]}


@pytest.mark.contract("I-2", "I-3")
def test_a_key_is_scoped_by_flow_and_trigger(store: FlowRunControlStore) -> None:
    """The same text under another flow or trigger is registered and found on its own; elsewhere it is unknown."""
    key = f"key-{uuid4()}"
    runs = {scope: uuid4() for scope in [(FLOW, "a"), (FLOW, ""), (OTHER_FLOW, "a")]}
    for (flow, trigger), run_id in runs.items():
        assert store.try_register_idempotency_key(flow, trigger, key, run_id) is True
    for (flow, trigger), run_id in runs.items():
        assert store.find_run_id_by_idempotency_key(flow, trigger, key) == run_id
    assert store.find_run_id_by_idempotency_key(OTHER_FLOW, "", key) is None


@pytest.mark.contract("I-4")
@pytest.mark.parametrize("commits", [True, False])
def test_registering_waits_for_an_open_transaction(facade: Facade, rows: Rows, commits: bool) -> None:
    """A key that another transaction has registered and not committed is waited for, and free if that rolls back."""
    key = f"key-{uuid4()}"
    with facade.begin() as caller, ThreadPoolExecutor(1) as pool:
        assert facade.store.try_register_idempotency_key(FLOW, "t", key, uuid4(), connection=caller.handle) is True
        waiting = pool.submit(facade.store.try_register_idempotency_key, FLOW, "t", key, uuid4())
        rows.wait_until_blocked()
        if commits:
            caller.commit()
        else:
            caller.rollback()
        assert waiting.result(timeout=PATIENCE) is not commits


@pytest.mark.contract("K-1", "K-2", "K-3")
@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (" Key-A\u3000", "key-a"),
        ("\u0130STANBUL", "\u0130stanbul"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),
        ("\x1cKEY\x1f", "\x1ckey\x1f"),
        ("\x85\xa0\u2003KEY\u2028", "key"),
        ("STRASSE \u1e9e \u01c5", "strasse \u00df \u01c6"),
    ],
)
def test_keys_are_stored_in_the_normal_form(store: FlowRunControlStore, rows: Rows, given: str, stored: str) -> None:
    """Both keys are written as a .NET service would write them, and what such a service wrote is found."""
    run_id, flow = uuid4(), uuid4()
    assert store.try_register_idempotency_key(flow, given, given, run_id) is True
    assert rows.keys_of(run_id) == [(stored, stored)]
    assert store.find_run_id_by_idempotency_key(flow, stored, stored) == run_id
    assert store.find_run_id_by_idempotency_key(flow, given, given) == run_id
    rows.insert_key(written_by_dotnet := uuid4(), stored, stored, flow=(elsewhere := uuid4()))
    assert store.find_run_id_by_idempotency_key(elsewhere, given, given) == written_by_dotnet


@pytest.mark.contract("K-9", "K-5")
@pytest.mark.parametrize("text", PLAIN_TEXT.values(), ids=PLAIN_TEXT.keys())
def test_any_other_text_is_a_key(store: FlowRunControlStore, text: str) -> None:
    """Text that looks dangerous is stored and found as it is, and differs from every other."""
    flow = uuid4()
    started = store.start_run(flow, text, text)
    assert store.find_run_id_by_idempotency_key(flow, text, text) == started.run_id
    record = store.get_run_control(started.run_id)
    assert record is not None
    assert (record.trigger_key, record.idempotency_key) == (text, text)
    others = [other for other in PLAIN_TEXT.values() if other != text]
    assert all(store.find_run_id_by_idempotency_key(flow, text, other) is None for other in others)


class Trigger(StrEnum):
    """Keys as a service may name its own."""

    NIGHTLY = "Every Night"


@pytest.mark.contract("K-1", "K-5", "R-1")
def test_text_of_a_subclass_of_str(store: FlowRunControlStore, rows: Rows) -> None:
    """Members of a StrEnum are the text that they stand for, in keys and in reasons."""
    flow = uuid4()
    started = store.start_run(flow, Trigger.NIGHTLY, Trigger.NIGHTLY)
    store.request_cancel(started.run_id, Trigger.NIGHTLY)
    record = store.get_run_control(started.run_id)
    assert record is not None
    assert (record.trigger_key, record.idempotency_key, record.cancel_reason) == ("Every Night",) * 3
    assert rows.keys_of(started.run_id) == [("every night", "every night")]
    assert store.find_run_id_by_idempotency_key(flow, "every night", Trigger.NIGHTLY) == started.run_id


@pytest.mark.contract("K-6")
@pytest.mark.parametrize("blank", ["", "  \t", "\u3000"])
def test_a_blank_trigger_key_is_allowed(store: FlowRunControlStore, blank: str) -> None:
    """Blank trigger keys are all the same one, the empty one that is upstream's default."""
    key, run_id = f"key-{uuid4()}", uuid4()
    assert store.start_run(FLOW, blank, key, run_id=run_id).duplicate is False
    assert store.find_run_id_by_idempotency_key(FLOW, "", key) == run_id


@pytest.mark.contract("K-7")
@pytest.mark.parametrize("character", ["k", "\u00c9", "\u4e2d", "\U0001f600", "\U00010400"])
def test_a_key_may_have_256_characters(store: FlowRunControlStore, character: str) -> None:
    """Characters are counted, not bytes: 256 of any kind fit both columns and are found again."""
    key, flow = character * 256, uuid4()
    started = store.start_run(flow, key, key)
    assert started.duplicate is False
    assert store.find_run_id_by_idempotency_key(flow, key, key) == started.run_id
