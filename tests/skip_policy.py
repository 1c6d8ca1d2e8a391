"""A pytest plugin: a test that skips itself fails, unless a file of known skips names it with a reason.

A skipped test looks like a passed one in a summary, so what nobody checks goes unnoticed. Deselected tests
are no skips: whoever runs the suite asked for that.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

_ALLOWED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option that names the file, relative to the root directory."""
    parser.addini("allowed_skips", "TOML file of the skips that are allowed", default="tests/allowed-skips.toml")


def pytest_configure(config: pytest.Config) -> None:
    """Read the file; an entry without a test or a reason stops the run."""
    path = config.rootpath / config.getini("allowed_skips")
    config.stash[_ALLOWED] = _read(path)


def _read(path: Path) -> list[str]:
    if not path.exists():
        return []
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("skip", [])
    for entry in entries:
        if set(entry) != {"test", "reason"} or not all(str(value).strip() for value in entry.values()):
            raise pytest.UsageError(f"{path}: every [[skip]] has a 'test' and a 'reason', not {entry}")
    return [entry["test"] for entry in entries]


def _is_allowed(node_id: str, config: pytest.Config) -> bool:
    # A bracket in a pattern is a parameter's, not a set of characters.
    patterns = (pattern.replace("[", "[[]") for pattern in config.stash[_ALLOWED])
    return any(fnmatchcase(node_id, pattern) for pattern in patterns)


def _refusal(node_id: str, longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"SKIP NOT ALLOWED: {node_id}: {reason}\nList it in allowed-skips.toml with a reason, or let it run."


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that is not listed into a failure; expected failures (xfail) are left alone."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not _is_allowed(item.nodeid, item.config):
        report.outcome = "failed"
        report.longrepr = _refusal(item.nodeid, report.longrepr)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    if report.skipped and not _is_allowed(collector.nodeid, collector.config):
        report.outcome = "failed"
        report.longrepr = _refusal(collector.nodeid, report.longrepr)
    return report
