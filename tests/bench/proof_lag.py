"""Measures how late deadlines are met: two daemons, beside one APScheduler date job per run.

`python -m tests.bench.proof_lag` runs both sides in turn on one PostgreSQL that syncs to disk, under the same
load: first the daemons, then, with no daemon left, APScheduler. In turn, so that neither slows the other. Lag
runs from a run's deadline to the time stamp of the commit that marked it, as the server tracks it. Both databases
carry the same audit trigger, whose cost is part of the figures. Runs that a producer armed late are counted, and
left out of the lag.

Exits with 1 if the daemons missed a run, marked one early or twice, or if a side has no figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curfew_store.embedded import EmbeddedPostgres
from tests.bench import phases
from tests.bench.lag import Lag
from tests.bench.load import Load

PACKAGES = ("curfewd", "SQLAlchemy", "psycopg", "APScheduler")
SIDES = {"curfewd": "curfewd, 2 daemons", "apscheduler": "APScheduler, a job per run"}
_HEAD = (
    "",
    "n",
    "marked",
    "p50 ms",
    "p99 ms",
    "max ms",
    ">1 s",
    "early",
    "twice",
    "missed",
    "armed late",
    "least lead",
)
_WIDTHS = (27, 6, 8, 9, 9, 9, 6, 6, 6, 7, 12, 12)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both sides, print the table, write the JSON; returns the exit code."""
    options = parsed(arguments)
    load = Load(options.rate, options.seconds, options.ahead)
    print(
        f"proof-lag: {load.rate:g} deadlines a second for {load.seconds:g} s, configured {load.ahead:g} s ahead;"
        " one side after the other on one server",
        flush=True,
    )
    with EmbeddedPostgres.start(settings={"track_commit_timestamp": "on"}, durable=True) as server:
        lags: dict[str, Lag] = {}
        for side, measured in (("curfewd", phases.curfewd), ("apscheduler", phases.apscheduler)):
            load_before = os.getloadavg()[0]
            lags[side] = measured(server, load)
            print(f"  {SIDES[side]}: done; other load when it began: {load_before:.1f}", flush=True)
        about = machine(server.server_version)
    print("\n".join(table(lags)))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if options.json:
        result = {
            "load": asdict(load),
            "machine": about,
            "sides": {side: asdict(lag) for side, lag in lags.items()},
            "ratio": ratios(lags),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if lags["curfewd"].ok and all(lag.marked for lag in lags.values()) else 1


def machine(server_version: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "PostgreSQL": f"{server_version} (fsync on)",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def ratios(lags: dict[str, Lag]) -> dict[str, float | None]:
    """How many times APScheduler's lag is that of curfewd, for each figure."""
    found: dict[str, float | None] = {}
    for figure in ("p50", "p99", "max"):
        ours, theirs = (getattr(lags[side], figure) for side in ("curfewd", "apscheduler"))
        found[figure] = theirs / ours if ours and theirs else None
    return found


def table(lags: dict[str, Lag]) -> list[str]:
    """A line per side below a head, and one with the ratios."""
    rows: list[Sequence[str]] = [_HEAD]
    for side, lag in lags.items():
        share = f"{100 * lag.marked / lag.n:.1f}%" if lag.n else "none"
        figures = ["-" if value is None else f"{1000 * value:.1f}" for value in (lag.p50, lag.p99, lag.max)]
        counts = [str(count) for count in (lag.over_1s, lag.early, lag.twice, lag.missed, lag.armed_late)]
        rows.append([SIDES[side], str(lag.n), share, *figures, *counts, f"{lag.least_lead:.2f} s"])
    times = ["-" if ratio is None else f"x{ratio:.1f}" for ratio in ratios(lags).values()]
    rows.append(["APScheduler to curfewd", "", "", *times])
    return ["".join(_fitted(number, cell) for number, cell in enumerate(row)).rstrip() for row in rows]


def _fitted(column: int, cell: str) -> str:
    width = _WIDTHS[column]
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="proof_lag", description="How late are deadlines met?")
    parser.add_argument("--rate", type=float, default=100.0, help="deadlines a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long runs are armed")
    parser.add_argument("--ahead", type=float, default=5.0, help="seconds from the arming of a run to its deadline")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
