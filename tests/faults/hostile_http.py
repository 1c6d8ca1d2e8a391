"""Clients that an HTTP server should not suffer from: slow ones by the hundred, and nonsense."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

__all__ = ["NONSENSE", "answer", "slow_clients", "speak"]

NONSENSE: Final[Sequence[bytes]] = (
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n" + b"x" * 65536,
    b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-Much: much\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 65536 + b"\r\n\r\n",
    b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    bytes(range(256)) * 4,
    b"\r\n\r\n\r\n",
)
"""What no client of ours would send."""


def _connected(page: str, seconds: float) -> socket.socket:
    where = urlsplit(page)
    assert where.hostname
    return socket.create_connection((where.hostname, where.port or 80), timeout=seconds)


def speak(page: str, words: bytes, seconds: float = 2.0) -> bytes:
    """Send *words* as they are, and return what comes back until the end or silence."""
    heard = b""
    with contextlib.suppress(OSError), _connected(page, seconds) as client:
        client.sendall(words)
        while piece := client.recv(65536):
            heard += piece
    return heard


def answer(page: str, path: str, seconds: float = 10.0) -> tuple[int, float]:
    """The status of a page and how many seconds it took; status 0 if there was no answer."""
    began = time.monotonic()
    heard = speak(page, f"GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".encode(), seconds)
    words = heard.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), time.monotonic() - began


@contextmanager
def slow_clients(page: str, count: int) -> Iterator[None]:
    """So many connections, each with half a request and nothing more, for the length of a block."""
    clients: list[socket.socket] = []
    try:
        for number in range(count):
            with contextlib.suppress(OSError):
                client = _connected(page, 2.0)
                clients.append(client)
                client.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: "[: 1 + number % 30])
        yield
    finally:
        for client in clients:
            client.close()
