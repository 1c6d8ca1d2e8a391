"""The commands of the pages under deploy/, to be run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "systemd"


def commands(heading: str, page: Path = FOLDER / "README.md") -> list[str]:
    """The shell blocks under a heading of the second level, in order; fails if there is none."""
    text = page.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+)\n([\s\S]*?)(?=^## |\Z)", text, re.MULTILINE))
    blocks = re.findall(r"^```sh\n([\s\S]*?)^```", sections[heading], re.MULTILINE)
    assert blocks, f"no commands under {heading!r}"
    return blocks
