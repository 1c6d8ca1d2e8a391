"""`python -m tests.faults --seed N --minutes M`: faults of every kind against daemons at work, and the verdict.

Prints each strike, then a table, and exits with 0 if no invariant was violated and no laboratory was lost. A run of
all kinds writes its result into `tests/faults/results`; `python -m tests.faults.report` sums those up in
`tests/README.md`. Which faults are struck, in what order and with what choices, follows from the seed; how they
interleave with the load does not.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults import campaign, results
from tests.faults.kinds import KINDS, chosen
from tests.faults.lab import Kind
from tests.faults.needs import missing
from tests.faults.nemesis import schedule


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="faults", description="Daemons, producers, and a nemesis.")
    parser.add_argument("--seed", type=int, default=1, help="chooses the faults, their order and their details")
    parser.add_argument("--minutes", type=float, default=10.0, help="of strikes, at most 60")
    parser.add_argument("--only", help="codes or names of faults, separated by commas; writes no result")
    parser.add_argument("--strikes", type=int, help="at most so many per stage; writes no result")
    parser.add_argument("--once", action="store_true", help="each fault once; writes no result")
    parser.add_argument("--dry", action="store_true", help="show the beginning of the schedule and strike nothing")
    parser.add_argument("--daemons", type=int, default=4, help="in the fleet; each takes some 100 MB")
    parser.add_argument("--record", action="store_true", help="write the result of a part as well")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for logs and history of labs with violations")
    parser.add_argument("--keep-all", action="store_true", help="with --keep: of every lab")
    parser.add_argument("--quiet", action="store_true", help="print the table alone")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 60:
        parser.error("--minutes: between 0 and 60")
    if not 2 <= options.daemons <= 100:
        parser.error("--daemons: between 2, since one has to be left to meet the deadlines, and 100")
    return options


def say(line: str) -> None:
    """Shows progress at once, also into a pipe."""
    print(line, flush=True)


def usable(kinds: Sequence[Kind]) -> list[Kind]:
    """Those whose needs this machine meets; names the others."""
    for kind in kinds:
        if lacking := missing(kind):
            say(f"left out: {kind.code} {kind.name} needs {', '.join(lacking)}")
    return [kind for kind in kinds if not missing(kind)]


def show_plan(plan: campaign.Campaign) -> None:
    """What the first strikes of each lab would be, and how often each fault would come in the first hundred."""
    for stage, kinds, seed, seconds in plan.plan():
        first = list(itertools.islice(schedule(kinds, seed), 100))
        say(f"{stage}, schedule {seed}, {seconds:.0f} s: " + " ".join(each.kind.name for each in first[:12]) + " …")
        say("  " + ", ".join(f"{times} of {code}" for code, times in Counter(each.kind.code for each in first).items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    options = parsed(arguments)
    try:
        kinds = usable(chosen(options.only))
    except ValueError as error:
        say(f"faults: {error}")
        return 2
    if not kinds:
        say("faults: nothing is left to strike with")
        return 2
    plan = campaign.Campaign(
        kinds,
        options.seed,
        options.minutes * 60,
        options.strikes,
        options.once,
        daemons=options.daemons,
        keep=options.keep,
        keep_all=options.keep_all,
    )
    if options.dry:
        show_plan(plan)
        return 0
    outcome = campaign.run(plan, (lambda _: None) if options.quiet else say, quiet=options.quiet)
    data = results.as_data(plan, outcome, KINDS)
    whole = options.only is None and options.strikes is None and not options.once
    say(results.shown(data, whole=whole))
    if whole or options.record:
        say(f"written: {results.write(data).relative_to(results.FOLDER.parents[2])}")
    return 1 if outcome.violations or outcome.lost else 0


if __name__ == "__main__":
    sys.exit(main())
