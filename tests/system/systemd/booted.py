"""A real systemd, booted on a throw-away copy of this machine's file system, and a way to work in it.

No container engine and no virtual machine: `boot.sh` beside this module makes an overlay, namespaces and a branch
of the control groups. It has a network of its own, with a loopback and nothing else. What is written in it stays
in memory, and all of it goes when the context manager ends or this process dies.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import PATIENCE

_BOOT = Path(__file__).with_name("boot.sh")
_PROGRAMS = ("systemctl", "systemd-analyze", "unshare", "nsenter", "pivot_root", "setpriv")
_NAMESPACES = ("unshare", "-m", "-n", "-u", "-i", "--propagation", "private")


class BootedSystem:
    """A running systemd; a context manager.

    *binds* maps folders of this machine to where they are visible in there, read-only. *search* stands before the
    PATH of every command, and *environ* is added to its environment. Fails with an explanation where the caller may
    not or cannot boot one.
    """

    def __init__(self, binds: Mapping[Path, str], *, search: str = "", **environ: str) -> None:
        self._binds = binds
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._environ = {"PATH": f"{search}{path}", "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": ""} | environ
        self.pid = 0

    def __enter__(self) -> Self:
        _refuse_what_cannot_work()
        self._folder = Path(tempfile.mkdtemp(prefix="curfewd-boot-"))
        binds = [str(part) for pair in self._binds.items() for part in pair]
        self._process = subprocess.Popen(
            [*_NAMESPACES, "sh", str(_BOOT), str(self._folder), *binds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.pid = self._process_one()
            self.wait(self._state, "running")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(
        self, *command: str, stdin: str = "", cwd: str = "/", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there as root; with *check*, a code other than 0 fails with what it said."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", "--root", f"--wd={self.path(cwd)}", *command],
            input=stdin,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def path(self, inside: str) -> Path:
        """Where this process finds a file in there. Not through absolute symbolic links, which lead out."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        """Make or replace a file in there, and the folders above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def wait_shown(self, unit: str, name: str, value: str, *, patience: float = PATIENCE) -> None:
        """Return once a property of a unit has this value."""
        self.wait(lambda: self.show(unit, name), value, patience=patience)

    def wait(self, ask: Callable[[], Any], wanted: Any, *, patience: float = PATIENCE) -> None:
        """Return once *ask* answers *wanted*; fails with the last answer and the end of the journal."""
        give_up = time.monotonic() + patience
        while (answer := ask()) != wanted:
            assert self._process.poll() is None, f"systemd did not boot:\n{self._said()}"
            assert time.monotonic() < give_up, f"stays at {answer!r}, not {wanted!r}:\n{self._last_words()}"
            time.sleep(0.05)

    def journal(self, unit: str, since: str = "") -> list[dict[str, Any]]:
        """The unit's messages and systemd's about it, oldest first, from a `cursor` on."""
        after = [f"--after-cursor={since}"] if since else []
        said = self.run("journalctl", "-q", "-o", "json", "-u", unit, *after).stdout
        return [json.loads(line) for line in said.splitlines()]

    def cursor(self) -> str:
        """The present end of the journal."""
        self.run("journalctl", "--sync")
        said = self.run("journalctl", "-q", "-n", "1", "-o", "json").stdout
        return str(json.loads(said)["__CURSOR"])

    def events(self, unit: str, since: str = "") -> list[dict[str, Any]]:
        """The JSON lines among the unit's messages."""
        texts = [entry["MESSAGE"] for entry in self.journal(unit, since)]
        return [json.loads(text) for text in texts if isinstance(text, str) and text.startswith("{")]

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def _process_one(self) -> int:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE), "boot.sh says nothing"
        line = self._process.stdout.readline()
        assert line.strip().isdecimal(), f"systemd cannot be booted here:\n{line}{self._said()}"
        return int(line)

    def _said(self) -> str:
        """What boot.sh said, after which it has ended."""
        return self._process.communicate(timeout=PATIENCE)[0]

    def _last_words(self) -> str:
        return self.run("journalctl", "-q", "-n", "15", check=False).stdout

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()


def _refuse_what_cannot_work() -> None:
    assert os.geteuid() == 0, "booting a systemd takes root: run the system tests as root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    assert not missing, f"not installed: {', '.join(missing)}; run tests/install-debian.sh"
    assert Path("/lib/systemd/systemd").exists(), "systemd is not installed; run tests/install-debian.sh"
