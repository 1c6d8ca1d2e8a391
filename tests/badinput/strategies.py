"""Inputs that are nearly right: what a person mistypes, what a program forgets, what an attacker tries."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from curfew_daemon.config import VARIABLES
from curfew_store import UNSET, RunConfiguration

__all__ = [
    "CANARY",
    "accepts",
    "calls_of",
    "durations",
    "environments",
    "files",
    "keys",
    "requests",
    "urls",
]

CANARY = "c4nary-Pa55word-of-nobody-at-all"
"""Longer than what an error quotes of a value, and of characters that need no encoding."""

_GOOD_URLS = (
    f"postgresql://ann:{CANARY}@db/runs",
    f"postgresql+psycopg://ann:{CANARY}@a:5432,[::1]:5433/runs?sslmode=require",
    f"postgres://db/runs?user=ann&password={CANARY}&connect_timeout=3",
    f"host=db port=5432 user=ann password='{CANARY}' dbname=runs",
    f"service=curfew password={CANARY}",
    f"host=/run/postgresql sslpassword={CANARY}",
)
_PIECES = st.sampled_from([*"@:/?#%'\\ =&[,\0\ud800", "%00", "%zz"])
_LINES = st.sampled_from(
    [
        *(b"CURFEW_DATABASE_URL=" + url.encode() for url in _GOOD_URLS),
        *(b"CURFEW_BATCH_SIZE=7", b"CURFEW_BATCH_SIZE", b"CURFEW_ENV_FILE=/x", b"CURFEW_INSTANCE=${HOME}"),
        *(b"PGPASSWORD=" + CANARY.encode(), b"export CURFEW_INSTANCE='a", b"# c", b'"', b"\\", b"=", b"\xff", b"\0"),
    ]
)
_WORDS = st.sampled_from(
    [
        *(b"GET ", b"HEAD ", b"POST ", b"/", b"/metrics", b"/healthz", b" HTTP/1.1", b" HTTP/9.9", b"%00"),
        *(b"\r\n", b"\n", b"\r\n\r\n", b"Host: x\r\n", b"X-A: " + CANARY.encode() + b"\r\n", b"\xff", b"\0"),
        *(b"Content-Length: 5\r\n", b"Content-Length: -0\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\n"),
        *(b"0\r\n\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
        *(b"Expect: 100-continue\r\n", b"Accept: application/openmetrics-text;q=NaN\r\n"),
    ]
)
_EAST, _WEST = timezone(timedelta(hours=14)), timezone(-timedelta(hours=14))
_EDGES = ((1, 1, 1, 0), (1999, 12, 31, 23), (2000, 1, 1, 0), (9998, 12, 31, 23), (9999, 1, 1, 0), (9999, 12, 31, 23))
_GOOD_VALUES: dict[str, Any] = {
    "run_id": UUID(int=7),
    "flow_id": UUID(int=8),
    "trigger_key": "t",
    "idempotency_key": "k",
    "reason": None,
    "timeout_at_utc": None,
    "new_timeout_at_utc": UNSET,
    "timeout": None,
    "before": datetime(2030, 1, 1, tzinfo=UTC),
    "limit": 1,
    "runs": [],
}
_NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(repr),
    st.sampled_from(["", "0", "-0", "1e9", "1s", "0x1", "1_0", "\u0661", "true", "None", "9" * 5000]),
)


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A database URL with a password in it, in which up to four places have been changed."""
    url = draw(st.sampled_from(_GOOD_URLS))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(url)))
        until = place + draw(st.integers(0, 3))
        # Half of a secret is none that could be looked for.
        secret = url.find(CANARY)
        if not secret < place < secret + len(CANARY) and not place <= secret < until:
            url = url[:place] + draw(_PIECES | st.text(max_size=3)) + url[until:]
    return url


def environments() -> SearchStrategy[dict[str, str]]:
    """Some of the settings, each with a value that suits it, another one or none, and names that are no setting."""
    # A path is shown, so a secret is put there only as what is recognised: a whole URL.
    paths = st.sampled_from([*_GOOD_URLS, "", ".", "/", "/nowhere", "a\0b", "/dev/zero", "\udcff"])
    anything = st.one_of(
        _NUMBERS, urls(), st.text(max_size=70), st.sampled_from(["public", "pg_x", "::1", "json", "30d"])
    )
    names = sorted(VARIABLES.values())
    fields = {name: paths if name.endswith("_FILE") else anything for name in names}
    others = st.dictionaries(
        st.sampled_from(
            ["CURFEW_POLL_INTERVALL", "curfew_schema", "CURFEW_", "CURFEW_DB_PORT", "PGHOST", "WATCHDOG_USEC"]
        ),
        anything,
        max_size=2,
    )
    return st.builds(lambda ours, rest: ours | rest, st.fixed_dictionaries({}, optional=fields), others)


