"""Runs a program exactly as long as the process that asked for it.

Run as a file (``python -I -S _leash.py PARENT PROGRAM…``), with the standard library alone. When standard
input ends, when the parent has gone (SIGKILL included) or on SIGTERM, it asks the program to stop, and kills
it if it does not; otherwise it ends when the program does, with its exit status.

A wrapper rather than PR_SET_PDEATHSIG on the program itself: that follows the thread that started it, not the
process. Here the only thread starts it, so the signal can serve as the second line of defence.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from typing import Any

PATIENCE = 5.0
"""Seconds that the program is given to stop."""

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the program of the command line; returns the exit status for this process."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    woken = _wake_on_signals()
    program = subprocess.Popen(  # noqa: S603 - the program that our own caller names
        argv,
        stdin=subprocess.DEVNULL,
        preexec_fn=_end_with_the_leash(),  # noqa: PLW1509 - one thread only
    )
    tripwires = [sys.stdin.fileno(), *_watch(parent)]
    poll = select.poll()
    for descriptor in (woken, *tripwires):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while program.poll() is None:
        ready = {descriptor for descriptor, _ in poll.poll()}
        signals = os.read(woken, 64) if woken in ready else b""
        if ready.intersection(tripwires) or set(signals) - {signal.SIGCHLD}:
            _stop(program)
    # A program that a signal ended has no status; a shell's convention stands for it.
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _stop(program: subprocess.Popen[bytes]) -> None:
    program.terminate()
    try:
        program.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def _wake_on_signals() -> int:
    """A descriptor that delivers the numbers of the signals that matter here."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the descriptor does the work
    return readable


def _watch(parent: int) -> list[int]:
    """Descriptors that become readable when the parent has gone, where the platform has such a thing."""
    try:
        watched = [os.pidfd_open(parent)]
    except (AttributeError, OSError):
        watched = []  # not on macOS, nor in some sandboxes: the end of the pipe must do
    if os.getppid() != parent:  # gone already, and the number may be another process's by now
        watched.append(os.open(os.devnull, os.O_RDONLY))  # always readable
    return watched


def _end_with_the_leash() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


if __name__ == "__main__":
    raise SystemExit(main())
