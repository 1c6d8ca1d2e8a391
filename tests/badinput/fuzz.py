"""The properties with other examples than `make test` has: ``python -m tests.badinput.fuzz --minutes 10 --seed 1``.

Each round takes a seed of its own, which follows from the given one, and tries every property with some hundreds of
examples. What fails is shown at its smallest, with the seed of its round, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter

from tests.badinput.properties import PROPERTIES, Property, of_the_pages
from tests.unit.test_http import Daemon, serving

EXAMPLES = 300


def main(arguments: list[str] | None = None) -> int:
    """Try until the time is over or something fails; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.badinput.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", help="names of properties, separated by commas")
    given = parser.parse_args(arguments)
    with serving(Daemon().app()) as url, of_the_pages(url) as pages:
        every = {**PROPERTIES, "pages": pages}
        chosen = {name: every[name] for name in (given.only.split(",") if given.only else every)}
        failed = _rounds(chosen, given.seed, time.monotonic() + 60 * given.minutes)
    return 1 if failed else 0


def _rounds(chosen: dict[str, Property], seed: int, until: float) -> bool:
    """Whether a property failed. At least one round is made."""
    seeds, tried = random.Random(seed), Counter[str]()
    print(f"seed {seed}")
    while True:
        of_round = seeds.randrange(2**32)
        for name, each in chosen.items():
            try:
                each.tried(EXAMPLES, of_round)
            except Exception:  # noqa: BLE001  whatever it is, it is what was looked for
                traceback.print_exc(file=sys.stdout)
                print(f"{name} failed in the round with seed {of_round}")
                return True
            tried[name] += EXAMPLES
        if time.monotonic() >= until:
            break
    for name, count in tried.items():
        print(f"{name:<10} {count:>9,} examples")
    return False


if __name__ == "__main__":
    sys.exit(main())
