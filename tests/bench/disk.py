"""How long the disk stood still while something was measured: a commit, whoever makes it, waits for the disk.

On a shared machine a write can take a hundred times as long as usual, once a minute or so. That is seen in the lag of
daemons and of reference loops alike, and without this nobody could tell it from a fault of theirs. A minute of
deadlines has room for it among the hundredth that a 99th percentile leaves out; a few seconds have not, and are
measured again.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from tests.bench.frame import Bench, in_background

_EVERY: Final = 0.05
"""Seconds between two writes: rare enough to cost the server nothing, and no longer than what is worth telling."""
_STILL: Final = 0.02
"""A write that took longer, in seconds, is not how this disk usually is."""
_TRIES: Final = 4
_PAGE: Final = b"\0" * 8192

T = TypeVar("T")


@dataclass
class Disk:
    """What writing a page and waiting for the disk took, in seconds."""

    longest: float = 0.0


def beside_the_disk(bench: Bench, measure: Callable[[], T]) -> tuple[T, Disk]:
    """What *measure* returns and how the disk was meanwhile.

    Unless the bench measures at full length, it is repeated while the disk stands still, whatever was measured, which
    is said; the last of four is taken as it is.
    """
    for further in reversed(range(1 if bench.full else _TRIES)):
        with watched_disk(bench) as disk:
            measured = measure()
        if disk.longest <= _STILL or not further:
            break
        bench.say(f"a write to the disk took {1000 * disk.longest:.0f} ms: measured again")
    return measured, disk


@contextmanager
def watched_disk(bench: Bench) -> Iterator[Disk]:
    """Inside, a page is written to the disk again and again; nothing is known of the disk of a server elsewhere."""
    disk, over = Disk(), threading.Event()
    if not bench.own_server:
        yield disk
        return
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(_PAGE)
        os.fsync(file.fileno())

        def write() -> None:
            while not over.wait(_EVERY):
                begun = time.monotonic()
                os.pwrite(file.fileno(), _PAGE, 0)
                os.fdatasync(file.fileno())
                disk.longest = max(disk.longest, time.monotonic() - begun)

        with in_background(write, over=over):
            yield disk
