"""Pictures as SVG: lines or bars on one plot, readable on light and on dark pages, with no library.

Colours follow the reader's scheme through a style sheet inside the picture, which works where the SVG is shown as
an image, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 34, 62, 52
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933 } .title { font-size: 16px; font-weight: 600 }
.soft { fill: #5f6c7b } .grid { stroke: #d5dbe1 } .axis { stroke: #8895a3 } .back { fill: #ffffff }
.s0 { --c: #1257b0 } .s1 { --c: #b2500a } .s2 { --c: #1a7a4c } .s3 { --c: #7a3ea8 }
.line { fill: none; stroke: var(--c); stroke-width: 2.2 } .fill { fill: var(--c) } .dash { stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6eaef } .soft { fill: #a4afbb } .grid { stroke: #38424d } .axis { stroke: #6d7a87 }
.back { fill: #14191f } .s0 { --c: #74aef5 } .s1 { --c: #f0a35e } .s2 { --c: #63cf97 } .s3 { --c: #c99af0 } }
"""


@dataclass(frozen=True)
class Series:
    """Points in the order of x; *dashed* for what is only compared with."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A label with its unit, and the ticks; *log* for a logarithmic scale (then all above 0).

    *names* are what the ticks are called, if not by their numbers.
    """

    label: str
    ticks: Sequence[float]
    log: bool = False
    names: Sequence[str] = ()

    def named(self) -> list[tuple[float, str]]:
        """The ticks and what they are called."""
        return list(zip(self.ticks, self.names or map(_tick, self.ticks), strict=True))

    def place(self, value: float) -> float:
        """Where *value* lies between the first tick, 0, and the last, 1; not beyond either."""
        change: Callable[[float], float] = math.log if self.log else float
        low, high = change(self.ticks[0]), change(self.ticks[-1])
        within = min(max(value, self.ticks[0]), self.ticks[-1])
        return (change(within) - low) / (high - low)


def lines(title: str, note: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A plot with a line per series; *note* says under the title how it was measured."""
    drawn = [_legend([each.name for each in series]), *_grid(x, y)]
    for number, each in enumerate(series):
        points = " ".join(f"{_x(x.place(a)):.1f},{_y(y.place(b)):.1f}" for a, b in each.points)
        dash = " dash" if each.dashed else ""
        drawn.append(f'<polyline class="line s{number % 4}{dash}" points="{points}"/>')
    return _picture(title, note, drawn)


def bars(title: str, note: str, y: Axis, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A group of bars per name in *groups*; each series has one value for each group."""
    names = [name for name, _ in series]
    beside_title = _legend_begins(names) > 16 + 10 * len(title)
    drawn = [_legend(names, 24 if beside_title else HEIGHT - 10), *_grid(None, y)]
    step = 1 / len(groups)
    width = 0.72 * step / len(series)
    for place, group in enumerate(groups):
        middle = _x((place + 0.5) * step)
        drawn.append(f'<text x="{middle:.1f}" y="{HEIGHT - _BOTTOM + 20}" text-anchor="middle">{escape(group)}</text>')
        for number, (_, values) in enumerate(series):
            left, top = _x(place * step + 0.14 * step + number * width), _y(y.place(values[place]))
            drawn.append(
                f'<rect class="fill s{number % 4}" x="{left:.1f}" y="{top:.1f}"'
                f' width="{width * _inner_width() * 0.92:.1f}" height="{_y(0) - top:.1f}"/>'
                f'<text class="soft" x="{left + width * _inner_width() * 0.46:.1f}" y="{top - 5:.1f}"'
                f' text-anchor="middle">{_tick(values[place])}</text>'
            )
    return _picture(title, note, drawn)


def _picture(title: str, note: str, drawn: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)}"><title>{escape(title)}. {escape(note)}</title><style>{_STYLE}</style>'
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="title" x="16" y="24">{escape(title)}</text>'
        f'<text class="soft" x="16" y="43">{escape(note)}</text>'
    )
    return "\n".join([head, *drawn, "</svg>"]) + "\n"


def _legend(names: Sequence[str], line: int = 24) -> str:
    parts = []
    for number in reversed(range(len(names))):
        left = _legend_begins(names[number:])
        parts.append(
            f'<rect class="fill s{number % 4}" x="{left:.0f}" y="{line - 11}" width="12" height="12" rx="2"/>'
            f'<text x="{left + 17:.0f}" y="{line}">{escape(names[number])}</text>'
        )
    return "".join(parts)


def _legend_begins(names: Sequence[str]) -> float:
    """Where one with these names begins, which ends at the right."""
    return WIDTH - _RIGHT - sum(7.6 * len(name) + 32 for name in names)


def _grid(x: Axis | None, y: Axis) -> list[str]:
    drawn = []
    for value, name in y.named():
        at = _y(y.place(value))
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="soft" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    if x is not None:
        for value, name in x.named():
            where = f'x="{_x(x.place(value)):.1f}" y="{HEIGHT - _BOTTOM + 20}"'
            drawn.append(f'<text class="soft" {where} text-anchor="middle">{escape(name)}</text>')
        drawn.append(
            f'<text class="soft" x="{_x(0.5):.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>'
        )
    middle = _y(0.5)
    drawn.append(
        f'<text class="soft" x="16" y="{middle:.0f}" text-anchor="middle"'
        f' transform="rotate(-90 16 {middle:.0f})">{escape(y.label)}</text>'
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_y(0):.1f}" y2="{_y(0):.1f}"/>'
    )
    return drawn


def _inner_width() -> float:
    return WIDTH - _LEFT - _RIGHT


def _x(place: float) -> float:
    return _LEFT + place * _inner_width()


def _y(place: float) -> float:
    return HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM)


def _tick(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
