"""Statements are built once for each schema, and so that SQLAlchemy can keep what it makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from curfew_store import enforcement, retention, statements
from curfew_store.schema import Tables, tables_in

HINTED = [
    statements.configure_run,
    statements.configure_runs,
    statements.extend_deadline,
    statements.reopen_run,
    statements.start_with_key,
    statements.start_without_key,
]
PLAIN = [
    enforcement._judging,
    retention._ended_runs_statement,
    retention._orphaned_keys_statement,
    retention._purge_orphans,
    retention._purge_runs,
    statements.complete_run,
    statements.find_key,
    statements.get_run_control,
    statements.heartbeat,
    statements.mark_timed_out,
    statements.register_key,
    statements.request_cancel,
]
PAIRS = [dict(zip(("continued", "skipping"), pair, strict=True)) for pair in itertools.product((False, True), repeat=2)]
LOOKS = [dict(zip(("partial", "expecting"), pair, strict=True)) for pair in itertools.product((False, True), repeat=2)]
BUILDERS: list[tuple[Callable[..., Any], dict[str, bool]]] = [
    *((build, {}) for build in PLAIN),
    *((build, {"hinted": hinted}) for build in HINTED for hinted in (False, True)),
    *((build, pair) for build in (enforcement.claim_statement, enforcement._claim_text) for pair in PAIRS),
    *((build, look) for build in (enforcement.look_ahead_statement, enforcement._look_ahead_text) for look in LOOKS),
]

NO_STATEMENTS = {enforcement._claim_text, enforcement._look_ahead_text, enforcement._judging}


def name_of(value: object) -> str:
    """How a builder and its options are called in the list of tests."""
    return getattr(value, "__name__", None) or "-".join(name for name, yes in dict(value).items() if yes)  # type: ignore[call-overload]


@pytest.mark.parametrize(("build", "options"), BUILDERS, ids=name_of)
def test_statements_are_built_once_for_each_schema(build: Callable[..., Any], options: dict[str, bool]) -> None:
    """To build one costs more than to send it; two schemas never share one."""
    one, other = tables_in("one"), tables_in("other")
    built = build(one, **options)
    assert build(tables_in("one"), **options) is built
    assert build(other, **options) is not built


@pytest.mark.parametrize(("build", "options"), BUILDERS, ids=name_of)
def test_the_options_of_a_statement_make_another_one(build: Callable[..., Any], options: dict[str, bool]) -> None:
    """What is hinted, continued or partial is not sent where it was not asked for."""
    tables = tables_in("public")
    for changed, value in options.items():
        another = options | {changed: not value}
        assert str(build(tables, **another)) != str(build(tables, **options))


def test_the_options_of_a_claim_and_a_look_are_off_unless_asked_for() -> None:
    """The statement without any is the plain one."""
    tables = tables_in("public")
    plain = str(enforcement.claim_statement(tables, continued=False, skipping=False))
    assert str(enforcement.claim_statement(tables, continued=False)) == plain
    assert str(enforcement.look_ahead_statement(tables)) == str(
        enforcement.look_ahead_statement(tables, partial=False, expecting=False)
    )


def test_what_is_sent_is_made_once_and_told_from_what_is_given() -> None:
    """The text and the constants of a statement are kept; of its parameters, callers give the rest."""
    statement = statements.mark_timed_out(tables_in("public"))
    sql, constants = statements.as_sent(statement)
    assert statements.as_sent(statement)[0] is sql
    assert "%(given_run_id)s" in sql
    assert list(constants.values()) == [statements.DEFAULT_REASON]


def test_tables_are_made_once() -> None:
    """So that they can be what statements are kept by."""
    assert tables_in("public") is tables_in("public")


@pytest.mark.parametrize(
    ("build", "options"),
    [
        each
        for each in BUILDERS
        if each[0] not in {enforcement._claim_text, enforcement._look_ahead_text, enforcement._judging}
    ],
    ids=name_of,
)
def test_sqlalchemy_keeps_what_it_compiled(build: Callable[..., Any], options: dict[str, bool]) -> None:
    """Each part of a statement has its place in the key of the cache; one without would be compiled for each call."""
    assert build(tables_in("public"), **options)._generate_cache_key() is not None


def test_a_sweep_finds_everything_compiled() -> None:
    """No deadline waits for the compiler once `compile_statements` has been called."""
    tables: Tables = tables_in("compiled beforehand")
    enforcement.compile_statements(tables)
    texts = (enforcement._claim_text, enforcement._look_ahead_text)
    missed = [text.cache_info().misses for text in texts]
    for pair, look in zip(PAIRS, LOOKS, strict=True):
        enforcement._claim_text(tables, **pair)
        enforcement._look_ahead_text(tables, **look)
    assert [text.cache_info().misses for text in texts] == missed


def test_a_compared_key_is_a_condition() -> None:
    """SQLAlchemy knows that it is true or false."""
    compared = statements.equals(tables_in("public").keys.c.trigger_key, "key")
    assert compared.type.python_type is bool
