"""How often the connections of an engine go to the server and back, as libpq itself records it."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Engine, event

# Time, direction, length, and what the message says, which may itself hold the ends of lines.
_MESSAGE: Final = re.compile(r"^\d{4}-\S+ \S+\t([FB])\t\d+\t(.*)$", re.MULTILINE)


class Wire:
    """Knows the connections that an engine makes from now on."""

    def __init__(self, engine: Engine) -> None:
        self._connections: list[Any] = []
        event.listen(engine, "connect", self._learn)

    def _learn(self, dbapi_connection: Any, _record: Any) -> None:
        self._connections.append(getattr(dbapi_connection, "driver_connection", dbapi_connection))

    def messages(self, call: Callable[[], object]) -> list[tuple[str, str]]:
        """What *call* sent (F) and got (B) on connections that were there before: (direction, message)."""
        with tempfile.TemporaryFile("w+") as trace:
            open_ones = [each.pgconn for each in self._connections if not each.closed]
            for pgconn in open_ones:
                pgconn.trace(trace.fileno())
            try:
                call()
            finally:
                for pgconn in open_ones:
                    pgconn.untrace()  # writes out what libpq has recorded
            trace.seek(0)
            return _MESSAGE.findall(trace.read())

    def round_trips(self, call: Callable[[], object]) -> int:
        """How often *call* waited for the server: bursts that were sent and answered."""
        directions = [direction for direction, _ in self.messages(call)]
        return sum(pair == ("F", "B") for pair in itertools.pairwise(directions))
