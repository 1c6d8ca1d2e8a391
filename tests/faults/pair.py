"""A primary and its streaming standby, at two addresses that stay the same whichever server is behind them."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from curfew_store._postgres_binaries import unprivileged_account
from curfew_store.embedded import EmbeddedPostgres
from tests.faults.wire import Wire

__all__ = ["Pair"]

_PATIENCE: Final = 60.0


class Pair:
    """`primary` and `standby`; `url` lists both addresses in an order that stays. *folder* takes their data."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        folder.chmod(0o711)  # root's servers run as somebody else, who has to pass
        self.folder = folder
        self._settings = dict(settings)
        self._numbers = itertools.count(1)
        self.primary = EmbeddedPostgres.start(
            data_dir=self._new_folder(), durable=True, tcp=True, settings=self._settings
        )
        try:
            self.standby = self._follow(self.primary)
        except BaseException:
            self.primary.stop()
            raise
        self._wires = {"first": Wire(self.standby.port), "second": Wire(self.primary.port)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self._wires.values():
            wire.__exit__(None, None, None)
        self.standby.stop("immediate")
        self.primary.stop("immediate")

    @property
    def conninfo(self) -> str:
        """Both addresses, the standby's first as it is at the beginning; without a user."""
        ports = ",".join(str(wire.port) for wire in self._wires.values())
        return f"host=127.0.0.1,127.0.0.1 port={ports} dbname=postgres"

    @property
    def standby_is_first(self) -> bool:
        """Whether `conninfo` lists the standby first."""
        return self._wires["first"].target == self.standby.port

    def at(self, server: EmbeddedPostgres) -> Wire:
        """The address behind which this server is."""
        return next(wire for wire in self._wires.values() if wire.target == server.port)

    def admin(self, server: EmbeddedPostgres) -> psycopg.Connection[Any]:
        """The superuser's session on one of the two, in autocommit."""
        return psycopg.connect(server.url(), autocommit=True, application_name="lab admin")

    def promote(self) -> None:
        """Make the standby a primary; when this returns it can be written to. What the other does is its own affair."""
        with self.admin(self.standby) as admin:
            admin.execute("SELECT pg_promote(true, 30)")

    def swap(self) -> None:
        """The promoted standby counts as the primary; the former primary is stopped, and a new standby follows."""
        former, self.primary = self.primary, self.standby
        wire = self.at(former)
        former.stop("immediate")
        self._forget(former)
        self.standby = self._follow(self.primary)
        wire.target = self.standby.port

    def discard_standby(self) -> None:
        """Throw the standby away, promoted or not, and put a fresh one in its place."""
        wire = self.at(self.standby)
        self.standby.stop("immediate")
        self._forget(self.standby)
        self.standby = self._follow(self.primary)
        wire.target = self.standby.port

    @contextmanager
    def synchronous(self) -> Iterator[None]:
        """Commits wait for the standby for the length of a block."""
        with self.admin(self.primary) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
            _await(lambda: _one(admin, "SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication"))
        try:
            yield
        finally:
            with self.admin(self.primary) as admin:
                admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
                admin.execute("SELECT pg_reload_conf()")

    def part(self) -> None:
        """The standby asks for nothing more; when this returns what the primary does is lost on it."""
        with self.admin(self.standby) as admin:
            admin.execute("ALTER SYSTEM SET primary_conninfo = ''")
            admin.execute("SELECT pg_reload_conf()")
            _await(lambda: not _one(admin, "SELECT count(*) FROM pg_stat_wal_receiver"))

    def receiver(self) -> int:
        """The process on the standby that receives what the primary sends."""
        with self.admin(self.standby) as admin:
            found: list[int] = []

            def streams() -> bool:
                pid = _one(admin, "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                found[:] = [] if pid is None else [pid]
                return bool(found)

            _await(streams)
            return found[0]

    def _follow(self, primary: EmbeddedPostgres) -> EmbeddedPostgres:
        data = self._new_folder()
        argv = [
            str(primary.bin_dir / "pg_basebackup"),
            "-D",
            str(data),
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]
        address = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
        subprocess.run([*argv, *address], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
        if os.geteuid() == 0:
            account = unprivileged_account()
            for path in (data, *data.rglob("*")):
                os.chown(path, *account, follow_symlinks=False)
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\nwal_receiver_status_interval = 1\n")
        standby = EmbeddedPostgres.start(data_dir=data, durable=True, tcp=True, settings=self._settings)
        with self.admin(primary) as admin:
            _await(lambda: _one(admin, "SELECT bool_or(state = 'streaming') FROM pg_stat_replication"))
        return standby

    def _new_folder(self) -> Path:
        return self.folder / f"data-{next(self._numbers)}"

    @staticmethod
    def _forget(server: EmbeddedPostgres) -> None:
        shutil.rmtree(server.data_dir, ignore_errors=True)


def _one(conn: psycopg.Connection[Any], statement: str) -> Any:
    row = conn.execute(statement).fetchone()
    return None if row is None else row[0]


def _await(holds: Callable[[], Any]) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not holds():
        if time.monotonic() > give_up:
            raise TimeoutError("the standby does not follow")
        time.sleep(0.02)
