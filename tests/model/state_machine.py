"""The store as a state machine: three transactions, calls of their own and daemons, compared with the reference.

Every step is a call on real PostgreSQL and in `reference.Reference`. A session that has begun keeps its locks while
others act; a call that the reference says must wait is started in a thread, seen waiting by the server's own view,
and its answer is compared when the session that it waited for has ended. After every step all rows and keys are
compared, with every stamp: a stamp that should have stayed is the same moment as before.

    python -m tests.model.state_machine --steps 100000 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from curfew_store.embedded import EmbeddedPostgres
from curfew_store.testing import DatabaseTemplate
from tests.integration.contract.facade import AsyncFacade, Facade, Loop, SyncFacade
from tests.model.rules import StoreMachine
from tests.model.sessions import Stage

STEPS_PER_EXAMPLE = 40
WAITED = "(of these waited)"


def explore(stage: Stage, *, examples: int, seed: int | None = None, shrink: bool = True) -> Counter[str]:
    """Run so many examples, always the same ones without a *seed*; how often each call was made.

    Raises the first difference, with the shortest steps to it that hypothesis finds if it may *shrink*.
    """

    class Bound(StoreMachine):
        counts: ClassVar[Counter[str]] = Counter()

    Bound.stage = stage
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS_PER_EXAMPLE,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Bound if seed is None else seeded(seed)(Bound), settings=chosen)
    return Bound.counts


@contextmanager
def stages(url: str, conninfo: str) -> Iterator[dict[str, Stage]]:
    """A stage for each façade, on one database."""
    options: dict[str, Any] = {"connect_args": {"options": "-c lock_timeout=20s"}, "pool_size": 12}
    loop = Loop()
    facades: list[Facade] = [SyncFacade(url, **options), AsyncFacade(loop, url, **options)]
    made = [Stage(facade, url, conninfo) for facade in facades]
    try:
        yield dict(zip(("sync", "async"), made, strict=True))
    finally:
        for stage, facade in zip(made, facades, strict=True):
            stage.close()
            facade.close()
        loop.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore until so many calls were made, half of them through either façade; one line for each round."""
    parser = argparse.ArgumentParser(prog="state_machine", description="The store against its reference.")
    parser.add_argument("--steps", type=int, default=100_000, help="calls to make and compare")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; later ones count on from it")
    options = parser.parse_args(arguments)
    total: Counter[str] = Counter()
    with EmbeddedPostgres.start() as server:
        template = DatabaseTemplate(server)
        name = template.create()
        with stages(server.sqlalchemy_url(name), server.url(name)) as by_name:
            round_, begun = 0, time.monotonic()
            while total.total() - total[WAITED] < options.steps:
                kind, stage = list(by_name.items())[round_ % 2]
                total += explore(stage, examples=100, seed=options.seed + round_)
                steps = total.total() - total[WAITED]
                took = time.monotonic() - begun
                print(f"seed {options.seed + round_} {kind}: {steps} calls in {took:.0f} s, no difference", flush=True)
                round_ += 1
        template.drop(name)
        template.close()
    for name, count in sorted(total.items()):
        print(f"{count:8} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
