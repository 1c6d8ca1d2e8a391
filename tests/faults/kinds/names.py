"""Faults of host names: the database's name does not resolve, or leads to another address."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, LabOptions, Strike, now, server_settings
from tests.faults.wire import Wire

__all__ = ["KINDS", "STAGES"]

_STAGE: Final = "named"
_HOST: Final = "db.curfew.example"
_ADDRESSES: Final = ("127.0.0.1", "127.0.0.2")
_HOOK: Final = Path(__file__).parents[1] / "hooks" / "private_names"


@dataclass
class _Names:
    """What the daemons' name resolves to, and a way to the database at each of two addresses."""

    folder: Path
    wires: dict[str, Wire]
    address: str = _ADDRESSES[0]

    def resolve(self, address: str | None) -> None:
        """Let the name lead there; to nowhere with ``None``. In place, since the file is mounted."""
        (self.folder / "hosts").write_text("" if address is None else f"{address} {_HOST}\n")


_NAMES: Final[dict[Path, _Names]] = {}
"""Those of each open stage, by its lab's folder of logs."""


@contextmanager
def named_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose daemons know the database by a name that only they can resolve."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-names-")))
        server = stack.enter_context(EmbeddedPostgres.start(durable=True, tcp=True, settings=server_settings(options)))
        first = stack.enter_context(Wire(server.port))
        second = stack.enter_context(Wire(server.port, address=(_ADDRESSES[1], first.port)))
        names = _Names(folder, dict(zip(_ADDRESSES, (first, second), strict=True)))
        # Nobody answers there, and says so at once.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        names.resolve(names.address)
        named = {
            "CURFEW_DATABASE_URL": f"postgresql://lab_daemon@{_HOST}:{first.port}/postgres",
            "PYTHONPATH": str(_HOOK),
            "LAB_NAMES": str(folder),
        }
        lab = stack.enter_context(Lab.open(replace(options, settings={**options.settings, **named}), server))
        _NAMES[lab.logs] = names
        stack.callback(_NAMES.pop, lab.logs)
        yield lab


def unresolvable(lab: Lab, rng: random.Random) -> Strike:
    """The name leads nowhere, and the sessions end."""
    names = _NAMES[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    lasts = rng.uniform(0.5, 4.0)
    began = now()
    names.resolve(None)
    names.wires[names.address].cut()
    lab.pause(lasts)
    names.resolve(names.address)
    return Strike("F35", began, now(), f"name unresolvable for {lasts:.1f} s", outage=True, lame=everyone(lab))


def moved(lab: Lab, rng: random.Random) -> Strike:
    """The address that the name led to refuses; after a while the name leads to another."""
    names = _NAMES[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    former, address = names.address, next(each for each in _ADDRESSES if each != names.address)
    began = now()
    names.wires[address].mode = "forward"
    names.wires[former].mode = "refuse"
    names.wires[former].cut()
    lab.pause(rng.uniform(0.0, 3.0))
    names.resolve(address)
    names.address = address
    return Strike("F35", began, now(), f"name leads to {address} now", outage=True, lame=everyone(lab))


STAGES: Final = {_STAGE: named_stage}
KINDS: Final = (
    Kind(
        "F35",
        "unresolvable",
        "a host name that does not resolve",
        unresolvable,
        frozenset({"root"}),
        alone=True,
        stage=_STAGE,
    ),
    Kind("F35", "moved", "a host name that changes", moved, frozenset({"root"}), alone=True, stage=_STAGE),
)
