"""The producer's guide: its first screen, its links, and the tables and the diagram that the store must agree with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine

from curfew_store import (
    AsyncFlowRunControlStore,
    FlowRunControlRecord,
    FlowRunControlStore,
    RunConfiguration,
    RunState,
    RunStopped,
    StartedRun,
)
from curfew_store.enforcement import claim_overdue
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import FLOW, STATES, Rows
from tests.integration.readme_snippets import README, snippets

HOUR = timedelta(hours=1)
METHODS = {name for name in vars(FlowRunControlStore) if not name.startswith("_")}

Act = Callable[[FlowRunControlStore, UUID], object]

# Every method that could change a state, on a run that has or has not a record; `curfewd` is the daemon's claim.
ACTS: dict[str, list[Act]] = {
    "configure_run": [
        lambda s, r: s.configure_run(r, FLOW, "t", timeout=HOUR),
        lambda s, r: s.configure_run(r, FLOW, "t"),
    ],
    "configure_runs": [lambda s, r: s.configure_runs([RunConfiguration(r, FLOW, "t", timeout=HOUR)])],
    "start_run": [lambda s, r: s.start_run(FLOW, "t", run_id=r, timeout=HOUR)],
    "get_run_control": [lambda s, r: s.get_run_control(r)],
    "ensure_may_run": [lambda s, r: s.ensure_may_run(r)],
    "heartbeat": [lambda s, r: s.heartbeat(r, timeout=HOUR)],
    "complete_run": [lambda s, r: s.complete_run(r)],
    "request_cancel": [lambda s, r: s.request_cancel(r)],
    "mark_timed_out": [lambda s, r: s.mark_timed_out(r)],
    "extend_deadline": [
        lambda s, r: s.extend_deadline(r, timeout=HOUR),
        lambda s, r: s.extend_deadline(r, None),
        lambda s, r: s.extend_deadline(r, datetime(2020, 1, 1, tzinfo=UTC)),
    ],
    "reopen_run": [lambda s, r: s.reopen_run(r), lambda s, r: s.reopen_run(r, timeout=HOUR)],
    "find_run_id_by_idempotency_key": [lambda s, r: s.find_run_id_by_idempotency_key(FLOW, "t", str(r))],
    "try_register_idempotency_key": [lambda s, r: s.try_register_idempotency_key(FLOW, "t", str(r), r)],
    "purge": [lambda s, _r: s.purge(datetime.now(UTC) + HOUR, limit=1000)],
}

# A method on a run that is live (for `reopen_run`: completed; for `purge`: ended), to be called twice.
REPEATED: dict[str, Act] = {name: acts[0] for name, acts in ACTS.items()} | {
    "find_run_id_by_idempotency_key": lambda s, _r: s.find_run_id_by_idempotency_key(
        FLOW, "t", "find_run_id_by_idempotency_key"
    ),
    "start_run": lambda s, _r: s.start_run(FLOW, "t", "new", run_id=UUID(int=17)),
}


def _section(title: str) -> str:
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def _transitions_drawn() -> set[tuple[str, str, str]]:
    [diagram] = [block.body for block in snippets() if block.language == "mermaid"]
    assert diagram.startswith("stateDiagram-v2\n")
    arrows = re.findall(r"^ *(\S+) --> (\S+): (.+)$", diagram, re.MULTILINE)
    assert len(arrows) == len(diagram.splitlines()) - 1
    return {(before, after, act) for before, after, acts in arrows for act in acts.split(", ")}


def _sweep(engine: Engine) -> None:
    with engine.connect() as connection:
        claim_overdue(connection.execution_options(isolation_level="AUTOCOMMIT"), tables_in("public"), limit=100)


def test_the_state_diagram_is_the_store(database: Database) -> None:
    """Every arrow happens on the real store, no other transition does, and the states are those of `RunState`."""
    store, rows = FlowRunControlStore(database.engine), Rows(database.url)
    acts: dict[str, list[Act]] = ACTS | {"curfewd": [lambda _s, _r: _sweep(database.engine)]}
    assert ACTS.keys() == METHODS

    def state(run_id: UUID) -> str:
        record = store.get_run_control(run_id)
        return "[*]" if record is None else record.state.name

    seen: set[tuple[str, str, str]] = set()
    for kind in [*STATES, "unknown"]:
        for name, act in [(name, act) for name, ways in acts.items() for act in ways]:
            run_id = rows.insert(kind)
            before = state(run_id)
            try:
                act(store, run_id)
            except RunStopped as stopped:
                assert name == "ensure_may_run", stopped  # noqa: PT017
            if (after := state(run_id)) != before:
                seen.add((before, after, name))
    rows.close()
    drawn = _transitions_drawn()
    assert drawn == seen
    assert {end for arrow in drawn for end in arrow[:2]} == {state.name for state in RunState} | {"[*]"}


def _table_of_methods() -> dict[str, tuple[str, str, str]]:
    """Name to signature, type of the result, and what the last column says."""
    lines = [line for line in _section("Methods").splitlines() if line.startswith("| `")]
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    table = {row[0].strip("`").split("(")[0]: (row[0].strip("`"), row[1].strip("`"), row[3]) for row in rows}
    assert len(table) == len(rows)
    return table


@pytest.mark.parametrize("store", [FlowRunControlStore, AsyncFlowRunControlStore])
def test_the_table_of_methods_is_the_class(store: type) -> None:
    """The table has every public method of both stores, each with its parameters, defaults and result."""
    table = _table_of_methods()
    assert table.keys() == {name for name in vars(store) if not name.startswith("_")}
    for name, (signature, result, _) in table.items():
        real = inspect.signature(getattr(store, name))
        shown = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in real.parameters.values()
            if parameter.name not in {"self", "connection"}
        ]
        bare = real.replace(parameters=shown, return_annotation=inspect.Signature.empty)
        assert (signature, result) == (f"{name}{bare}", real.return_annotation)
        assert ("connection" in real.parameters) is (name != "ensure_may_run")


def _shown(answer: object) -> str:
    match answer:
        case StartedRun():
            return f"duplicate={answer.duplicate}"
        case FlowRunControlRecord():
            return "record"
        case UUID():
            return "UUID"
        case None | bool():
            return repr(answer)
        case _:
            return "count"


def test_a_repeated_call_answers_as_the_table_says(database: Database) -> None:
    """The last column names the answer of a call, and of the same call after the first has been committed."""
    store = FlowRunControlStore(database.engine)
    for name, (_, _, cell) in _table_of_methods().items():
        run_id = store.start_run(FLOW, "t", name, timeout=timedelta(minutes=1)).run_id
        if name in {"reopen_run", "purge"}:
            store.complete_run(run_id)
        answers = [REPEATED[name](store, run_id) for _ in range(2)]
        assert [_shown(answer) for answer in answers] == re.findall(r"`([^`]+)`", cell)[:2], name
        if told := re.search(r"the record is `(\w+)`", cell):
            record = store.get_run_control(run_id)
            assert record is not None
            assert record.state.name == told[1]


def test_the_warning_stands_on_the_first_screen() -> None:
    """Within 20 lines a reader learns that runs must be completed, and that nothing is killed."""
    screen = " ".join(README.read_text().splitlines()[:20]).replace("> ", "")
    assert "never completed through `complete_run` WILL be marked as timed out at its deadline" in screen
    assert "even if its work ended well" in screen
    assert "We mark; we do not kill a process." in screen
