"""Run mutants of the SQL and of the Python, each against the tests of its module, in private copies of the checkout.

python -m tests.mutants [--only sql|python] [--sample K --seed N] [--file TEXT] [--match TEXT]
                        [--minutes M] [--save]
"""

from __future__ import annotations

import argparse
import itertools
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from curfew_store.embedded import EmbeddedPostgres
from tests.mutants import report
from tests.mutants.mutant import Mutant, Outcome
from tests.mutants.python import CosmicRayMissingError, python_mutants
from tests.mutants.sandbox import ROOT, Known, Sandbox, SandboxError
from tests.mutants.sql import PieceNotFoundError, changes, sql_mutants


def try_all(mutants: Sequence[Mutant], workers: int, minutes: float) -> list[Outcome]:
    """Try every mutant in one of *workers* sandboxes on one server; says how each fared as soon as it is known.

    After so many *minutes* none is begun any more.
    """
    end = time.monotonic() + 60 * minutes
    todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        todo.put(mutant)
    outcomes: list[Outcome] = []
    troubles: list[BaseException] = []
    with EmbeddedPostgres.start() as server:
        shared = (server.url(), Known(), todo, end, outcomes, troubles)
        threads = [threading.Thread(target=_work, args=shared) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if troubles:
        raise troubles[0]
    return outcomes


def _work(
    url: str,
    known: Known,
    todo: queue.SimpleQueue[Mutant],
    end: float,
    outcomes: list[Outcome],
    troubles: list[BaseException],
) -> None:
    try:
        sandbox = Sandbox(url, known)
        try:
            while not troubles and time.monotonic() < end:
                outcome = sandbox.try_out(todo.get_nowait())
                outcomes.append(outcome)
                _tell(outcome, len(outcomes))
        finally:
            sandbox.close()
    except queue.Empty:
        pass
    except BaseException as error:  # noqa: BLE001 - handed on to the thread that waits
        troubles.append(error)


def _tell(outcome: Outcome, number: int) -> None:
    where = report.subject_of(outcome.mutant.kind, outcome.mutant.file)
    print(
        f"{number:4} {outcome.seconds:5.1f} s {outcome.verdict:8} {where}: {outcome.mutant.name}  [{outcome.by}]",
        flush=True,
    )


def chosen(options: argparse.Namespace) -> tuple[list[Mutant], dict[str, int]]:
    """The mutants that are asked for, and how many there are of each subject."""
    mutants: list[Mutant] = []
    population: dict[str, int] = {}
    if options.only != "python":
        mutants += [mutant for mutant in sql_mutants(ROOT) if _matches(mutant, options)]
        population["the store's SQL"] = len(changes())
    if options.only != "sql":
        found, counts = python_mutants(ROOT, seed=options.seed, match=options.file)
        mutants += itertools.islice((mutant for mutant in found if _matches(mutant, options)), options.sample)
        population |= {report.subject_of("python", file): count for file, count in counts.items()}
    return mutants, population


def _matches(mutant: Mutant, options: argparse.Namespace) -> bool:
    return options.match in f"{mutant.file}: {mutant.name}" and options.file in mutant.file


def save(options: argparse.Namespace, population: dict[str, int], outcomes: list[Outcome]) -> None:
    """Write the results of the kinds that were run, and the page."""
    found = report.lines(population, outcomes)
    if options.only != "python":
        report.save("sql", options.seed, found[:1])
    if options.only != "sql":
        report.save("python", options.seed, found if options.only else found[1:])
    report.write_page()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if nothing survived that is not explained."""
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["sql", "python"], help="one kind of mutants")
    parser.add_argument("--sample", type=int, default=400, help="how many mutants of the Python to try")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--file", default="", help="only mutants of files whose name holds this text")
    parser.add_argument("--match", default="", help="only mutants whose file and name hold this text")
    parser.add_argument("--workers", type=int, default=2, help="how many to try at once")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no mutant after so long")
    parser.add_argument("--save", action="store_true", help="write the results file and the table in tests/README.md")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        mutants, population = chosen(options)
        outcomes = try_all(mutants, options.workers, options.minutes)
    except (CosmicRayMissingError, PieceNotFoundError, SandboxError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.save:
        save(options, population, outcomes)
    explained = report.explanations()
    unexplained = [outcome for outcome in outcomes if not outcome.dead and report.key_of(outcome) not in explained]
    counts = Counter(outcome.verdict for outcome in outcomes)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"{len(outcomes)} mutants in {time.monotonic() - begun:.0f} s: {verdicts}; {len(unexplained)} not explained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
