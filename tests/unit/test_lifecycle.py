"""Signals, the service manager and exit codes."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curfew_daemon import lifecycle as module
from curfew_daemon.lifecycle import Action, Exit, Heartbeat, Notifier, Signals

GUIDE = Path(module.__file__).parents[1] / "README.md"


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Manager:
    """A service manager's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(5)
        self.environ = {"NOTIFY_SOCKET": address}

    def received(self) -> list[str]:
        return self._socket.recv(4096).decode().split("\n")

    def silent(self) -> bool:
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    """A listening manager, on a socket in the file system and in the abstract namespace."""
    with tempfile.TemporaryDirectory() as folder:
        abstract = f"@curfew-test-{os.getpid()}-{time.monotonic_ns()}"
        manager = Manager(abstract if request.param == "abstract" else f"{folder}/notify")
        yield manager
        manager.close()


# The service manager


def test_life_of_a_service_is_told(manager: Manager) -> None:
    """Ready, status, reload and stop arrive as the protocol spells them, each as one datagram."""
    notifier = Notifier(manager.environ)

    assert notifier.ready("enforcing")
    assert manager.received() == ["READY=1", "STATUS=enforcing"]
    assert notifier.status("database unreachable")
    assert manager.received() == ["STATUS=database unreachable"]
    assert notifier.stopping()
    assert manager.received() == ["STOPPING=1", "STATUS=stopping"]


def test_reload_carries_the_monotonic_time(manager: Manager) -> None:
    """A reload names the moment in microseconds of the monotonic clock, as the manager requires."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert Notifier(manager.environ).reloading()
    first, second = manager.received()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= after


def test_status_cannot_carry_another_assignment(manager: Manager) -> None:
    """Line breaks and control characters become spaces, and the text is bounded."""
    Notifier(manager.environ).status("a\nSTOPPING=1\r\x1b[2J\ud800" + "x" * 500)
    [line] = manager.received()

    assert line.startswith("STATUS=a STOPPING=1  [2J ")
    assert len(line) <= 207


def test_unchanged_status_is_not_repeated(manager: Manager) -> None:
    """The same status again, also the one sent with ready, is not sent; a new one is."""
    notifier = Notifier(manager.environ)
    notifier.ready("a")
    manager.received()

    assert not notifier.status("a")
    assert manager.silent()
    assert notifier.status("b")
    assert manager.received() == ["STATUS=b"]


def test_watchdog_is_sent_four_times_per_interval(manager: Manager) -> None:
    """However often the loop calls, a message goes out at most every quarter of the interval."""
    clock = Clock()
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": "8000000"}, clock)
    assert notifier.watchdog_interval == 8.0

    sent_at = []
    for tenth in range(100):
        clock.now = 100 + tenth / 10
        if notifier.watchdog():
            sent_at.append(tenth / 10)
            assert manager.received() == ["WATCHDOG=1"]
    assert manager.silent()
    assert sent_at == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("environ", "watched"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({"WATCHDOG_USEC": "-5"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({"WATCHDOG_USEC": "1000000"}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, False),
    ],
)
def test_watchdog_of_another_process_is_left_alone(manager: Manager, environ: dict[str, str], watched: bool) -> None:
    """The watchdog is fed only where an interval is set and meant for this process."""
    assert Notifier(manager.environ | environ).watchdog() is watched


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "/" + "x" * 200, "a\0b"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    """With no socket, a dead one or an impossible address, every call says that nothing was sent."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})

    assert not notifier.ready("x")
    assert not notifier.status("x")
    assert not notifier.reloading()
    assert not notifier.watchdog()
    assert not notifier.stopping()


def test_a_manager_that_does_not_read_does_not_block(manager: Manager) -> None:
    """When the manager's queue is full, a call gives up within its bound."""
    notifier = Notifier(manager.environ)
    sent = 0
    start = time.monotonic()
    while notifier.status(f"{sent}"):
        sent += 1

    assert sent > 0
    assert time.monotonic() - start < 5


def test_heartbeat_ages_between_beats() -> None:
    """The age counts from the start, then from the last beat."""
    clock = Clock()
    heart = Heartbeat(clock)
    clock.now += 7
    assert heart.age() == 7

    heart.beat()
    clock.now += 2
    assert heart.age() == 2


# Signals


def later(act: Callable[[], object]) -> threading.Thread:
    """Does something in another thread, about when the main thread has begun to wait."""
    thread = threading.Timer(0.05, act)
    thread.start()
    return thread


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_wait_and_all_later_ones(signum: signal.Signals) -> None:
    """A signal sent during a wait ends it with STOP; later waits return at once, and its name is known."""
    with Signals() as signals:
        assert signals.stop_signal is None
        thread = later(lambda: os.kill(os.getpid(), signum))
        assert signals.wait(10) is Action.STOP
        assert signals.wait(10) is Action.STOP
        assert signals.wait(None) is Action.STOP
        assert signals.stop_signal == signum.name
        thread.join()


