"""The facts as bytes: one HTML page that loads nothing, and one JSON document."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from curfew_daemon.status import charts, wording
from curfew_daemon.status.facts import Facts, Verdict, as_json

__all__ = ["StatusPage"]

_WORDS: Final = {
    Verdict.STARTING: "Starting",
    Verdict.ON_TIME: "On time",
    Verdict.LATE: "Late",
    Verdict.DATABASE_DOWN: "Database down",
}


class StatusPage:
    """Renders the facts that *facts* gives; *late_after* is asked for the lag in seconds that counts as late.

    *render* takes some milliseconds of pure Python: whoever serves it keeps the bytes for a while.
    """

    def __init__(self, facts: Callable[[], Facts], *, late_after: Callable[[], float]) -> None:
        self._facts = facts
        self._late_after = late_after
        environment = Environment(
            loader=PackageLoader("curfew_daemon.status"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters |= {
            "ago": wording.ago,
            "ahead": wording.ahead,
            "brief_count": wording.brief_count,
            "clock_time": wording.clock_time,
            "count": wording.count,
            "duration": wording.duration,
            "duration_parts": wording.duration_parts,
            "whole": wording.whole,
        }
        self._style, self._script = (_source(environment, name) for name in ("style.css", "live.js"))
        self._template = environment.get_template("page.html")
        self.policy: Final = "; ".join(
            (
                "default-src 'none'",
                f"style-src {_hash(self._style)}",
                f"script-src {_hash(self._script)}",
                "connect-src 'self'",
                "img-src data:",  # the empty icon, which keeps browsers from asking for one
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )
        """The content security policy of the page: its own style and script by their hashes, and nothing else."""

    def render(self, as_document: bool) -> bytes:
        """The HTML page, or with *as_document* the same facts as JSON."""
        facts = self._facts()
        if as_document:
            return json.dumps(as_json(facts), allow_nan=False, indent=1).encode() + b"\n"
        late_after = self._late_after()
        table = None if facts.seen is None else facts.seen.table
        return self._template.render(
            facts=facts,
            identity=facts.identity,
            seen=facts.seen,
            verdict=_WORDS[facts.verdict],
            late_after=late_after,
            lag_chart=charts.lags(facts.minutes, late_after, facts.up_for),
            timed_out_chart=charts.timed_out(facts.minutes, facts.up_for),
            falls_due_chart=None if table is None else charts.falls_due(table.falls_due),
            style=Markup(self._style),  # noqa: S704  our own file
            script=Markup(self._script),  # noqa: S704  our own file
            build=_hash(self._style + self._script),
        ).encode()


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
