"""The demo as a live view on a terminal, from 70 columns by 20 lines on. The only module that knows rich."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from curfew_daemon.demo.happenings import Happening, Kind, Lags, counted, milliseconds, short
from curfew_daemon.demo.plain import print_addresses
from curfew_daemon.demo.scene import Addresses, Scene, clock
from curfew_daemon.demo.summary import WHAT_NEXT, Summary
from curfew_daemon.demo.verdict import Fault

__all__ = ["LiveShow", "Timeline", "is_fit", "render"]

_MIN_WIDTH, _MIN_HEIGHT = 70, 20
_MAX_WIDTH = 110  # wider, the eye loses the line
_STYLES = {
    Kind.STARTED: "default",
    Kind.DUPLICATE: "blue",
    Kind.COMPLETED: "green",
    Kind.CANCELLED: "yellow",
    Kind.EXTENDED: "cyan",
    Kind.HEARTBEAT: "magenta",
    Kind.TIMED_OUT: "bold red",
}
_PLURAL = {Kind.DUPLICATE: "duplicates", Kind.HEARTBEAT: "heartbeats"}
_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 1.0)
_BUCKET_NAMES = ("<1", "<2", "<3", "<5", "<10", "<25", "<100", "<1 s", "more")
_BLOCKS = "▁▂▃▄▅▆▇█"
_LINES_A_SECOND = 4.0
_FIXED_LINES = 14  # everything but the timeline


def is_fit(console: Console | None = None) -> bool:
    """Whether *console*, by default that of standard output, is a terminal that a live view can use."""
    console = console or Console()
    able = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return able and console.width >= _MIN_WIDTH and console.height >= _MIN_HEIGHT


class Timeline:
    """The newest happenings, no faster than an eye can follow: a sample, in which timeouts come first."""

    def __init__(self) -> None:
        self.lines: deque[Happening] = deque(maxlen=200)
        self._waiting: dict[Kind, Happening] = {}
        self._shown = dict.fromkeys(Kind, 0)
        self._timeout_last = False
        self._next = 0.0

    def add(self, happenings: Sequence[Happening], elapsed: float) -> None:
        """Take what is new, and show one of it if the last line has stood long enough."""
        for happening in happenings:
            self._waiting[happening.kind] = happening
        if not self._waiting or elapsed < self._next:
            return
        # Every other line may be a timeout; the rest goes to the kind that was shown least.
        kind = min(self._waiting, key=lambda kind: (self._timeout_last == (kind is Kind.TIMED_OUT), self._shown[kind]))
        self._timeout_last = kind is Kind.TIMED_OUT
        self.lines.append(self._waiting.pop(kind))
        self._shown[kind] += 1
        # One that had to wait for its line still stands where it belongs.
        self.lines = deque(sorted(self.lines, key=lambda line: line.elapsed), maxlen=self.lines.maxlen)
        self._next = elapsed + 1 / _LINES_A_SECOND


class LiveShow:
    """Draws the whole screen ten times a second; the terminal is as it was afterwards."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._timeline = Timeline()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def open(self, addresses: Addresses) -> None:
        """Print the addresses, which stay when the view has gone, and take over the screen."""
        print_addresses(addresses)
        self._live.start()

    def update(self, scene: Scene, happenings: Sequence[Happening]) -> None:
        """Draw the scene in the size that the terminal has now."""
        self._timeline.add(happenings, scene.elapsed)
        size = self._console.size
        self._live.update(render(scene, self._timeline, size.width, size.height), refresh=True)

    def close(self) -> None:
        """Give the screen back; may be called again, and without `open`."""
        self._live.stop()

    def summarise(self, summary: Summary) -> None:
        """Print the result below the addresses."""
        out = self._console
        for line in summary.lines():
            label, text = line[:11], line[11:]
            out.print(Text.assemble("  ", (label, "bold"), text), soft_wrap=True)
        verdict = summary.verdict
        out.print()
        out.print(Text(verdict.line, "bold green" if verdict.passed else "bold red"), soft_wrap=True)
        for offence in verdict.offences:
            out.print(Text(f"  {offence}"), soft_wrap=True)
        out.print()
        for line in WHAT_NEXT:
            out.print(Text(line), soft_wrap=True)


