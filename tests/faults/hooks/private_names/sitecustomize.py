"""Gives the process that imports this at its start a private ``/etc/hosts`` and ``/etc/resolv.conf``; for root.

``LAB_NAMES`` is a folder with the two files; they are mounted over the system's in a mount namespace of the
process's own, and may be written to at any time.
"""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if "LAB_NAMES" in os.environ:
    _libc = ctypes.CDLL(None, use_errno=True)
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    for _name in ("hosts", "resolv.conf"):
        _source = Path(os.environ["LAB_NAMES"], _name)
        _checked(_libc.mount(bytes(_source), bytes(Path("/etc", _name).resolve()), None, _MS_BIND, None))
