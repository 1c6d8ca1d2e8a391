"""Run ids that the store hands out: UUIDs of version 7 (RFC 9562, sections 5.7 and 6.2, method 3).

They grow with time, so a new run's rows land on the right edge of every index instead of on a random page. The
twelve bits behind the milliseconds are a finer part of the same clock, a quarter of a microsecond each: ids that one
process hands out one after the other grow too, with no state to share between threads, and those of several
processes are in order as far as their clocks agree.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

__all__ = ["new_run_id"]


def new_run_id() -> UUID:
    """A UUID of version 7: Unix time in milliseconds (48 bits), its fraction (12 bits), 62 random bits."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8), "big")
    return UUID(int=(milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random >> 2)
