"""What Ctrl-C and its kin do to the demo, by when and how often they come."""

from __future__ import annotations

import os
import signal

import pytest

from curfew_daemon.demo.interrupts import Interrupts


def test_before_the_play_a_signal_ends_the_demo_at_once() -> None:
    """There is nothing to sum up yet."""
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert not interrupts.asked.is_set()
    assert interrupts.by == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_during_the_play_the_first_signal_asks_and_the_second_aborts(number: signal.Signals) -> None:
    """The first leads to the summary; whoever does not want to wait for it sends another."""
    with Interrupts() as interrupts:
        interrupts.gentle = True
        signal.raise_signal(number)
        assert interrupts.asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_terminal_that_has_gone_gets_no_summary() -> None:
    """SIGHUP ends the demo at once, and the cleaning up is done."""
    with Interrupts() as interrupts:
        interrupts.gentle = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)


def test_a_signal_while_cleaning_up_after_an_abort_exits_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last way out; the supervisors of the children clean up."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # only because this _exit returns
            signal.raise_signal(signal.SIGINT)
    assert codes == [130]


def test_the_handlers_are_as_before_afterwards() -> None:
    """Also for a signal that the embedding process handles itself."""
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
