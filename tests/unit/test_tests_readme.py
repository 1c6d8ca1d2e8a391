"""The page of the tests names what there is: folders, commands and scenarios."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bench import __main__ as bench

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS / "README.md").read_text(encoding="utf-8")


def rows(head: str) -> list[str]:
    """The rows of the table of the page with that first line."""
    return PAGE.split(f"{head}\n|---", 1)[1].split("\n\n", 1)[0].splitlines()[1:]


def test_every_scenario_of_the_bench_is_in_the_table_with_its_title() -> None:
    """In the order in which they are measured, each once."""
    scenarios = [(name, bench.found(name)) for name in bench.SCENARIOS]
    expected = [f"| `{name}` | {scenario.TITLE} |" for name, scenario in scenarios if scenario is not None]
    assert rows("| scenario | measures |") == expected


def test_every_folder_is_in_the_table() -> None:
    """Each package of tests, and no other."""
    folders = {each.parent.name for each in TESTS.glob("*/__init__.py")}
    assert {row.split("`")[1].rstrip("/") for row in rows("| folder | holds | may use |")} == folders


def test_every_command_in_the_table_is_there() -> None:
    """A target of the Makefile; each of those that run a module of the tests is in the table."""
    makefile = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    targets = dict(re.findall(r"^([a-z-]+): .*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    named = {row.split("`")[1].removeprefix("make ") for row in rows("| command | runs | needs |")}
    assert named <= targets.keys()
    assert {name for name, recipe in targets.items() if "-m tests." in recipe} <= named
