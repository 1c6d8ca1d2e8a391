"""Faults of a disk: the server's is full, of data and of its log alike."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psycopg

from curfew_store._postgres_binaries import unprivileged_account
from curfew_store.embedded import EmbeddedPostgres
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, LabOptions, Strike, now, server_settings

__all__ = ["KINDS", "STAGES"]

_STAGE: Final = "small disk"
_SIZE: Final = "320m"
_CHUNK: Final = bytes(1 << 20)


@contextmanager
def small_disk_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose server lives on a small file system of its own, which is in memory and goes at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-disk-")))
        folder.chmod(0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0755", "curfew-lab", folder], check=True)
        stack.callback(lambda: subprocess.run(["umount", "--lazy", folder], check=True))
        data = folder / "data"
        data.mkdir(mode=0o700)
        os.chown(data, *unprivileged_account())
        server = stack.enter_context(
            EmbeddedPostgres.start(
                data_dir=data,
                durable=True,
                tcp=True,
                settings=server_settings(options, max_wal_size="64MB", min_wal_size="32MB", wal_keep_size="0"),
            )
        )
        yield stack.enter_context(Lab.open(options, server))


def disk_full(lab: Lab, rng: random.Random) -> Strike:
    """Not a byte is left, until the server says so or has died of it; then there is room again."""
    ballast = lab.server.data_dir.parent / "ballast"
    lab.pause(rng.uniform(0, 0.5))
    lasts = rng.uniform(1.0, 5.0)
    began = now()
    try:
        _fill(ballast)
        with lab.admin() as admin:
            # So that the next write needs a new segment of the log, sooner than the load would.
            _try(admin, "SELECT pg_switch_wal()")
        lab.pause(lasts)
    except psycopg.Error:
        lab.pause(lasts)
    finally:
        ballast.unlink()
    died = not _lives(lab)
    if died:
        lab.server.halt("immediate")
        lab.server.resume()
    did = f"disk full for {lasts:.1f} s, server {'died of it' if died else 'lived'}"
    return Strike("F28", began, now(), did, outage=True, grace=3.0, lame=everyone(lab))


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as sink:
        for size in (len(_CHUNK), 4096):
            try:
                while sink.write(_CHUNK[:size]) == size:
                    pass
            except OSError:
                continue


def _try(admin: psycopg.Connection[object], statement: str) -> None:
    try:
        admin.execute(statement)
    except psycopg.Error:
        return


def _lives(lab: Lab) -> bool:
    for _ in range(30):
        try:
            with lab.admin():
                return True
        except psycopg.OperationalError:
            lab.pause(0.1)
    return False


STAGES: Final = {_STAGE: small_disk_stage}
KINDS: Final = (
    Kind("F28", "disk-full", "disk full", disk_full, frozenset({"root"}), alone=True, stage=_STAGE, recovery=10.0),
)
