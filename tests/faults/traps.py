"""What a proxy can be told to do to the sessions that pass through it: a trap for one, or weather for all of a name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.protocol import Request

__all__ = ["Deed", "Point", "Trap", "Weather"]

Point = Literal["connect", "auth", "parse", "unsynced", "fetch", "commit"]
"""Before the start-up packet is handed on; after it, before the answer; before a statement; after all of a statement
but the Sync that commits it; after the first message of its answer; once it is committed, before that is said."""
Deed = Literal["cut", "reset", "black hole", "garbage"]


@dataclass(eq=False)
class Trap:
    """Does *do* at the point *at* of the first *times* conversations that match.

    *session* begins the ``application_name``; *statement* is a part of the SQL. *marking*: only an answer that says
    that rows were changed, at ``commit``. *meant* sees the request and decides too, where given.
    """

    at: Point
    do: Deed
    session: str = ""
    statement: bytes = b""
    marking: bool = False
    times: int = 1
    meant: Callable[[Request], bool] = lambda _request: True
    garbage: bytes = b""
    victims: list[str] = field(default_factory=list)
    """The ``application_name`` of each session that was caught."""
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def catches(self, point: Point, session: str, request: Request | None = None) -> bool:
        """Whether it springs here; it is then counted by `spring`."""
        if self.at != point or not session.startswith(self.session) or len(self.victims) >= self.times:
            return False
        return request is None or (self.statement in request.sql and self.meant(request))

    def spring(self, session: str) -> None:
        """Note a victim."""
        with self.changed:
            self.victims.append(session)
            self.changed.notify_all()

    def wait(self, seconds: float, victims: int = 1) -> bool:
        """Return once so many were caught; ``False`` if they are not within *seconds*."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.victims) >= victims, seconds)


@dataclass(frozen=True, eq=False)
class Weather:
    """What befalls each piece of traffic of the sessions whose name begins with *session*.

    It waits for *delay* ± *jitter* seconds, passes at *rate* bytes a second, or, with the chance *loss*, resets the
    connection.
    """

    session: str = ""
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    loss: float = 0.0
