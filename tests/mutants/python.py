"""Mutants of the Python, as cosmic-ray makes them: operators, constants, conditions, loops, exceptions, decorators.

Left out is what cannot matter when the program runs (annotations, ``__all__``, what stands under ``TYPE_CHECKING``,
``@overload``), what is no Python, and what is no operator: cosmic-ray takes the bare ``*`` of a signature for a
multiplication. Nor does ``is`` become ``==``, or ``is not`` ``!=``: what is compared by identity here (None, a bool, a
member of an Enum, a connection) is equal to nothing else. Of the many operators that it puts in the place of one, two
are taken: whether ``a + b`` becomes ``a << b`` or ``a % b`` says little.
"""

from __future__ import annotations

import ast
import importlib
import io
import itertools
import random
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.mutants.mutant import Mutant, changed_lines

TABLE: Final = Path(__file__).with_suffix(".toml")

Place = tuple[int, int]
REPLACEMENTS = 2
SAME = {"core/ReplaceComparisonOperator_Is_Eq", "core/ReplaceComparisonOperator_IsNot_NotEq"}
_REPLACES = re.compile(r"Replace(Binary|Comparison|Unary)Operator_(?!Delete)")


class CosmicRayMissingError(Exception):
    """cosmic-ray is not installed."""

    def __init__(self) -> None:
        super().__init__("mutants of the Python need what tests/mutants/requirements.txt names: make mutants")


def own_tests() -> dict[str, tuple[str, ...]]:
    """What is mutated, relative to the checkout, and the tests that have to notice."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        f"{folder}/{package}/{module}.py": tuple(f"tests/{test}" for test in tests)
        for folder, packages in table.items()
        for package, modules in packages.items()
        for module, tests in modules.items()
    }


def python_mutants(root: Path, *, seed: int, match: str = "") -> tuple[Iterator[Mutant], dict[str, int]]:
    """All mutants of files whose name holds *match*, in an order by *seed*, and how many there are per file.

    Each is made when it is taken, since that costs more than to find where it can be.
    """
    try:
        mutating, plugins = (importlib.import_module(f"cosmic_ray.{name}") for name in ("mutating", "plugins"))
        nodes = importlib.import_module("cosmic_ray.ast")
    except ImportError as error:
        raise CosmicRayMissingError from error
    operators = {name: plugins.get_operator(name)() for name in _operators(plugins)}
    chance = random.Random(seed)
    found: list[tuple[str, str, int]] = []
    population: dict[str, int] = {}
    own = {file: tests for file, tests in own_tests().items() if match in file}
    sources = {file: (root / file).read_text(encoding="utf-8") for file in own}
    for file, source in sources.items():
        chosen = _chosen(_places(source, operators, nodes), chance)
        found += [(file, name, occurrence) for name, occurrence in chosen]
        population[file] = len(chosen)
    chance.shuffle(found)

    def made() -> Iterator[Mutant]:
        for file, name, occurrence in found:
            mutated = mutating.mutate_code(sources[file], operators[name], occurrence)
            if _is_python(mutated):
                what = f"{name.removeprefix('core/')}: {changed_lines(sources[file], mutated)}"
                yield Mutant("python", what, file, mutated, own[file])

    return made(), population


def _chosen(places: Iterable[tuple[str, int, Place]], chance: random.Random) -> list[tuple[str, int]]:
    """Operator and occurrence; of those that replace one operator by another, `REPLACEMENTS` for each place."""
    groups: dict[tuple[str, Place], list[tuple[str, int]]] = {}
    for name, occurrence, place in places:
        family = "replacement" if _REPLACES.search(name) else f"{name} {occurrence}"
        groups.setdefault((family, place), []).append((name, occurrence))
    return [
        each
        for (family, _), group in groups.items()
        for each in (chance.sample(group, min(REPLACEMENTS, len(group))) if family == "replacement" else group)
    ]


def _is_python(source: str | None) -> bool:
    try:
        ast.parse(source or "?")
    except SyntaxError:
        return False
    return True


def _operators(plugins: Any) -> Iterator[str]:
    """Those that need no arguments of their own and change something."""
    for name in sorted(plugins.operator_names()):
        if name not in SAME and not plugins.get_operator(name).arguments():
            yield name


def _places(source: str, operators: dict[str, Any], nodes: Any) -> Iterator[tuple[str, int, Place]]:
    """Operator, occurrence and place of each mutation that can matter."""
    idle = idle_ranges(source)
    every = list(nodes.ast_nodes(nodes.get_ast(source)))
    for name, operator in operators.items():
        positions = [place for node in every for place in operator.mutation_positions(node)]
        for occurrence, (start, _end) in enumerate(positions):
            if not any(first <= start < last for first, last in idle):
                yield name, occurrence, start


def idle_ranges(source: str) -> list[tuple[Place, Place]]:
    """Where code stands that does nothing when the program runs."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            found += [each.annotation for each in every if each is not None and each.annotation is not None]
            found += [] if node.returns is None else [node.returns]
            found += [each for each in node.decorator_list if ast.unparse(each) == "overload"]
        elif isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or (
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ):
            found.append(node)
    # A range ends where its node does; an operator that stands between two parts of it lies within.
    ranges = [
        ((each.lineno, each.col_offset), (each.end_lineno or each.lineno, each.end_col_offset or 0))  # type: ignore[attr-defined]
        for each in found
    ]
    # A decorator's own node begins behind its @.
    return [((line, max(column - 1, 0)), end) for (line, column), end in ranges] + list(_bare_markers(source))


def _bare_markers(source: str) -> Iterator[tuple[Place, Place]]:
    """The ``*`` and ``/`` of signatures, which stand alone before a comma."""
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(source).readline) if each.type != tokenize.NL]
    for each, following in itertools.pairwise(tokens):
        if each.string in {"*", "/"} and following.string == ",":
            yield each.start, each.end
