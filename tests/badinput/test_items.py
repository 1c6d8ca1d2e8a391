"""The list of bad inputs, its page and the tests that it names, held against each other."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.badinput.items import ITEMS, README, TESTS, page_with_table

OF_ANY_INPUT = {"test_fuzz.py", "test_items.py"}


@cache
def names_in(file: Path) -> frozenset[str]:
    """The names of a module's tests."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, functions) and node.name.startswith("test_"))


def test_every_item_is_held_by_a_test() -> None:
    """All 78 have one at least, and none is on the list twice."""
    assert len(ITEMS) == 78
    assert [number for number, item in enumerate(ITEMS, 1) if not item.tests] == []
    assert len({item.given for item in ITEMS}) == 78


def test_every_named_test_exists() -> None:
    """No item leans on a test that was renamed or dropped."""
    named = {test.partition("::")[::2] for item in ITEMS for test in item.tests}
    assert {(file, name) for file, name in named if name not in names_in(TESTS / file)} == set()


def test_every_test_of_this_folder_is_named() -> None:
    """What is tested here is on the list, but for the tests of any input and of the list itself."""
    named = {test for item in ITEMS for test in item.tests}
    here = {
        f"badinput/{file.name}::{name}"
        for file in Path(__file__).parent.glob("test_*.py")
        if file.name not in OF_ANY_INPUT
        for name in names_in(file)
    }
    assert here - named == {"badinput/test_store.py::test_every_joining_method_was_tried"}


def test_the_page_has_the_list() -> None:
    """`python -m tests.badinput.items` would write nothing new."""
    page = README.read_text(encoding="utf-8")
    assert page_with_table(page) == page
