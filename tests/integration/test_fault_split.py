"""Two primaries at once: what a daemon may do on the second, and what the laboratory says of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import create_engine

from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade
from tests.faults import chronicle
from tests.faults.history import History
from tests.faults.kinds.split import Split
from tests.faults.lab import _ROLES, Lab

MARK = (
    "UPDATE flow_run_controls SET timed_out_at_utc = now(), cancel_requested = true, cancel_requested_at_utc = now(),"
    " cancel_reason = 'Run exceeded its timeout deadline.' WHERE run_id = %s"
)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """Two primaries with the tables and their chronicle."""
    own = {"track_commit_timestamp": "on"}
    with (
        EmbeddedPostgres.start(tcp=True, settings=own) as first,
        EmbeddedPostgres.start(tcp=True, settings=own) as second,
    ):
        for server in (first, second):
            engine = create_engine(server.sqlalchemy_url())
            upgrade(engine)
            with engine.begin() as conn:
                conn.exec_driver_sql(_ROLES)
                chronicle.install(conn)
            engine.dispose()
        yield first, second


def daemon(server: EmbeddedPostgres, instance: str) -> psycopg.Connection[Any]:
    """The session in which a daemon would sweep."""
    url = f"postgresql://lab_daemon@127.0.0.1:{server.port}/postgres"
    return psycopg.connect(url, autocommit=True, application_name=f"curfewd {instance}")


@pytest.mark.parametrize(
    ("stays", "due", "said"),
    [
        (False, True, []),
        (True, True, ["I10: lab-1 changed rows on a second primary and sweeps on the first as before"]),
        (False, False, ["I1: on a second primary"]),
    ],
    ids=["reconnected", "on both", "early"],
)
def test_marks_on_a_second_primary_are_judged(
    servers: tuple[EmbeddedPostgres, EmbeddedPostgres], stays: bool, due: bool, said: list[str]
) -> None:
    """Who had to connect anew may mark there what is due; who sweeps on in its old session on the first may not."""
    lab = SimpleNamespace(history=History(), fleet=SimpleNamespace(settings={"CURFEW_BATCH_SIZE": "500"}))
    lab.pause = time.sleep
    run = uuid4()
    with ExitStack() as stack:
        one, two = (stack.enter_context(psycopg.connect(server.url(), autocommit=True)) for server in servers)
        kept, left = (stack.enter_context(daemon(servers[0], f"lab-{number}")) for number in (1, 2))
        split = Split(one)
        since = time.time_ns() // 1000
        two.execute(
            "INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)"
            " VALUES (%s, 't', now() + %s::interval)",
            (run, "-1 second" if due else "1 hour"),
        )
        with daemon(servers[1], "lab-1" if stays else "lab-2") as moved:
            if not stays:
                left.close()
            moved.execute(MARK, (run,))
            polls, over = threading.Event(), threading.Event()

            def poll() -> None:
                while not over.is_set():
                    kept.execute("SELECT 1")
                    polls.set()

            thread = threading.Thread(target=poll)
            thread.start()
            polls.wait(10)
            found, elsewhere = split.judged(two, cast("Lab", lab), since)
            over.set()
            thread.join()
        assert "lab-1" in split.stayed
    shown = [f"{each.invariant}: {each.said}" for each in found]
    assert len(shown) == len(said)
    assert all(line.startswith(words) for line, words in zip(shown, said, strict=True))
    assert {marked for marked, _ in elsewhere} == {run}
