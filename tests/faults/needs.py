"""Which of a kind's needs this machine meets."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.faults.strikes import NEEDS, Kind

__all__ = ["missing"]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_LOOKS: Final[dict[str, Callable[[], bool]]] = {
    "root": lambda: os.geteuid() == 0,
    "cgroup": lambda: os.geteuid() == 0 and Path("/sys/fs/cgroup").is_dir(),
    "netns": lambda: os.geteuid() == 0 and shutil.which("ip") is not None,
    "debian-postgres": _DEBIAN.is_dir,
    "faketime": lambda: shutil.which("faketime") is not None,
    "libfaketime": lambda: bool(list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))),
    "pgbouncer": lambda: shutil.which("pgbouncer") is not None,
    "openssl": lambda: ctypes.util.find_library("ssl") is not None,
    "amcheck": lambda: bool(list(Path("/usr/share/postgresql").glob("*/extension/amcheck.control"))),
}
assert _LOOKS.keys() == NEEDS


def missing(kind: Kind) -> list[str]:
    """What *kind* needs and this machine has not, in alphabetical order."""
    return sorted(need for need in kind.needs if not _LOOKS[need]())
