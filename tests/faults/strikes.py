"""The words of the laboratory: a kind of fault, one strike of it, and what it excuses.

A `Kind` knows how to strike a `Lab` once: inject at a random phase, hold, remove, and say what was done. The lab
then measures how long recovery took: from the removal to the mark of a fresh canary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from tests.faults.lab import Lab

__all__ = ["NEEDS", "Kind", "Moment", "Strike", "Violation", "now"]

NEEDS: Final = frozenset(
    {"root", "cgroup", "netns", "debian-postgres", "faketime", "libfaketime", "pgbouncer", "openssl", "amcheck"}
)
"""What a kind may need beyond a plain machine with the embedded server."""


@dataclass(frozen=True, order=True)
class Moment:
    """One instant on two clocks: monotonic seconds of this process, and the machine's clock, which is the server's.

    *wall* is in whole microseconds since 1970, as are all times in the laboratory's records.
    """

    monotonic: float
    wall: int


def now() -> Moment:
    """This instant. Server and laboratory share the machine's clock unless a kind has faked the server's."""
    return Moment(time.monotonic(), time.time_ns() // 1000)


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold, and by what it is seen.

    *at* is when, in microseconds since 1970, and *code* the fault that it is due to, where that is known. *lateness*
    says that right things came, and too late.
    """

    invariant: str
    said: str
    at: int | None = None
    code: str | None = None
    lateness: bool = False


@dataclass(frozen=True)
class Strike:
    """One injected fault.

    From *began* to *ended* the fault was in force. If it is an *outage*, nobody could mark meanwhile: deadlines of
    that time may be met up to 2 s after its end, or *grace* seconds more where the fault outlasts its removal.
    Without *outage* deadlines are to be met within 2 s throughout. *lame* are daemons, by instance, whose logs and
    counters may miss a batch, or who did not live to poll again. *held* are runs whose rows somebody kept locked:
    exempt from lateness while the strike lasts. *loses*: so many seconds of acknowledged writes before *began* may
    be lost, as with asynchronous replication. *elsewhere* are marks (run, stamp) that daemons rightly made on another
    primary than the lab's, whose chronicle knows nothing of them. *found* is what the kind itself saw violated.
    *recovered* says that the kind measured the seconds of the recovery by itself; else the lab does, by a canary.
    """

    code: str
    began: Moment
    ended: Moment
    did: str
    outage: bool = False
    grace: float = 0.0
    lame: frozenset[str] = frozenset()
    held: frozenset[UUID] = frozenset()
    loses: float = 0.0
    elsewhere: frozenset[tuple[UUID, int]] = frozenset()
    found: tuple[Violation, ...] = ()
    recovered: float | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    *code* is its number ("F1"), *name* a word for the command line, *title* what the table shows. *needs* is a part
    of `NEEDS`. *heavy*: its set-up takes over 5 s, so that 5 strikes suffice where others need 20. *alone*: it may
    not overlap with another strike. *stage* names the opener of the lab that it strikes in; "plain" is the usual
    one. *recovery* is the bound in seconds from the removal to the mark of a canary: slower is a violation.
    """

    code: str
    name: str
    title: str
    strike: Callable[[Lab, random.Random], Strike] = field(repr=False)
    needs: frozenset[str] = frozenset()
    heavy: bool = False
    alone: bool = False
    stage: str = "plain"
    recovery: float = 5.0
