"""What the kernel says about a process, from ``/proc`` (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident memory in bytes, now."""
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """The most resident memory that the process has had, in bytes."""
    return _status(pid, "VmHWM")


def cpu(pid: int) -> float:
    """Seconds of processor time, user and system, since the process began."""
    # The name in parentheses may hold anything, blanks too.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")
