"""Measures everything that the project promises about speed, in one command: ``python -m tests.bench``.

Each scenario takes seconds by default, and much longer with ``--full``, at full sizes. A scenario that is not there
yet, or fails, is said and does not stop the others; the exit code is 1 then, and 1 where a figure misses its limit
with ``--strict``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tests.bench import report
from tests.bench.frame import Bench, Figure

SCENARIOS = (
    "drain",
    "batches",
    "horizon",
    "lag_steady",
    "lag_burst",
    "idle",
    "failover",
    "size",
    "upkeep",
    "producers",
    "hints",
    "retention",
    "sockets",
    "views",
)
PICTURES = Path(__file__).parent / "pictures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios that were asked for; returns the exit code."""
    options = parsed(arguments)
    measured: dict[str, list[Figure]] = {}
    failed: list[str] = []
    with Bench(
        full=options.full,
        seed=options.seed,
        runs=options.runs,
        database_url=options.database_url,
        pictures=options.pictures,
    ) as bench:
        about = report.machine(bench)
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        for name in options.only:
            scenario = found(name)
            if scenario is None:
                print(f"\n{name}: not there")
                failed.append(name)
                continue
            print(f"\n{name}: {scenario.TITLE}", flush=True)
            begun = time.monotonic()
            try:
                measured[name] = scenario.run(bench)
            except Exception:  # noqa: BLE001  (the others are still worth measuring)
                traceback.print_exc()
                failed.append(name)
                continue
            print("\n".join(report.table(measured[name])))
            print(f"({time.monotonic() - begun:.0f} s)", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(report.as_json(about, bench, measured), indent=2) + "\n")
    missed = [figure.name for figures in measured.values() for figure in figures if figure.met is False]
    if missed:
        print("\nmissed: " + "; ".join(missed))
    return 1 if failed or (missed and options.strict) else 0


def found(name: str) -> ModuleType | None:
    """The scenario of that name; ``None`` where its module is missing."""
    try:
        return importlib.import_module(f"tests.bench.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"tests.bench.{name}":
            raise
        return None


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.bench", description="What does enforcing cost, and how late is it?")
    parser.add_argument("--full", action="store_true", help="full sizes, which take long")
    parser.add_argument("--only", type=_names, default=SCENARIOS, metavar="A,B", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--runs", type=int, default=3, help="how often each is measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--database-url", help="measure on this server, as a role that may create databases")
    parser.add_argument(
        "--pictures", type=Path, nargs="?", const=PICTURES, help=f"draw pictures into a folder ({PICTURES.name}/)"
    )
    parser.add_argument("--strict", action="store_true", help="fail where a figure misses its limit")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(f"no such scenario: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
