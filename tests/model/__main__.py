"""Explore every interleaving of the small model, and replay some of them on a real PostgreSQL.

python -m tests.model --traces 1000 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import psycopg

from curfew_store.embedded import EmbeddedPostgres
from curfew_store.testing import DatabaseTemplate
from tests.model.claim_model import Model
from tests.model.claim_states import Action, Scenario, State
from tests.model.explorer import Explored, explore, scenarios, walk
from tests.model.gates import Theatre, set_up
from tests.model.replay import Mismatch, Replay

_ROLE = "curfew_model_daemon"


def explored() -> Explored:
    """All scenarios, on all cores."""
    total = Explored()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(explore, scenarios(), chunksize=20):
            total += one
    return total


def chosen(traces: int, seed: int) -> list[tuple[Scenario, list[tuple[Action, State]]]]:
    """So many interleavings of scenarios at random; the same for the same seed."""
    chance = random.Random(seed)
    return [(scenario, walk(Model(scenario), chance)) for scenario in chance.choices(scenarios(), k=traces)]


def replay(traces: list[tuple[Scenario, list[tuple[Action, State]]]]) -> Counter[str]:
    """Replay them on an embedded server; how often each kind of step was taken. Raises the first `Mismatch`."""
    steps: Counter[str] = Counter()
    with EmbeddedPostgres.start() as server:
        template = DatabaseTemplate(server)
        name = template.create()
        with psycopg.connect(server.url(name), autocommit=True) as conn:
            conn.execute(f"CREATE ROLE {_ROLE}".encode())
        set_up(server.url(name), _ROLE)
        theatre = Theatre(server.sqlalchemy_url(name), server.url(name), _ROLE)
        try:
            for scenario, trace in traces:
                Replay(theatre, scenario).run(trace)
                steps.update(action.kind for action, _ in trace)
        finally:
            theatre.close()
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Two lines: what the exploration found, and what the replay did."""
    parser = argparse.ArgumentParser(prog="model", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=int, default=1000, help="interleavings to replay on PostgreSQL")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of interleavings")
    parser.add_argument("--no-exploring", action="store_true", help="only replay")
    options = parser.parse_args(arguments)
    found = Explored()
    begun = time.monotonic()
    if not options.no_exploring:
        found = explored()
        print(f"explored: {found} ({time.monotonic() - begun:.0f} s)", flush=True)
    begun = time.monotonic()
    traces = chosen(options.traces, options.seed)
    try:
        steps = replay(traces)
    except Mismatch as error:
        print(f"replayed with seed {options.seed}: {error}")
        return 1
    different = len({(scenario, tuple(action for action, _ in trace)) for scenario, trace in traces})
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(steps.items()))
    print(
        f"replayed with seed {options.seed}: {len(traces)} interleavings ({different} different), "
        f"{steps.total()} steps compared ({kinds}), no difference ({time.monotonic() - begun:.0f} s)"
    )
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
