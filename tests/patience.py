"""How long a test waits for what it expects: so long that no busy machine takes a slow event for a missing one."""

from __future__ import annotations

from typing import Final

__all__ = ["PATIENCE"]

PATIENCE: Final = 60.0
"""Seconds after which an event that was waited for is taken for one that never comes."""
