"""A page as bytes that are rendered once and served for a while, however often they are asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Snapshot"]


class Snapshot:
    """Renders at most once per `max_age` seconds and format; one thread renders, the others get its bytes."""

    def __init__(
        self,
        render: Callable[[bool], bytes],
        *,
        max_age: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._render = render
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[bool, tuple[float, bytes]] = {}

    def get(self, alternative: bool) -> bytes:
        """The bytes of one of the two formats, at most `max_age` seconds old."""
        with self._lock:
            kept = self._kept.get(alternative)
            if kept is None or self._clock() - kept[0] >= self._max_age:
                kept = self._kept[alternative] = (self._clock(), self._render(alternative))
            return kept[1]
