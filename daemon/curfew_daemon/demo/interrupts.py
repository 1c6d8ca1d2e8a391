"""Ctrl-C in three steps: end with the summary, end at once, end without cleaning up."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns stop signals into `asked` while `gentle` is set, and into `KeyboardInterrupt` otherwise.

    The second signal always raises, SIGHUP too (nobody is there to read a summary). The third one exits on the
    spot, and the supervisors of the children clean up. For the main thread, as a context manager.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.gentle = False
        self.by = signal.SIGINT
        """The last signal that came."""
        self._raised = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.by = signal.Signals(number)
        if self._raised:
            os._exit(128 + number)
        if self.gentle and not self.asked.is_set() and number != signal.SIGHUP:
            self.asked.set()
            return
        self._raised = True
        raise KeyboardInterrupt
