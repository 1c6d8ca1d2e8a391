"""What the kernel says about a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["held_by"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def held_by(pid: int) -> tuple[int, int, int]:
    """Open files, threads and resident bytes of a process; raises `OSError` where it has gone."""
    here = Path(f"/proc/{pid}")
    files = len(list((here / "fd").iterdir()))
    threads = len(list((here / "task").iterdir()))
    resident = int((here / "statm").read_text().split()[1]) * _PAGE
    return files, threads, resident
