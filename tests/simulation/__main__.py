"""Simulates fleets of daemons in virtual time and prints lag and statements per deadline.

    python -m tests.simulation [--seed N] [--full] [--only WORDS] [--write]

The decisions are the daemon's own (`wake`, `rivals`, `scan`); the database is a model whose costs are measured ones,
see `database.Costs`. The same seed prints the same table. `--write` puts it into deploy/SCALING.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.simulation import page
from tests.simulation.fleet import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; the exit code is 0."""
    parser = argparse.ArgumentParser(
        prog="simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=page.SEED)
    parser.add_argument("--full", action="store_true", help="also what takes minutes")
    parser.add_argument("--only", default="", help="experiments whose row holds these words")
    parser.add_argument("--write", action="store_true", help="put the table into deploy/SCALING.md")
    options = parser.parse_args(arguments)
    if options.write and (options.only or options.full or options.seed != page.SEED):
        parser.error("the page shows all experiments, without --full, at the default seed")
    rows = [page.HEAD]
    sys.stdout.write(page.HEAD)
    for experiment in page.experiments(full=options.full):
        if options.only in experiment.name:
            rows.append(page.line(experiment, run(experiment, options.seed)))
            sys.stdout.write(rows[-1])
            sys.stdout.flush()
    if options.write:
        page.write("".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
