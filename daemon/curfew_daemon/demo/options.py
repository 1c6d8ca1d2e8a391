"""What the demo is asked for, and how it says that it cannot go on."""

from __future__ import annotations

from dataclasses import dataclass

from curfew_daemon.lifecycle import Exit

__all__ = ["DemoFailed", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """*seconds* is how long runs are started, *rate* how many a second; *forever* overrides *seconds*.

    *plain* asks for lines where a live view would be shown. *database_url*, in any form that curfewd takes,
    names a server to use, in a schema of the demo's own; without it one is started.
    """

    seconds: float = 20.0
    rate: float = 20.0
    forever: bool = False
    plain: bool = False
    database_url: str | None = None


class DemoFailed(Exception):
    """The demo cannot go on. The message is for the person in front of it; *code* is the exit code."""

    def __init__(self, message: str, code: int = Exit.FAILURE) -> None:
        self.code = int(code)
        super().__init__(message)
