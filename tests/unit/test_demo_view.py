"""How the demo looks: the live view's size, the sample in its timeline, the plain lines, the figures."""

from __future__ import annotations

import io
from uuid import UUID

import pytest
from rich.console import Console

from curfew_daemon.demo.happenings import Happening, Kind, Lags, Tally, milliseconds
from curfew_daemon.demo.live import LiveShow, Timeline, is_fit, render
from curfew_daemon.demo.plain import PlainShow
from curfew_daemon.demo.scene import Addresses, Scene
from curfew_daemon.demo.stage import Outlook
from curfew_daemon.demo.summary import Summary
from curfew_daemon.demo.verdict import Fault, Faults, Mark
from tests.unit.test_demo_verdict import START

ADDRESSES = Addresses(
    "PostgreSQL 18.4",
    "postgresql://postgres@/postgres?host=/tmp/curfew-abcdefgh/socket&port=5432",
    "public",
    "http://127.0.0.1:40123",
    "from the deadline to the commit of the mark, by the server's clock",
)


def happening(kind: Kind, number: int = 1, *, elapsed: float = 1.0, lag: float | None = None) -> Happening:
    """Something that happened to run *number*."""
    return Happening(kind, UUID(int=number), "nightly-report", "a detail of some length or other", elapsed, lag)


def busy_tally() -> Tally:
    """Counts of five digits, and lags in every bucket."""
    tally = Tally()
    for kind in Kind:
        tally.counts[kind] = 12_345
    for lag in (0.0005, 0.0015, 0.0025, 0.004, 0.008, 0.02, 0.09, 0.5, 75.0):
        tally.lags.add(lag)
    return tally


def scene(elapsed: float, tally: Tally, *, seconds: float | None = 3600.0, ending: bool = False) -> Scene:
    """A scene with that tally."""
    return Scene(elapsed, seconds, ending, ADDRESSES, tally, Faults(), Outlook(12_345, 12, 0.5, START))


def drawn(width: int, height: int, shown: Scene, timeline: Timeline) -> list[str]:
    """The lines of the view on a terminal of that size."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(shown, timeline, width, height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(70, 20), (80, 24), (110, 50), (240, 70)])
@pytest.mark.parametrize(("seconds", "ending"), [(3600.0, False), (None, False), (20.0, True)])
def test_the_view_fills_the_terminal_and_never_overflows_it(
    width: int, height: int, seconds: float | None, ending: bool
) -> None:
    """With large numbers and long texts, it is as high as the terminal and no line is wider."""
    timeline = Timeline()
    for number, kind in enumerate(list(Kind) * 12):
        timeline.add([happening(kind, number, elapsed=number)], elapsed=float(number))
    lines = drawn(width, height, scene(3599.0, busy_tally(), seconds=seconds, ending=ending), timeline)
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert not [line for line in lines[:9] if "…" in line and width >= 80]


def test_the_view_shows_what_it_is_for() -> None:
    """Addresses, counts, the quantiles of the lag and the newest timeout are all on an ordinary screen."""
    timeline = Timeline()
    timeline.add([happening(Kind.TIMED_OUT, 0xABC)], 1.0)
    text = "\n".join(drawn(80, 24, scene(1.0, busy_tally()), timeline))
    for expected in ("http://127.0.0.1:40123/metrics", "12,345", "p50 8 ms", "max 75.00 s", "..00000abc", "1:00:00"):
        assert expected in text


def test_the_timeline_goes_no_faster_than_four_lines_a_second() -> None:
    """However much happens, an eye can follow."""
    timeline = Timeline()
    for tick in range(100):
        timeline.add([happening(kind, tick) for kind in Kind for _ in range(5)], tick / 10)
    assert 30 <= len(timeline.lines) <= 41


def test_the_timeline_shows_every_kind_and_the_timeouts_most() -> None:
    """Rare kinds are not drowned by frequent ones, and every other line may be a timeout."""
    timeline = Timeline()
    for tick in range(100):
        rare = [happening(Kind.CANCELLED, tick)] if tick % 20 == 0 else []
        timeline.add([happening(Kind.STARTED, tick), happening(Kind.TIMED_OUT, tick), *rare], float(tick))
    kinds = [line.kind for line in timeline.lines]
    assert kinds.count(Kind.CANCELLED) == 5
    assert kinds.count(Kind.TIMED_OUT) == pytest.approx(50, abs=1)


def test_the_timeline_is_in_the_order_of_time() -> None:
    """What had to wait for its line is put before what happened later."""
    timeline = Timeline()
    timeline.add([happening(Kind.TIMED_OUT, elapsed=2.0), happening(Kind.STARTED, elapsed=1.0)], 2.0)
    for _ in range(2):
        timeline.add([happening(Kind.TIMED_OUT, elapsed=3.0)], timeline.lines[-1].elapsed + 1)
    times = [line.elapsed for line in timeline.lines]
    assert len(times) > 1
    assert times == sorted(times)


def test_plain_lines_are_few_and_say_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    """A second with hundreds of happenings makes two lines, and one for the first of each kind."""
    show, tally = PlainShow(), Tally()
    busy = [happening(kind, n) for kind in Kind if kind is not Kind.TIMED_OUT for n in range(100)]
    late = [happening(Kind.TIMED_OUT, n, lag=0.001 * (n + 1)) for n in range(5)]
    for second in (1, 2):
        show.update(scene(second + 0.05, tally), [*busy, *late])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 + 2 + 2
    assert lines[0].startswith("  0:01  first started: ..00000000 nightly-report")
    assert "started 100, duplicates 100, completed 100" in lines[-2]
    assert "TIMED OUT 5, 1 ms to 5 ms after their deadlines: ..00000000" in lines[-1]


def test_plain_lines_tell_the_last_part_of_a_second_too(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened just before the end is not lost."""
    show = PlainShow()
    show.update(scene(0.5, Tally()), [happening(Kind.TIMED_OUT, lag=0.002)])
    assert "TIMED OUT" not in capsys.readouterr().out
    show.close()
    assert "TIMED OUT 1, ..00000001 nightly-report" in capsys.readouterr().out


