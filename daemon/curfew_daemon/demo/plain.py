"""The demo as plain lines: for pipes, logs and dumb terminals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from curfew_daemon.demo.happenings import Happening, Kind, milliseconds, short
from curfew_daemon.demo.scene import Addresses, Scene, clock, say
from curfew_daemon.demo.summary import WHAT_NEXT, Summary

__all__ = ["PlainShow", "print_addresses"]

_PLURAL = {Kind.HEARTBEAT: "heartbeats", Kind.DUPLICATE: "duplicates"}
_LIVELY = tuple(kind for kind in Kind if kind is not Kind.TIMED_OUT)


def print_addresses(addresses: Addresses) -> None:
    """Where to look while it plays."""
    say(f"  page      {addresses.page}/")
    say(f"  metrics   {addresses.metrics}")
    say(f"  database  {addresses.database}")
    say(f"  schema    {addresses.schema}")
    say(f"  lag       {addresses.lag}")
    say()


class PlainShow:
    """At most two lines a second, and one more for the first happening of each kind."""

    def __init__(self) -> None:
        self._second = 0
        self._since: list[Happening] = []
        self._explained: set[Kind] = set()
        self._ending = False
        self._last: Scene | None = None

    def open(self, addresses: Addresses) -> None:
        """Print the addresses."""
        print_addresses(addresses)

    def update(self, scene: Scene, happenings: Sequence[Happening]) -> None:
        """Print what the past second brought, once it is over."""
        self._since += happenings
        self._last = scene
        if int(scene.elapsed) > self._second:
            self._print_second(scene)
            self._second = int(scene.elapsed)
        if scene.ending and not self._ending:
            self._ending = True
            say(f"{clock(scene.elapsed):>6}  no more runs are started; waiting for the last deadlines")

    def close(self) -> None:
        """Print what the last second brought."""
        if self._last is not None and self._since:
            self._print_second(self._last)

    def summarise(self, summary: Summary) -> None:
        """Print the result."""
        say()
        for line in summary.lines():
            say(f"  {line}")
        say()
        say(summary.verdict.line)
        for offence in summary.verdict.offences:
            say(f"  {offence}")
        say()
        for line in WHAT_NEXT:
            say(line)

    def _print_second(self, scene: Scene) -> None:
        at = f"{clock(scene.elapsed):>6}  "
        for happening in self._since:
            if happening.kind is not Kind.TIMED_OUT and happening.kind not in self._explained:
                self._explained.add(happening.kind)
                say(f"{at}first {happening.kind.value}: {_sentence(happening)}")
        counts = Counter(happening.kind for happening in self._since)
        lively = [f"{_PLURAL.get(kind, kind.value)} {counts[kind]}" for kind in _LIVELY if counts[kind]]
        if lively:
            say(f"{at}{', '.join(lively)}; armed {scene.outlook.armed}")
        timed_out = [happening for happening in self._since if happening.kind is Kind.TIMED_OUT]
        if timed_out:
            say(f"{at}TIMED OUT {len(timed_out)}, {_lags(timed_out)}")
        self._since.clear()


def _sentence(happening: Happening) -> str:
    return f"{short(happening.run_id)} {happening.flow}, {happening.detail}"


def _lags(timed_out: Sequence[Happening]) -> str:
    if len(timed_out) == 1:
        return _sentence(timed_out[0])
    names = ", ".join(short(happening.run_id) for happening in timed_out[:3])
    more = ", ..." if len(timed_out) > 3 else ""
    lags = [happening.lag for happening in timed_out if happening.lag is not None]
    if not lags:
        return f"BEFORE their deadlines: {names}{more}"
    return f"{milliseconds(min(lags))} to {milliseconds(max(lags))} after their deadlines: {names}{more}"
