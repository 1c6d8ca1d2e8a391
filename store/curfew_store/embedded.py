"""A PostgreSQL server of one's own for tests and demonstrations: up within a second, never left behind.

```python
with EmbeddedPostgres.start() as server:
    engine = sqlalchemy.create_engine(server.sqlalchemy_url())
```

The programs come from the wheel that ``curfewd[embedded]`` installs, else from Debian's packages. The server
ends with the process that started it, however that process ends. Not for production: without ``durable=True``
a power cut may destroy the data. Longer than other modules, so that a server's whole life stands in one place.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from curfew_store import _postgres_binaries as binaries
from curfew_store._postgres_binaries import EmbeddedPostgresError, EmbeddedPostgresUnavailable
from curfew_store._supervision import Supervision

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "EmbeddedPostgresUnavailable", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]
"""PostgreSQL's ways: wait for the clients, disconnect them, or crash and recover at the next start."""

_SIGNALS: dict[StopMode, str] = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}
_NOT_DURABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
}
_START_TIMEOUT = 60.0
_PORT_ATTEMPTS = 5


class EmbeddedPostgres:
    """A running server; use `start`, and the instance as a context manager or `stop` at the end.

    Attributes: ``host`` (a directory with the socket, or 127.0.0.1) and ``port``; ``data_dir``; ``log_path``,
    which goes away with the server; ``bin_dir``, the programs in use; ``server_version``, such as ``"18.4"``;
    ``postmaster_pid``, ``None`` while halted; ``notice``, a sentence where something unusual had to be done
    to run the server (a copy of the programs), else ``None``.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None,
        bin_dir: Path | None,
        settings: Mapping[str, str],
        durable: bool,
        tcp: bool,
        password: str | None,
    ) -> None:
        found = binaries.find_bin_dir(bin_dir)
        self._account = binaries.account_for(data_dir)
        directory = binaries.new_working_directory(self._account)
        self._supervision = Supervision(directory, self._account)
        self._settings = dict(settings) if durable else _NOT_DURABLE | dict(settings)
        self._durable = durable
        self._tcp = tcp
        self._password = password
        self._socket_dir = directory / "socket"
        self.data_dir = directory / "data" if data_dir is None else data_dir.absolute()
        self.log_path = directory / "server.log"
        self.host = "127.0.0.1" if tcp else str(self._socket_dir)
        self.port = 5432
        self.postmaster_pid: int | None = None
        try:
            self.bin_dir, self.notice = binaries.reachable(found, self._account, directory)
            self.server_version = binaries.server_version(self.bin_dir, self._account)
            self._provide(self._socket_dir)
            self._initialise(directory)
            self._start_on_a_free_port()
        except BaseException:
            self._supervision.close()
            raise

    @classmethod
    def start(
        cls,
        *,
        data_dir: Path | None = None,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        tcp: bool = False,
        password: str | None = None,
    ) -> Self:
        """Start a server; when this returns it accepts connections of the superuser ``postgres``.

        ``data_dir`` is kept and may hold the cluster of an earlier start; without it, the data goes with the
        server. ``bin_dir`` names the programs to use. ``settings`` are server parameters. Without ``durable``
        nothing is synced to disk. ``tcp`` listens on a free port of 127.0.0.1, otherwise there is only a Unix
        socket, in a directory that only this user (and root) may enter. ``password`` is asked for where it is
        given and the data directory is new; otherwise everyone who reaches the server is let in.

        Started by root, the server runs as ``nobody``; no existing directory changes its owner or mode for
        that.

        Raises `EmbeddedPostgresUnavailable` if there are no programs to run, `EmbeddedPostgresError` if they
        fail.
        """
        return cls(
            data_dir=data_dir,
            bin_dir=bin_dir,
            settings=settings or {},
            durable=durable,
            tcp=tcp,
            password=password,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.server_version} at {self.host}:{self.port}>"

    @property
    def conninfo(self) -> str:
        """The URL of the database ``postgres`` for libpq and psycopg."""
        return self.url()

    def url(self, database: str = "postgres") -> str:
        """The URL of a database for libpq and psycopg; it holds the password, if there is one."""
        return self._url("postgresql", database)

    def sqlalchemy_url(self, database: str = "postgres") -> str:
        """The URL of a database for SQLAlchemy; it holds the password, if there is one."""
        return self._url("postgresql+psycopg", database)

    def _url(self, scheme: str, database: str) -> str:
        password = "" if self._password is None else f":{quote(self._password, safe='')}"
        if self._tcp:
            return f"{scheme}://postgres{password}@{self.host}:{self.port}/{quote(database, safe='')}"
        where = f"host={quote(self.host)}&port={self.port}"
        return f"{scheme}://postgres{password}@/{quote(database, safe='')}?{where}"

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server for good; when this returns it has ended and its temporary files have gone.

        Does nothing the second time, and nothing in a process forked from the one that started the server.
        """
        if self.postmaster_pid is not None and mode != "fast":
            # The error would say that the supervisor has ended; then nothing runs any more.
            with contextlib.suppress(EmbeddedPostgresError):
                self.halt(mode)
        self._supervision.close()
        self.postmaster_pid = None

    def halt(self, mode: StopMode = "fast") -> None:
        """Stop the server but keep everything for `resume`; raises `EmbeddedPostgresError` after `stop`."""
        self._supervision.call(do="stop", signal=_SIGNALS[mode])
        self.postmaster_pid = None

    def resume(self) -> None:
        """Start the halted (or crashed) server again at the same address; it accepts connections on return.

        Raises `EmbeddedPostgresError` with the last lines of the log if it does not start.
        """
        parameters = {
            "unix_socket_directories": str(self._socket_dir),
            "listen_addresses": self.host if self._tcp else "",
            "port": str(self.port),
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in parameters.items()]
        argv = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir), *options]
        logged = self.log_path.stat().st_size if self.log_path.exists() else 0
        try:
            started = self._supervision.call(do="start", argv=argv, data_dir=str(self.data_dir), timeout=_START_TIMEOUT)
        except EmbeddedPostgresError as error:
            said = _tail(self.log_path, logged)
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {error}\n{said}".rstrip()) from error
        self.postmaster_pid = started["pid"]

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again at the same address; ``immediate`` makes it recover as after a crash."""
        self.halt(mode)
        self.resume()

    def _provide(self, directory: Path) -> None:
        """Make a new directory of the server's account."""
        directory.mkdir(mode=0o700, parents=True)
        if self._account is not None:  # pragma: no branch - root has one, others have none
            os.chown(directory, *self._account)

    def _initialise(self, directory: Path) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        if not self.data_dir.exists():
            self._provide(self.data_dir)
        argv = [str(self.bin_dir / "initdb"), "-D", str(self.data_dir), "-U", "postgres", "--encoding=UTF8"]
        if not self._durable:
            argv.append("--no-sync")
        if self._password is None:
            argv.append("--auth=trust")
        else:
            argv += ["--auth=scram-sha-256", f"--pwfile={self._write_password(directory, self._password)}"]
        self._run_initdb(argv)
        (directory / "password").unlink(missing_ok=True)

    def _run_initdb(self, argv: list[str]) -> None:
        done = self._supervision.call(do="run", argv=[*argv, "--locale=C.UTF-8"])
        if done["status"] and "locale" in done["output"]:  # not every platform has it
            done = self._supervision.call(do="run", argv=[*argv, "--locale=C"])
        if done["status"]:
            raise EmbeddedPostgresError(f"initdb failed with status {done['status']}:\n{done['output']}")

    def _write_password(self, directory: Path, password: str) -> Path:
        path = directory / "password"
        path.touch(mode=0o600)
        path.write_text(f"{password}\n", encoding="utf-8")
        if self._account is not None:  # pragma: no branch - root has one, others have none
            os.chown(path, *self._account)
        return path

    def _start_on_a_free_port(self) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):  # pragma: no branch - the last attempt raises
            if self._tcp:
                self.port = _free_port()
            try:
                self.resume()
            except EmbeddedPostgresError as error:
                # Between our look and the server's bind, another process may have taken the port.
                if "Address already in use" not in str(error) or attempt == _PORT_ATTEMPTS:
                    raise
            else:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path, start: int, lines: int = 20) -> str:
    """The last lines of a log from an offset on."""
    try:
        said = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(said.splitlines()[-lines:])
