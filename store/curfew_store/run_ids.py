"""Run ids that the store hands out: UUIDs of version 7 (RFC 9562, section 5.7).

They grow with time, so a new run's rows land on the right edge of every index instead of on a random page.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

__all__ = ["new_run_id"]


def new_run_id() -> UUID:
    """A UUID of version 7: 48 bits of Unix time in milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80
        | 7 << 76
        | (random >> 66 & 0xFFF) << 64
        | 2 << 62
        | random & (1 << 62) - 1
    )
