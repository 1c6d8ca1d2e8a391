"""Which metrics and label values a PromQL expression asks for; a reading of words, no parser.

It knows every word that our expressions may hold beside metrics, so a metric that is misspelt is not taken for
something else.
"""

from __future__ import annotations

import re

FUNCTIONS = frozenset({
    "abs", "absent", "avg", "count", "histogram_quantile", "increase", "max", "max_over_time", "min",
    "min_over_time", "rate", "sum", "time",
})  # fmt: skip
KEYWORDS = frozenset({"and", "bool", "by", "offset", "on", "or", "unless", "without"})
LABELS = frozenset({"event", "instance", "job", "kind", "le", "outcome", "python", "reason", "state", "version"})
OTHERS = frozenset({"ALERTS", "up"})
"""Series that Prometheus itself makes."""

_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_WORD = re.compile(r"(?<![\w:.])[a-zA-Z_][\w:]*")


def metrics_of(expression: str) -> set[str]:
    """Names of the series that an expression asks for, except those of Prometheus itself."""
    without_matchers = re.sub(r"\{[^}]*\}", "", expression)
    return set(_WORD.findall(without_matchers)) - FUNCTIONS - KEYWORDS - LABELS - OTHERS


def matchers_of(expression: str) -> list[tuple[str, str, str]]:
    """The label matchers of an expression: label, operator, value."""
    return _MATCHER.findall(expression)
