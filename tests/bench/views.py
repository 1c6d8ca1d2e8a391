"""What readers of the status page cost enforcement: 100 page views a second, against none."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.bench.disturbed import lag_with_and_without
from tests.bench.frame import Bench, Figure, in_background
from tests.faults.daemons import DaemonProcess

TITLE = "lag while the status page is viewed 100 times a second"
RATE = 100
READERS = 4


def run(bench: Bench) -> list[Figure]:
    """Lag with the readers beside lag without, in turn in one run; how often the page was really served."""
    served: list[float] = []

    @contextmanager
    def read(daemon: DaemonProcess) -> Iterator[None]:
        counts = [0] * READERS
        over = threading.Event()
        readers = [partial(_view, daemon.address, counts, number, over) for number in range(READERS)]
        begun = time.monotonic()
        with in_background(*readers, over=over):
            yield
        served.append(sum(counts) / (time.monotonic() - begun))

    figures = lag_with_and_without(bench, "views", read, most=1.2)
    views = Figure("page views served", served, "1/s", f">= {0.9 * RATE:g}").judged(lambda it: it.median >= 0.9 * RATE)
    return [*figures, views] if served else []


def _view(address: str, counts: list[int], number: int, over: threading.Event) -> None:
    """One reader: its share of the views at an even pace, each answer read to its end."""
    place = urllib.parse.urlsplit(address)
    begun, views = time.monotonic(), 0
    while not over.wait(max(0.0, begun + views * READERS / RATE - time.monotonic())):
        views += 1
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        counts[number] += answer.status == http.client.OK and len(answer.read()) > 0
        connection.close()
