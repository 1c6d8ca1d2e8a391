"""Reads deploy/Dockerfile: its stages, and in each the instructions in their order."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PATH = ROOT / "deploy" / "Dockerfile"
IGNORE_FILE = ROOT / ".dockerignore"


@dataclass(frozen=True)
class Instruction:
    """One instruction; continued lines are joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words as a shell splits them, or those of its JSON form."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """Name and value of each pair, as ENV, LABEL and ARG have them; '' without a value."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}


@dataclass
class Stage:
    """What stands between one FROM and the next. `base` is the image, with ARGs of before filled in."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Every instruction of that name."""
        return [each for each in self.instructions if each.name == name]

    def merged(self, name: str) -> dict[str, str]:
        """The pairs of every such instruction, the last one winning."""
        return {key: value for each in self.all(name) for key, value in each.pairs.items()}

    def last(self, name: str) -> list[str]:
        """The words of the instruction that counts where there are several; fails if there is none."""
        return self.all(name)[-1].words


def instructions(text: str) -> list[Instruction]:
    """Every instruction of a Dockerfile without heredocs."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [Instruction(name.upper(), rest) for name, rest in found]


def stages(text: str) -> list[Stage]:
    """The stages, the last of which is the image."""
    given: dict[str, str] = {}
    found: list[Stage] = []
    for each in instructions(text):
        if each.name == "FROM":
            base, *rest = each.words
            found.append(Stage(expand(base, given), rest[1] if rest else ""))
        elif found:
            found[-1].instructions.append(each)
        else:
            assert each.name == "ARG", f"{each.name} before the first FROM"
            given |= each.pairs
    return found


def expand(text: str, values: dict[str, str]) -> str:
    """The text with each ${NAME} filled in; fails on a name without a value."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)
