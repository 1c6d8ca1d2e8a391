"""What 500 clients that never finish a request do to a scrape and to enforcement."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from tests.bench.disturbed import lag_with_and_without
from tests.bench.frame import Bench, Figure, in_background
from tests.faults.daemons import DaemonProcess

TITLE = "lag and scrapes beside 500 clients that send a byte a second"
SOCKETS = 500
_TICKS = SOCKETS
"""Turns a second, each with one client: those that know nothing of each other do not send in the same moment."""
_SLOWLY = b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"X-Slow: " + b"a" * 4000


def run(bench: Bench) -> list[Figure]:
    """Lag with them beside lag without, scraped twice a second both times; the slowest scrape beside them, and how
    many were not answered.
    """
    slowest: list[float] = []
    refused: list[float] = []

    @contextmanager
    def besieged(daemon: DaemonProcess) -> Iterator[None]:
        over = threading.Event()
        took: list[float] = []
        failed: list[str] = []
        with _scraped(daemon, took, failed), in_background(partial(_besiege, daemon.address, over), over=over):
            yield
        slowest.append(1000 * max(took))
        refused.append(len(failed))

    figures = lag_with_and_without(bench, "sockets", besieged, most=1.5, peace=lambda daemon: _scraped(daemon, [], []))
    if not figures:
        return []
    scrape = Figure("slowest scrape", slowest, "ms", "<= 1000 ms").judged(lambda it: it.greatest <= 1000)
    return [*figures, scrape, Figure("scrapes refused", refused, "", "0").judged(lambda it: it.greatest == 0)]


def _besiege(address: str, over: threading.Event) -> None:
    """`SOCKETS` clients, each of which sends a byte once a second, and connects anew then if it was cut off."""
    place = urllib.parse.urlsplit(address)
    clients: list[socket.socket | None] = [None] * SOCKETS
    tick = 0
    while not over.wait(1 / _TICKS):
        tick += 1
        for number in range(tick % _TICKS, SOCKETS, _TICKS):
            client = clients[number]
            if client is None:
                client = clients[number] = socket.socket()
                client.setblocking(False)
                client.connect_ex((str(place.hostname), place.port))
            elif not _goes_on(client, tick):
                client.close()
                clients[number] = None
    for client in clients:
        if client is not None:
            client.close()


def _goes_on(client: socket.socket, tick: int) -> bool:
    """Send the next byte; whether the server still holds the connection."""
    place = tick // _TICKS % len(_SLOWLY)
    with suppress(BlockingIOError):
        try:
            client.send(_SLOWLY[place : place + 1])
            return client.recv(1) != b""
        except ConnectionError:
            return False
    return True


@contextmanager
def _scraped(daemon: DaemonProcess, took: list[float], failed: list[str]) -> Iterator[None]:
    over = threading.Event()
    with in_background(partial(_scrape, daemon.address, over, took, failed), over=over):
        yield


def _scrape(address: str, over: threading.Event, took: list[float], failed: list[str]) -> None:
    while not over.wait(0.5):
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            failed.append(str(error))
        took.append(time.monotonic() - begun)
