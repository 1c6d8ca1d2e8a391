"""The table of experiments, as printed by the command and as it stands in deploy/SCALING.md between its markers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.simulation.database import Costs, Spell
from tests.simulation.fleet import Experiment, Load, Outcome

PAGE = Path(__file__).resolve().parents[2] / "deploy" / "SCALING.md"
BEGIN, END = "<!-- simulation:begin -->\n", "<!-- simulation:end -->\n"
SEED = 1
HEAD = (
    "| What happens | Deadlines/s | Daemons | Lag p50 ms | p99 ms | max ms | Statements per deadline | Cores busy |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|\n"
)
_QUIET = "nothing"


def quiet(rate: float, daemons: int, *, cores: int = 2) -> Experiment:
    """A fleet under a steady load."""
    seconds, settle = (20.0, 10.0) if rate <= 1000 else (4.0, 5.0) if rate <= 10_000 else (3.0, 3.0)
    name = _QUIET if cores == 2 else f"{_QUIET}; a database of {cores} cores"
    return Experiment(name, daemons, Load(rate), seconds, settle, costs=Costs(cores=cores))


def troubled(daemons: int) -> Iterator[Experiment]:
    """What can go wrong, at 100 deadlines a second."""
    plain = replace(quiet(100, daemons), name="")
    if daemons > 1:
        yield replace(plain, name="the active daemon is killed", kills=(15.0,))
    yield replace(plain, name="database down for 3 s; lag from its return", spells=(Spell(12.0, 15.0, down=True),))
    stalls = tuple(Spell(at, at + 0.2, factor=3.0, stall=0.1) for at in range(11, 30, 2))
    yield replace(plain, name="every 2 s commits stall for 0.1 s", spells=stalls)
    yield replace(plain, name="database clock set back 2 s; lag from the moment by the new one", steps=((15.0, -2.0),))
    yield replace(plain, name="database clock set forward 1 h", steps=((15.0, 3600.0),))
    yield replace(plain, name="1 in 10 visible up to 5 s after its deadline", load=Load(100, late=0.1))
    yield replace(plain, name="1 in 50 locked by others for up to 5 s", load=Load(100, held=0.02))


def experiments(*, full: bool = False) -> Iterator[Experiment]:
    """All of the page; *full* adds what takes minutes."""
    for rate in (1, 100, 1000, 10_000):
        for daemons in (1, 3, 10, 100, 1000):
            if full or daemons * rate <= 1_000_000:
                yield quiet(rate, daemons)
    for daemons in (1, 2, 10):
        yield quiet(100_000, daemons)
    yield quiet(100_000, 10, cores=8)
    for daemons in (1, 10, 1000) if full else (1, 10):
        yield from troubled(daemons)
    for daemons in (2, 1000):
        yield replace(quiet(100, daemons), name="the active daemon is killed", kills=(15.0,))
    yield replace(quiet(100, 1000), name="all daemons start in the same instant", together=True, settle=0.0)


SAMPLED = (quiet(1, 10), next(troubled(10)))
"""What a test runs again: the quick ones."""


def line(experiment: Experiment, outcome: Outcome) -> str:
    """One row. Runs that were not marked by the end say that the fleet fell behind."""
    name = experiment.name
    if len(outcome.lags) < outcome.expected:
        name += f" (falls behind: {100 * (1 - len(outcome.lags) / outcome.expected):.0f} % unmarked at the end)"
    lags = [f"{1000 * outcome.lag(share):,.1f}" for share in (0.5, 0.99, 1.0)]
    busy = outcome.busy / experiment.seconds
    cells = [name, f"{experiment.load.rate:,.0f}", f"{experiment.daemons:,}", *lags]
    return "| " + " | ".join([*cells, f"{outcome.per_deadline:.3g}", f"{busy:.2f}"]) + " |\n"


def shown_table() -> str:
    """What stands between the markers."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write(table: str, warn: Callable[[str], None] = print) -> None:
    """Put a table between the markers."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        warn(f"{PAGE.name} has no markers")
        return
    PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
