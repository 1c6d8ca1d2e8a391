"""What a campaign came to, as a table for people and as a file for the report."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.faults.campaign import Campaign, Outcome
from tests.faults.checker import INVARIANTS
from tests.faults.kinds import ABSENT, TITLES
from tests.faults.lab import Kind, Violation
from tests.faults.needs import missing
from tests.faults.nemesis import Struck

__all__ = ["FOLDER", "as_data", "shown", "write"]

FOLDER: Final = Path(__file__).parent / "results"
_PACKAGES: Final = ("curfewd", "sqlalchemy", "psycopg", "apscheduler")
_SHOWN_VIOLATIONS: Final = 50
_AFTERMATH: Final = 10_000_000  # microseconds for which a fault may be to blame after its end


def as_data(campaign: Campaign, outcome: Outcome, all_kinds: Sequence[Kind]) -> dict[str, Any]:
    """The result as plain data."""
    invariants = Counter(violation.invariant for violation in outcome.violations)
    return {
        "seed": campaign.seed,
        "seconds": round(outcome.seconds),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "postgresql": outcome.server_version}
        | {name: version(name) for name in _PACKAGES},
        "labs": outcome.labs,
        "labs_lost": outcome.lost,
        "stalled_seconds": round(outcome.stalled, 1),
        "daemons": campaign.daemons,
        "producers": campaign.producers,
        "calls": outcome.calls,
        "unknown_calls": outcome.unknown,
        "changes": outcome.changes,
        "marks": outcome.marks,
        "injected": len(outcome.struck),
        "faults": _by_code(outcome),
        "botched": dict(Counter(kind.code for kind, _ in outcome.botched)),
        "not_injected": _reasons(outcome.struck, all_kinds),
        "violations": {name: invariants[name] for name in INVARIANTS},
        "violations_said": [f"{each.invariant}: {each.said}" for each in outcome.violations[:_SHOWN_VIOLATIONS]],
        "history_digests": outcome.digests,
    }


def _by_code(outcome: Outcome) -> dict[str, dict[str, Any]]:
    of: dict[str, list[Struck]] = {}
    blamed = Counter(code for violation in outcome.violations for code in _blamed(violation, outcome.struck))
    for each in outcome.struck:
        of.setdefault(each.kind.code, []).append(each)
    return {
        code: {
            "times": len(of[code]),
            "recovery": sorted(round(each.recovery, 3) for each in of[code] if each.recovery is not None),
            "never_recovered": sum(each.recovery is None for each in of[code]),
            "violations": blamed[code],
        }
        for code in TITLES
        if code in of
    }


def _blamed(violation: Violation, struck: Iterable[Struck]) -> set[str]:
    """The faults that a violation may be due to: its own, or all that were in force around its moment."""
    if violation.code is not None or violation.at is None:
        return {violation.code} if violation.code is not None else set()
    return {
        each.kind.code
        for each in struck
        if each.strike.began.wall <= violation.at <= each.strike.ended.wall + _AFTERMATH
    }


def _reasons(struck: Iterable[Struck], kinds: Sequence[Kind]) -> dict[str, str]:
    seen = {each.kind.code for each in struck}
    reasons: dict[str, str] = {}
    for code in TITLES:
        if code in seen:
            continue
        mine = [kind for kind in kinds if kind.code == code]
        lacking = sorted({need for kind in mine for need in missing(kind)})
        if not mine:
            reasons[code] = ABSENT.get(code, "no such kind yet")
        elif lacking:
            reasons[code] = f"needs {', '.join(lacking)}"
        else:
            reasons[code] = "not chosen, or the time was over before its turn"
    return reasons


def _commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "../../store", "../../daemon"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout.strip() or "unknown") + (" and changes" if dirty.stdout.strip() else "")


def shown(data: dict[str, Any], *, whole: bool = True) -> str:
    """The result as a table in plain text, and the verdict; *whole* lists also what was not injected, with why."""
    lines = [f"{'fault':5} {'times':>6} {'recovery p50':>13} {'max':>8} {'violations':>11}"]
    for code, each in data["faults"].items():
        recovery = each["recovery"]
        middle = f"{statistics.median(recovery):.2f} s" if recovery else "-"
        longest = f"{max(recovery):.2f} s" if recovery else "-"
        lines.append(f"{code:5} {each['times']:6} {middle:>13} {longest:>8} {each['violations']:11}  {TITLES[code]}")
    if whole:
        lines += [f"{code:5} {0:6}  {TITLES[code]}: {reason}" for code, reason in data["not_injected"].items()]
    lines += [f"{code:5} could not be injected {times} times" for code, times in data["botched"].items()]
    lines += [f"LOST LAB {each}" for each in data["labs_lost"]]
    broken = {name: count for name, count in data["violations"].items() if count}
    lines.append(
        f"faults: {'FAIL' if broken or data['labs_lost'] else 'PASS'} seed={data['seed']} injected={data['injected']}"
        f" calls={data['calls']} marks={data['marks']} violations={sum(broken.values())}"
        + "".join(f" {name}={count}" for name, count in broken.items())
        + f" seconds={data['seconds']} stalled={data['stalled_seconds']}"
    )
    return "\n".join(lines)


def write(data: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write the file of a result; it replaces an earlier one of the same seed."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{data['seed']}.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path
