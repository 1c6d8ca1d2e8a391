"""What there is to show at one moment, and what a way of showing it must be able to do."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from curfew_daemon.demo.happenings import Happening, Tally
from curfew_daemon.demo.stage import Outlook
from curfew_daemon.demo.summary import Summary
from curfew_daemon.demo.verdict import Faults

__all__ = ["Addresses", "Scene", "Show", "Step", "clock", "say", "step"]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to look while it plays."""

    server: str
    database: str
    schema: str
    page: str
    lag: str
    """From what to what the lag is measured."""

    @property
    def metrics(self) -> str:
        """The daemon's metrics."""
        return f"{self.page}/metrics"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything at one moment. *seconds* is how long runs are started, ``None`` for ever."""

    elapsed: float
    seconds: float | None
    ending: bool
    addresses: Addresses
    tally: Tally
    faults: Faults
    outlook: Outlook


class Show(Protocol):
    """A way of showing the demo: `open`, `update` ten times a second, `close`, in this order."""

    def open(self, addresses: Addresses) -> None:
        """The set-up is done and the first run is about to be started."""

    def update(self, scene: Scene, happenings: Sequence[Happening]) -> None:
        """Show the scene; *happenings* are new since the last update."""

    def close(self) -> None:
        """Stop showing; called at the end and on the way out of an error, perhaps without `open`."""

    def summarise(self, summary: Summary) -> None:
        """Show the result; after `close`."""


class Step:
    """A step of the set-up; *detail* may be set while it is done and is shown after it."""

    detail = "done"


@contextlib.contextmanager
def step(title: str) -> Iterator[Step]:
    """Show a step of the set-up while it is done, and then what came of it and how long it took."""
    say(f"  {title} ... ", end="")
    began = time.monotonic()
    current = Step()
    try:
        yield current
    except BaseException:
        say("failed")
        raise
    say(f"{current.detail} ({time.monotonic() - began:.1f} s)")


def say(text: str = "", *, end: str = "\n") -> None:
    """Print at once: what is printed may be read by a program while the demo plays."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours once there are any."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
