"""Clocks that can be stepped while a process runs: libfaketime, told through a file. The monotonic clock stays true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["LIBRARY", "FakeClock", "programs_under"]

LIBRARY: Final = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
"""The library of Debian's package ``libfaketime``; ``None`` where it is not installed."""


class FakeClock:
    """One fake clock for all processes that are started with its `environment`; *folder* must be passable for them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set("+0")

    def set(self, words: str) -> None:
        """Show another time from now on: an offset ("-3600"), a moment ("@2028-02-29 23:59:58"), a rate ("+0 x2")."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{words}\n")
        beside.chmod(0o644)
        beside.replace(self._file)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to be under this clock."""
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name until 0.9.8
        }


def programs_under(clock: FakeClock, programs: Path, folder: Path) -> Path:
    """A directory of PostgreSQL's programs like *programs*, whose server runs under *clock*; made in *folder*."""
    made = folder / "bin"
    made.mkdir(mode=0o755)
    for program in programs.iterdir():
        if program.name != "postgres":
            (made / program.name).symlink_to(program)
    setting = " ".join(f"{name}={value}" for name, value in clock.environment.items())
    wrapper = made / "postgres"
    wrapper.write_text(f'#!/bin/sh\nexec env {setting} {programs / "postgres"} "$@"\n')
    wrapper.chmod(0o755)
    folder.chmod(0o755)  # root's server runs as somebody else
    return made