def test_lags_give_exact_quantiles_in_bounded_memory() -> None:
    """Three digits are kept: the quantiles of a million lags cost no more than those of a few."""
    lags = Lags()
    for number in range(1, 100_001):
        lags.add(number / 1000 / 1000)  # 1 µs to 100 ms
    assert (lags.quantile(0.5), lags.quantile(0.99), lags.quantile(1.0)) == pytest.approx((0.05, 0.099, 0.1), rel=0.006)
    assert len(lags._counts) < 5000
    assert lags.histogram((0.05, 1.0)) == pytest.approx([50_000, 50_000, 0], abs=300)


def test_lags_of_nobody_are_zero() -> None:
    """Nothing is divided by zero before the first timeout."""
    assert Lags().quantile(0.5) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000004, "0.0004 ms"), (0.00123456, "1.23 ms"), (0.123, "123 ms"), (12.345, "12.35 s")]
)
def test_lags_are_shown_for_people(seconds: float, text: str) -> None:
    """Three significant digits in milliseconds, and seconds from one second on."""
    assert milliseconds(seconds) == text


def test_the_summary_says_how_the_lag_was_measured_and_on_how_many_runs() -> None:
    """Every figure of the summary stands beside what it means, within 80 columns."""
    summary = Summary(20.0, ADDRESSES.lag, busy_tally(), Faults(), [], 3, None)
    text = "\n".join(summary.lines())
    for expected in ("over 9 runs", "to the commit of the mark", "an unknown number", "early 0, twice 0", "overdue 0"):
        assert expected in text
    assert "3 not due yet" in text
    assert max(map(len, summary.lines())) < 100


def terminal(width: int = 80, height: int = 24, *, kind: str = "xterm-256color", tty: bool = True) -> Console:
    """A console that takes its output for that terminal, and keeps it."""
    file = io.StringIO()
    return Console(file=file, width=width, height=height, force_terminal=tty, _environ={"TERM": kind}, highlight=False)


def test_a_live_view_needs_a_terminal_of_some_size() -> None:
    """Anything less gets plain lines: a pipe, a dumb terminal, a small window."""
    assert is_fit(terminal())
    assert not is_fit(terminal(tty=False))
    assert not is_fit(terminal(kind="dumb"))
    assert not is_fit(terminal(width=69))
    assert not is_fit(terminal(height=19))


def test_the_live_view_gives_the_screen_back_and_leaves_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """It plays on the alternate screen; what stays is the addresses, the figures and the offences."""
    console = terminal()
    assert isinstance(console.file, io.StringIO)
    show = LiveShow(console)
    show.open(ADDRESSES)
    show.update(scene(1.0, busy_tally()), [happening(Kind.TIMED_OUT, 0xABC, lag=0.002)])
    show.close()
    show.close()
    played, _, left = console.file.getvalue().partition("\x1b[?1049l")
    assert "\x1b[?1049h" in played
    assert "..00000abc" in played
    faults = Faults()
    faults.add(Mark(UUID(int=5), UUID(int=6), frozenset({Fault.TWICE})))
    show.summarise(Summary(20.0, ADDRESSES.lag, busy_tally(), faults, [], 0, 12_345))
    left = console.file.getvalue().partition("\x1b[?1049l")[2]
    assert "twice 1" in left
    assert str(UUID(int=5)) in left
    assert "..00000abc" not in left
    assert ADDRESSES.database in capsys.readouterr().out


def test_a_live_view_that_was_never_opened_can_be_closed() -> None:
    """The way out of an error during the set-up leads past it."""
    console = terminal()
    LiveShow(console).close()
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[?1049" not in console.file.getvalue()
