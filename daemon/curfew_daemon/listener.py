"""LISTEN: hints from producers, heard in a thread of its own on a connection of its own.

A hint only brings a sweep forward; whatever happens here, deadlines are met by polling, and marking never waits for
this thread. What can be wrong with a channel is that it is silent, and silence looks like "nothing near". So the
listener makes sure by itself:

- When it has connected, and every `PROVE_EVERY` seconds, it sends itself a token over the way that the sweep takes
  and waits for it. Behind a pooler that shares server sessions between transactions the token does not come. Each
  proof takes a transaction id and writes one WAL record, as every NOTIFY does, hence no more of them.
- Every `CHECK_EVERY` seconds it asks its session whether it still listens, which writes nothing: a dead network or a
  session that a pooler has swapped shows within that time.

After a failure it pauses for a random part of a doubling delay. What to do with a hint is decided in `hints`.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from curfew_daemon.database import Link
from curfew_daemon.ear import PROBE, PROVE_WITHIN, Ear, Silent, hears
from curfew_daemon.results import HintOutcome, ListenerState
from curfew_store import hints
from curfew_store.hints import Hint

__all__ = ["CHECK_EVERY", "PROVE_EVERY", "HintListener", "pause_after"]

CHECK_EVERY: Final = 10.0
PROVE_EVERY: Final = 600.0

PAUSE_FIRST: Final = 0.5
PAUSE_LONGEST: Final = {ListenerState.UNREACHABLE: 15.0, ListenerState.SILENT: 300.0}
"""A silent channel is a matter of settings, and each try to hear something costs the server a transaction id."""

_MOST_DOUBLINGS: Final = 20


def pause_after(failures: int, state: ListenerState, chance: float) -> float:
    """Seconds to wait after so many failures in a row (1 and more); *chance* is a random number from 0 to 1."""
    bound = min(PAUSE_LONGEST[state], PAUSE_FIRST * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
    return bound * (1 + chance) / 2


class Audience(Protocol):
    """Who is told; the composition root. Every call comes from the listener's thread."""

    def hinted(self, hint: Hint) -> bool:
        """A deadline was set; whether the next sweep comes sooner for it."""

    def hints_heard(self, outcome: HintOutcome, count: int) -> None:
        """So many notifications came to that."""

    def listener(self, old: ListenerState | None, new: ListenerState, error: BaseException | None) -> None:
        """The state of the listener changed."""


class HintListener:
    """Listens for the tables in *schema* through *link*, and proves it over *way*, made like the sweep's own link.

    *delay* is asked before each attempt to connect after the first, for further seconds of pause: a large fleet
    spreads its attempts.
    """

    def __init__(
        self,
        schema: str,
        link: Link,
        way: Link,
        audience: Audience,
        *,
        delay: Callable[[], float] = lambda: 0.0,
        check_every: float = CHECK_EVERY,
        prove_every: float = PROVE_EVERY,
        prove_within: float = PROVE_WITHIN,
    ) -> None:
        self._schema, self._link, self._way, self._audience = schema, link, way, audience
        self._delay = delay
        self._check_every, self._prove_every, self._prove_within = check_every, prove_every, prove_within
        self._payloads: list[str] = []
        self._failures = 0
        self._stopping = threading.Event()
        self._renew = threading.Event()
        self._thread = threading.Thread(target=self._run, name="curfewd-listener", daemon=True)
        self.state: ListenerState | None = None

    def start(self) -> None:
        """Begin to listen; once."""
        self._interrupt, self._interrupter = socket.socketpair()
        self._interrupter.setblocking(False)
        self._thread.start()

    def reconnect(self) -> None:
        """Connect anew, at once: the settings may have changed. For any thread."""
        self._renew.set()
        self._wake()

    def stop(self, seconds: float) -> None:
        """Stop listening and wait for the thread, which may be in the middle of connecting, *seconds* at most."""
        if self._thread.ident is None:  # never started
            return
        self._stopping.set()
        self._wake()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._interrupt.close()
            self._interrupter.close()

    @property
    def _interrupted(self) -> bool:
        return self._stopping.is_set() or self._renew.is_set()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # so many are unread that one more would change nothing
            self._interrupter.send(b"\0")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001  (hints are not worth a thread's death; the audience tells)
                if not self._interrupted:
                    self._failures += 1
                    self._enter(ListenerState.SILENT if isinstance(error, Silent) else ListenerState.UNREACHABLE, error)
            finally:
                self._link.drop()
                self._way.drop()
            self._pause()
        self._link.close()
        self._way.close()

    def _listen(self) -> None:
        """Connects, proves that it hears, and listens until it is to stop or to connect anew."""
        ear = Ear(self._link.connection(), self._schema, self._payloads.append)
        prove_at = 0.0
        try:
            while not self._interrupted:
                if time.monotonic() >= prove_at:
                    self._prove(ear)
                    prove_at = time.monotonic() + self._prove_every
                else:
                    ear.check()
                until = min(prove_at, time.monotonic() + self._check_every)
                while ear.listen_until(until, lambda: bool(self._payloads), self._interrupt):
                    self._pass_on()
        except Silent:
            ear.close()
            raise

    def _prove(self, ear: Ear) -> None:
        def send(token: str) -> None:
            hints.probe(self._way.connection(), self._schema, token)
            self._way.drop()

        if hears(ear, self._took, send, within=self._prove_within, interrupt=self._interrupt):
            self._failures = 0
            self._enter(ListenerState.UP, None)
        elif not self._interrupted:
            raise Silent("a notification sent over CURFEW_DATABASE_URL does not arrive on the connection that listens")

    def _took(self, token: str) -> bool:
        found = token in self._payloads
        self._pass_on()
        return found

    def _pass_on(self) -> None:
        """Hands on the earliest of the hints at hand, since whoever sweeps for it learns of the others."""
        payloads, self._payloads[:] = self._payloads[:], []
        taken = [hint for hint in map(hints.parsed, payloads) if hint is not None]
        strangers = sum(not payload.startswith(PROBE) for payload in payloads) - len(taken)
        sooner = bool(taken) and self._audience.hinted(min(taken, key=lambda hint: hint.deadline))
        counts = {HintOutcome.SOONER: int(sooner), HintOutcome.KNOWN: len(taken) - sooner}
        for outcome, count in {**counts, HintOutcome.UNREADABLE: strangers}.items():
            if count:
                self._audience.hints_heard(outcome, count)

    def _enter(self, state: ListenerState, error: BaseException | None) -> None:
        if state is not self.state:
            old, self.state = self.state, state
            self._audience.listener(old, state, error)

    def _pause(self) -> None:
        """Waits after a failure; a wake-up that came meanwhile, or before, ends it."""
        if self._failures and self.state in PAUSE_LONGEST and not self._renew.is_set():
            chance = random.random()  # noqa: S311  (spreads reconnects, guards nothing)
            seconds = max(pause_after(self._failures, self.state, chance), self._delay())
            select.select([self._interrupt], [], [], seconds)
        if self._renew.is_set():
            self._renew.clear()
            self._failures = 0
        while select.select([self._interrupt], [], [], 0)[0]:
            self._interrupt.recv(4096)
