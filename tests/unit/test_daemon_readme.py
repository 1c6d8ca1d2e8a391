"""The operator's guide says what the code does: each table in it is the one that the code makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import curfew_daemon
from curfew_daemon import events, lifecycle, metrics, settings_table
from curfew_daemon.cli import app
from curfew_daemon.failures import REMEDIES

GUIDE = Path(curfew_daemon.__file__).parents[1] / "README.md"


def states() -> str:
    """The states of the database and their remedies as a Markdown table."""
    rows = ["| State | What to do |", "|---|---|"]
    rows += [f"| `{state}` | {remedy or 'nothing: deadlines are enforced'} |" for state, remedy in REMEDIES.items()]
    return "\n".join(rows) + "\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings_table.markdown,
    "metrics": metrics.table,
    "events": events.table,
    "exit-codes": lifecycle.exit_table,
    "states": states,
}


def marked(name: str, content: str) -> str:
    """A part of the guide between its markers."""
    return f"<!-- {name}:begin -->\n{content}<!-- {name}:end -->\n"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_one_that_the_code_makes(name: str) -> None:
    """To bring one up to date, paste what the code makes between the markers."""
    guide = GUIDE.read_text(encoding="utf-8")
    assert marked(name, TABLES[name]()) in guide, f"between the markers of {name} belongs:\n{TABLES[name]()}"


def test_every_command_is_described() -> None:
    """The table of commands has each command of the command line, and no other."""
    guide = GUIDE.read_text(encoding="utf-8")
    commands = {
        str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback
    }
    assert set(re.findall(r"^\| `curfewd (\w+)` \|", guide, re.MULTILINE)) == commands


def test_links_lead_to_files() -> None:
    """A relative link names a file of the project."""
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text(encoding="utf-8")):
        assert (GUIDE.parent / target).exists(), target
