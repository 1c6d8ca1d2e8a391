"""One mutant: a file with one change, and the tests that ought to notice."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["killed", "survived", "timeout", "broken"]


@dataclass(frozen=True)
class Mutant:
    """*source* is the whole of *file* (relative to the checkout) with the change in it.

    *name* says what was changed and stays the same as long as the changed lines do.
    """

    kind: Literal["sql", "python"]
    name: str
    file: str
    source: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a mutant fared: *killed* by the test *by*, or by its tests taking for ever (*timeout*).

    A test that hangs is one that failed, and what keeps a module or a file of tests from being imported is *by*, too.
    *broken* is a mutant under which no test ran for another reason, or one failed that does so anyway: no proof.
    """

    mutant: Mutant
    verdict: Verdict
    by: str
    seconds: float

    @property
    def dead(self) -> bool:
        """Whether some test noticed."""
        return self.verdict in {"killed", "timeout"}


def changed_lines(before: str, after: str) -> str:
    """What differs between two sources, on one line: the lines that went, an arrow, those that came."""
    diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[3:]
    gone = " ".join(line[1:].strip() for line in diff if line.startswith("-"))
    came = " ".join(line[1:].strip() for line in diff if line.startswith("+"))
    return f"{gone} -> {came}" if came else f"{gone} -> (nothing)"