def render(scene: Scene, timeline: Timeline, width: int, height: int) -> RenderableType:
    """The view, exactly as high as the terminal or less, and never wider."""
    width = min(width, _MAX_WIDTH)
    rows = max(height - _FIXED_LINES, 1)
    page = Table.grid(expand=False)
    page.add_column(width=width, no_wrap=True)
    for part in (
        _header(scene.addresses),
        _producer_counts(scene),
        Text(),
        _daemon_counts(scene),
        Rule(
            "lag: deadline to commit" if "commit of" in scene.addresses.lag else "lag: deadline to stamp", style="dim"
        ),
        _lags(scene.tally.lags),
        Rule("what happens (a sample)", style="dim"),
        _timeline(list(timeline.lines)[-rows:], rows),
        _progress(scene, width),
    ):
        page.add_row(part)
    return page


def _header(addresses: Addresses) -> RenderableType:
    return Group(
        Text.assemble(("curfewd demo", "bold"), f" on {addresses.server}", overflow="ellipsis"),
        Text.assemble(
            ("page ", "dim"), addresses.page, ("/   metrics ", "dim"), addresses.metrics, overflow="ellipsis"
        ),
        Rule(style="dim"),
    )


def _producer_counts(scene: Scene) -> RenderableType:
    kinds = [kind for kind in Kind if kind is not Kind.TIMED_OUT]
    return _cells([(f"{scene.tally.counts[kind]:,}", _PLURAL.get(kind, kind.value), _STYLES[kind]) for kind in kinds])


def _daemon_counts(scene: Scene) -> RenderableType:
    faults = [(fault.value, scene.faults.count(fault)) for fault in Fault]
    cells = [
        (f"{scene.tally.counts[Kind.TIMED_OUT]:,}", "TIMED OUT", "bold red"),
        *((f"{count:,}", name, "bold green" if count == 0 else "bold white on red") for name, count in faults),
        (f"{scene.outlook.overdue:,}", "overdue", "default"),
        (f"{scene.outlook.armed:,}", "armed", "default"),
    ]
    return _cells(cells)


def _cells(cells: Sequence[tuple[str, str, str]]) -> Table:
    grid = Table.grid(expand=True)
    for _ in cells:
        grid.add_column(justify="center", ratio=1, no_wrap=True)
    grid.add_row(*(Text(number, f"{style} bold" if "bold" not in style else style) for number, _, style in cells))
    grid.add_row(*(Text(name, "dim") for _, name, _ in cells))
    return grid


def _lags(lags: Lags) -> RenderableType:
    counts = lags.histogram(_BUCKETS)
    most = max(counts) or 1
    grid = Table.grid(expand=True)
    for _ in counts:
        grid.add_column(justify="center", ratio=1, no_wrap=True)
    bars = [_BLOCKS[max(0, -(-count * len(_BLOCKS) // most) - 1)] * 4 if count else "" for count in counts]
    grid.add_row(*(Text(bar, "red") for bar in bars))
    grid.add_row(*(Text(name, "dim") for name in _BUCKET_NAMES))
    said = "no run has timed out yet"
    if lags.count:
        p50, p99, longest = (milliseconds(lags.quantile(share)) for share in (0.5, 0.99, 1.0))
        said = f"p50 {p50}   p99 {p99}   max {longest}   (histogram in ms, {counted(lags.count)})"
    return Group(grid, Text(said, justify="center"))


def _timeline(happenings: Sequence[Happening], rows: int) -> RenderableType:
    lines = Table.grid(padding=(0, 2), expand=True)
    for width in (8, 9, 25):
        lines.add_column(no_wrap=True, overflow="ellipsis", width=width)
    lines.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for happening in happenings:
        style = _STYLES[happening.kind]
        lines.add_row(
            Text(f"{happening.elapsed:6.1f} s", "dim"),
            Text(happening.kind.value, style),
            Text(f"{short(happening.run_id)} {happening.flow}", "dim"),
            Text(happening.detail, style if happening.kind is Kind.TIMED_OUT else "default"),
        )
    return Group(lines, *(Text() for _ in range(rows - len(happenings))))


def _progress(scene: Scene, width: int) -> RenderableType:
    if scene.ending:
        said = f"{clock(scene.elapsed)}  waiting for the last deadlines: {scene.outlook.armed} armed"
    elif scene.seconds is None:
        said = f"{clock(scene.elapsed)}  until Ctrl-C"
    else:
        said = f"{clock(scene.elapsed)} of {clock(scene.seconds)}  Ctrl-C ends it with the summary"
    done = scene.elapsed if scene.seconds is None else min(scene.elapsed, scene.seconds)
    line = Table.grid(padding=(0, 2))
    line.add_column()
    line.add_column(no_wrap=True, overflow="ellipsis")
    bar_width = max(10, width - len(said) - 4)
    line.add_row(ProgressBar(total=scene.seconds, completed=done, width=bar_width, pulse=scene.seconds is None), said)
    return line