def test_a_signal_that_another_thread_receives_ends_the_wait() -> None:
    """The wait ends also when the kernel delivers the signal to a thread that is not the main one."""
    with Signals() as signals:

        def deliver_here() -> None:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        thread = later(deliver_here)
        start = time.monotonic()
        assert signals.wait(10) is Action.STOP
        assert time.monotonic() - start < 5
        thread.join()


def test_reload_is_reported_once() -> None:
    """SIGHUP ends one wait with RELOAD; the next one runs to its end."""
    with Signals() as signals:
        thread = later(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert signals.wait(10) is Action.RELOAD
        assert signals.wait(0.01) is Action.TIMEOUT
        thread.join()


def test_wakes_from_other_threads_count_once_and_are_not_lost() -> None:
    """A wake before or during the wait ends it; a hundred thousand together are one, and none blocks."""
    with Signals() as signals:
        signals.wake()
        assert signals.wait(10) is Action.WOKEN

        thread = later(signals.wake)
        assert signals.wait(10) is Action.WOKEN
        thread.join()

        for _ in range(100_000):
            signals.wake()
        assert signals.wait(10) is Action.WOKEN
        assert signals.wait(0) is Action.TIMEOUT


def test_reasons_that_come_together_come_in_order() -> None:
    """With a wake and a reload pending both are reported, the reload first; a stop goes before both."""
    with Signals() as signals:
        signals.wake()
        signal.raise_signal(signal.SIGHUP)
        assert signals.wait(10) is Action.RELOAD
        assert signals.wait(10) is Action.WOKEN

        signals.wake()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait(10) is Action.STOP


def test_a_signal_while_wakes_are_unread_is_not_lost() -> None:
    """A stop arrives though the wake-up channel is full."""
    with Signals() as signals:
        for _ in range(100_000):
            signals.wake()
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait(10) is Action.STOP


def test_timeout_is_never_early() -> None:
    """A wait lasts at least its timeout; none or less returns at once."""
    with Signals() as signals:

        def waited(timeout: float) -> float:
            start = time.monotonic()
            assert signals.wait(timeout) is Action.TIMEOUT
            return time.monotonic() - start - timeout

        over = [waited(0.0103) for _ in range(20)]
        assert min(over) >= 0
        assert waited(-5) < 6


def test_former_handlers_come_back() -> None:
    """After the block handlers and wake-up descriptor are as before, also after an error; a late wake is harmless."""

    def mine(_signum: int, _frame: object) -> None: ...

    before = signal.signal(signal.SIGHUP, mine)
    former = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    signals = Signals()
    try:
        with pytest.raises(ZeroDivisionError), signals:
            assert signal.getsignal(signal.SIGHUP) is mine or 1 / 0

        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == former
        assert signal.set_wakeup_fd(-1) == -1
        signals.wake()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_second_stop_signal_exits_at_once() -> None:
    """The second stop signal reports its name and exits with 128 and its number, even if the report fails."""
    codes: list[int] = []
    names: list[str] = []

    def report(name: str) -> None:
        names.append(name)
        raise KeyError(name)

    with Signals(exit_now=codes.append, on_second=report) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert codes == []
        with pytest.raises(KeyError):
            signal.raise_signal(signal.SIGINT)
        assert codes == [130]
        assert names == ["SIGINT"]
        assert signals.stop_signal == "SIGTERM"


def test_a_process_that_hangs_in_its_shutdown_dies_of_the_second_signal() -> None:
    """A real process that joins a thread that never ends leaves with 143 on the second SIGTERM."""
    program = (
        "import threading\n"
        "from curfew_daemon.lifecycle import Signals\n"
        "with Signals() as signals:\n"
        "    print('waiting', flush=True)\n"
        "    print(signals.wait(None).name, flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "STOP\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


# Exit codes


def test_exit_codes_are_fixed() -> None:
    """The numbers are a promise to scripts; each has a meaning of its own, none collides with a signal's."""
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "SETTINGS": 3,
        "DATABASE": 4,
        "SCHEMA": 5,
        "UPSTREAM_ENGINE": 6,
        "PORT_TAKEN": 7,
        "MISSING_EXTRA": 8,
    }
    assert len({code.meaning for code in Exit}) == len(Exit)
    assert max(Exit) < 128


def test_exit_table_has_a_row_for_every_code() -> None:
    """The documentation table lists every code, and the operator's guide carries it."""
    lines = module.exit_table().splitlines()

    assert [line.split("|")[1].strip() for line in lines[2:]] == [str(int(code)) for code in Exit]
    assert {line.count("|") for line in lines} == {4}


def test_operators_guide_holds_the_exit_codes() -> None:
    """The operator's guide carries the exit codes as the code has them."""
    assert module.exit_table() in GUIDE.read_text(encoding="utf-8")


def test_needs_the_standard_library_alone() -> None:
    """The exit codes can be imported without the daemon's dependencies."""
    program = (
        "import sys; import curfew_daemon.lifecycle; "
        "print({'structlog', 'prometheus_client', 'uvicorn', 'sqlalchemy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
