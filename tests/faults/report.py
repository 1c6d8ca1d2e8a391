"""`python -m tests.faults.report`: all recorded runs, summed up in the fault section of `tests/README.md`.

The page is made from the files in `tests/faults/results` alone, so a test can hold the two against each other.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.faults.checker import INVARIANTS
from tests.faults.checker import TITLES as PROMISES
from tests.faults.kinds import ABSENT, TITLES
from tests.faults.results import FOLDER

__all__ = ["BEGIN", "END", "PAGE", "loaded", "section", "with_section"]

PAGE: Final = Path(__file__).parents[1] / "README.md"
BEGIN: Final = "<!-- faults:begin -->"
END: Final = "<!-- faults:end -->"
_NOT_YET: Final = "no run recorded it"


def loaded(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The recorded runs in the order of their seeds."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(runs, key=lambda run: int(run["seed"]))


def section(runs: Sequence[dict[str, Any]]) -> str:
    """The section between the markers: what was run, each fault, and each invariant; without runs their names alone."""
    if not runs:
        return "\n".join(["Not run yet.", "", *_legend("fault", TITLES), "", *_legend("invariant", PROMISES), ""])
    return "\n".join([*_summary(runs), "", *_faults(runs), "", *_invariants(runs), ""])


def _legend(what: str, titles: Mapping[str, str]) -> list[str]:
    return [f"| | {what} |", "|---|---|", *(f"| {code} | {title} |" for code, title in titles.items())]


def _summary(runs: Sequence[dict[str, Any]]) -> list[str]:
    injected = sum(run["injected"] for run in runs)
    broken = sum(sum(run["violations"].values()) for run in runs)
    calls, marks = (sum(run[name] for run in runs) for name in ("calls", "marks"))
    minutes = sum(run["seconds"] for run in runs) / 60
    spent = f"{minutes:.0f} minutes of {len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    lost = sum(len(run.get("labs_lost", ())) for run in runs)
    verdict = f"{broken:,} violations" + (f", {lost} laboratories lost" if lost else "")
    lines = [
        f"**{injected:,} faults in {spent}, {calls:,} calls, {marks:,} marks: {verdict}.**",
        "",
        "| seed | minutes | daemons | faults | calls | violations | PostgreSQL | commit |",
        "|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for run in runs:
        commit, _, rest = run["commit"].partition(" ")
        lines.append(
            f"| {run['seed']} | {run['seconds'] / 60:.0f} | {run['daemons']} | {run['injected']:,} | {run['calls']:,}"
            f" | {sum(run['violations'].values())} | {run['versions']['postgresql']} | `{commit[:10]}`"
            f"{f' {rest}' if rest else ''} |"
        )
    return lines


def _faults(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| | fault | times | recovery p50 | max | violations |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for code, title in TITLES.items():
        mine = [run["faults"][code] for run in runs if code in run["faults"]]
        times = sum(each["times"] for each in mine)
        recovery = [seconds for each in mine for seconds in each["recovery"]]
        if not times:
            why = next((run["not_injected"][code] for run in runs if code in run["not_injected"]), None)
            lines.append(f"| {code} | {title} | 0: {ABSENT.get(code) or why or _NOT_YET} | | | |")
            continue
        middle, longest = (f"{of(recovery):.2f} s" if recovery else "" for of in (statistics.median, max))
        found = sum(each["violations"] for each in mine)
        lines.append(f"| {code} | {title} | {times:,} | {middle} | {longest} | {found} |")
    return lines


def _invariants(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| | invariant | violations |", "|---|---|---:|"]
    lines += [
        f"| {name} | {PROMISES[name]} | {sum(run['violations'].get(name, 0) for run in runs)} |" for name in INVARIANTS
    ]
    return lines


def with_section(page: str, said: str, begin: str = BEGIN, end: str = END) -> str:
    """*page* with *said* between two markers; raises `ValueError` where they are missing."""
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"the page has no {begin} … {end}")
    return f"{before}{begin}\n{said}{end}{after}"


def main() -> int:
    """Write the section; returns the exit code."""
    runs = loaded()
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), section(runs)), encoding="utf-8")
    print(f"{PAGE.name}: {len(runs)} runs, {sum(run['injected'] for run in runs)} faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