def files() -> SearchStrategy[bytes]:
    """Lines of a file of settings, whole and broken."""
    lines = st.lists(_LINES | st.binary(max_size=12), max_size=8)
    return st.builds(lambda parts, end: end.join(parts), lines, st.sampled_from([b"\n", b"\r\n", b" ", b""]))


def durations() -> SearchStrategy[str]:
    """What is written for a time, and what is nearly one."""
    units = st.sampled_from(["", "s", "h", "d", "ms", "us", "\u00b5s", "y", "S", " s", "h1m", "e9s", "-", "."])
    return st.builds(str.__add__, _NUMBERS, units) | st.text(max_size=12)


def keys() -> SearchStrategy[str]:
    """Text of any code points, lone surrogates included, up to more than a key may have."""
    anywhere = st.text(st.characters(categories=None), max_size=40)
    odd = ["", "\0", "\ud800", " ", "\u3000", "\x1c", "\x85", "\u0130", "\u03a3", "\u1e9e"]
    around = st.sampled_from([*odd, "k" * 250, "\U00010400" * 257])
    return st.builds(lambda *parts: "".join(parts), around, anywhere, around)


def accepts() -> SearchStrategy[str]:
    """Accept headers of good and bad parts."""
    names = st.sampled_from(["application/openmetrics-text", "text/plain", "*/*", "", " Text/Plain "])
    weights = st.sampled_from(["", ";", ";q=", ";q=NaN", ";q=x", ";Q=1", "; q=0.5;q=0", ";version=1.0.0;q=1"])
    offers = st.builds(str.__add__, names, weights | _NUMBERS.map(";q={}".format)) | st.text(max_size=9)
    return st.lists(offers, max_size=6).map(",".join)


def requests() -> SearchStrategy[bytes]:
    """Requests of words that belong there, in any order, with any bytes between; often a good head in front."""
    good = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
    rest = st.lists(_WORDS | st.binary(max_size=20), max_size=20).map(b"".join)
    return st.builds(
        bytes.__add__, st.sampled_from([b"", good, good + b"\r\n", good + b"Content-Length: 9\r\n\r\n"]), rest
    )


def calls_of(calls: Mapping[str, Iterable[str]]) -> SearchStrategy[tuple[str, dict[str, Any]]]:
    """A method with good values for its parameters, but for one or two: any of their kind, or of another."""
    zones = (_EAST, _WEST, UTC)
    edges = [datetime(y, month, day, hour, tzinfo=zone) for y, month, day, hour in _EDGES for zone in zones]
    moments = st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones()) | st.sampled_from(edges)
    kinds: dict[str, SearchStrategy[Any]] = {
        "run_id": st.uuids() | st.just(UUID(int=0)),
        "flow_id": st.uuids(),
        "trigger_key": keys(),
        "idempotency_key": keys() | st.none(),
        "reason": keys() | st.none(),
        "timeout_at_utc": moments | st.none(),
        "new_timeout_at_utc": moments | st.sampled_from([None, UNSET]),
        "timeout": st.timedeltas() | st.sampled_from([None, UNSET, timedelta.min, timedelta.max, timedelta(1)]),
        "before": moments,
        "limit": st.integers(-1, 2**64),
        "runs": st.lists(st.builds(RunConfiguration, st.uuids(), st.uuids(), keys()) | st.none(), max_size=3),
    }
    foreign: SearchStrategy[Any] = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=16), st.text(max_size=9),
        st.just([]), st.just({}), st.just(object()),
    )  # fmt: skip

    def spoilt(method: str) -> SearchStrategy[dict[str, Any]]:
        ways = [
            st.fixed_dictionaries({name: st.one_of(own, own, own, foreign)})
            for name, own in kinds.items()
            if name in calls[method]
        ]
        return st.lists(st.one_of(ways), min_size=1, max_size=2).map(lambda some: _GOOD_VALUES | dict(ChainMap(*some)))

    return st.sampled_from(sorted(calls)).flatmap(lambda method: st.tuples(st.just(method), spoilt(method)))
