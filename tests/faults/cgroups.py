"""Limits that the kernel puts on groups of processes (control groups, version 1 as on the machines of our tests)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["thread_limit"]

_PIDS: Final = Path("/sys/fs/cgroup/pids")


@contextmanager
def thread_limit(pid: int) -> Iterator[None]:
    """The process can start no thread and no child for the length of a block; for root."""
    group = _PIDS / f"curfew-lab-{os.getpid()}-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield
    finally:
        (group / "pids.max").write_text("max")
        with contextlib.suppress(ProcessLookupError):
            (_PIDS / "cgroup.procs").write_text(str(pid))
        _remove(group)


def _remove(group: Path) -> None:
    # A process that is ending is a member for a moment more.
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
