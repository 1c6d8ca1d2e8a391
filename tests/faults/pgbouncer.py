"""A PgBouncer of one's own in transaction mode, before a server on this machine; killed and started at one address."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg

__all__ = ["PgBouncer"]

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin"
_ACCEPTS_WITHIN: Final = 10.0
_USERS: Final = ("postgres", "lab_daemon", "lab_producer")


class PgBouncer:
    """Runs from the start to the end of a block, except between `kill` and `start`. *folder* is its own."""

    def __init__(self, folder: Path, target: int, *, pool_size: int = 1, database: str = "postgres") -> None:
        program = shutil.which("pgbouncer", path=_PATH)
        if program is None:
            raise FileNotFoundError("no pgbouncer; tests/install-debian.sh installs it")
        self.port = _free_port()
        self._account = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        folder.chmod(0o755)
        (folder / "users.txt").write_text("".join(f'"{user}" ""\n' for user in _USERS))
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n{database} = host=127.0.0.1 port={target}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder / 'users.txt'}\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
            "admin_users = postgres\nquery_wait_timeout = 3\nserver_connect_timeout = 2\nserver_login_retry = 0.2\n"
        )
        self._argv = [program, "-q", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def url(self, user: str, database: str = "postgres") -> str:
        """A database through the pool."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it where it was; when this returns it accepts connections."""
        who: dict[str, Any] = {}
        if self._account is not None:
            who = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)
        give_up = time.monotonic() + _ACCEPTS_WITHIN
        while True:
            try:
                self.tell("SHOW VERSION")
            except psycopg.OperationalError:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """SIGKILL; may be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def tell(self, command: str) -> None:
        """Send a command to its console."""
        # The console speaks the simple protocol alone, and this is its way to send exactly one command.
        with psycopg.connect(self.url("postgres", "pgbouncer"), autocommit=True) as console:
            answer = console.pgconn.exec_(command.encode())
            if answer.status == psycopg.pq.ExecStatus.FATAL_ERROR:
                raise psycopg.OperationalError(f"{command}: {answer.error_message.decode(errors='replace').strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
