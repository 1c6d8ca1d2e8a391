"""Small text files that an operator names: read within bounds, and refused in words that show nothing of them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FILE_LIMIT", "read_text"]

FILE_LIMIT = 64 * 1024
"""Bytes that a file with a database URL, or with settings, may hold."""


def read_text(path: Path) -> tuple[str, str]:
    """The text of a file and "", or "" and what is wrong with it, to be put behind the file's name.

    Raises nothing and never blocks: a pipe is refused, since it would make the caller wait for as long as nobody
    writes, and could be read only once.
    """
    content, problem = _read(path)
    if not problem and len(content) > FILE_LIMIT:
        problem = f"is larger than {FILE_LIMIT} bytes"
    if not problem and content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        problem = "begins with a byte order mark; store it as UTF-8 without one"
    if problem:
        return "", problem
    try:
        return content.decode(), ""
    except UnicodeDecodeError:
        return "", "is not UTF-8"


def _read(path: Path) -> tuple[bytes, str]:
    try:
        if path.exists() and not path.is_file():
            return b"", "is not a regular file"
        with path.open("rb") as file:
            return file.read(FILE_LIMIT + 1), ""
    except OSError as error:
        return b"", f"cannot be read: {error.strerror}"
    except ValueError:  # Python's own, before the system sees the path
        return b"", "cannot be read: the name holds a NUL or a lone surrogate"
