"""How figures are shown: a table for people, JSON for machines."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.frame import Bench, Figure

PACKAGES = ("curfewd", "SQLAlchemy", "psycopg", "APScheduler")
_HEAD = ("", "median", "least", "greatest", "unit", "reference", "ratio", "limit", "")
_RIGHT = {1, 2, 3, 5, 6}


def machine(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "PostgreSQL": bench.setting("server_version"),
        "fsync": bench.setting("fsync"),
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def as_json(about: Mapping[str, Any], bench: Bench, scenarios: Mapping[str, Sequence[Figure]]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": dict(about) | {"load_after": round(os.getloadavg()[0], 2)},
        "full": bench.full,
        "seed": bench.seed,
        "runs": bench.runs,
        "scenarios": {name: [_figure(each) for each in figures] for name, figures in scenarios.items()},
        "data": bench.data,
    }


def table(figures: Sequence[Figure]) -> list[str]:
    """A line per figure below a head."""
    rows: list[Sequence[str]] = [_HEAD]
    for figure in figures:
        values = [number(value) for value in (figure.median, figure.least, figure.greatest)]
        beside = number(statistics.median(figure.reference)) if figure.reference else ""
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        rows.append([figure.name, *values, figure.unit, beside, ratio, figure.goal, verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [
        "  ".join(_fitted(row[column], column, widths[column]) for column in range(len(row))).rstrip() for row in rows
    ]


def number(value: float) -> str:
    """Three significant digits, whole and with separators from a hundred on."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _fitted(cell: str, column: int, width: int) -> str:
    return cell.rjust(width) if column in _RIGHT else cell.ljust(width)


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "values": list(figure.values),
        "median": figure.median,
        "least": figure.least,
        "greatest": figure.greatest,
        "reference": list(figure.reference),
        "ratio": figure.ratio,
        "goal": figure.goal,
        "met": figure.met,
        "notes": dict(figure.notes),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
