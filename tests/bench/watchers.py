"""Those who look at a daemon while it works: Prometheus each second, and a browser with the status page open."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.faults.daemons import DaemonProcess

EVERY = 1.0
_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@contextmanager
def watched(daemons: Sequence[DaemonProcess], *, page: bool = True) -> Iterator[list[int]]:
    """Inside, every daemon is scraped each second and the first one's page asked for; the answers' sizes."""
    sizes: list[int] = []
    over = threading.Event()
    requests = [urllib.request.Request(f"{daemon.address}/metrics", headers=_METRICS) for daemon in daemons]
    if page:
        requests.append(urllib.request.Request(f"{daemons[0].address}/"))

    def look(request: urllib.request.Request, first: float) -> None:
        over.wait(first)
        while not over.is_set():
            with urllib.request.urlopen(request, timeout=10) as answer:
                sizes.append(len(answer.read()))
            over.wait(EVERY)

    threads = [
        threading.Thread(target=look, args=(request, EVERY * number / len(requests)), daemon=True)
        for number, request in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    try:
        yield sizes
    finally:
        over.set()
        for thread in threads:
            thread.join()
