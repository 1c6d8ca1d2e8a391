"""What holds of every input: each property is a check and the strategies of its arguments.

`make test` tries each with few and fixed examples, `python -m tests.badinput.fuzz` for as long as one likes.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy
from psycopg.conninfo import conninfo_to_dict

from curfew_daemon.arguments import holds_password
from curfew_daemon.cli import _duration
from curfew_daemon.config import Settings, SettingsError
from curfew_daemon.conninfo import ConninfoError, connect_attempts, describe, redact, to_conninfo
from curfew_daemon.environment import ENV_FILE, PREFIX, with_env_file
from curfew_daemon.http import wants_openmetrics
from curfew_store import UNSET, InvalidValue, WrongType, operations, retention
from curfew_store.keys import MAX_KEY_LENGTH, checked_key, normalised
from curfew_store.schema import tables_in
from tests.badinput import strategies
from tests.badinput.strategies import CANARY

STATUSES = {200, 400, 404, 405, 505}
CALLS: Mapping[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "configure_run": (
        operations.configure_run,
        ("run_id", "flow_id", "trigger_key", "idempotency_key", "timeout_at_utc", "timeout"),
    ),
    "start_run": (
        operations.start_run,
        ("flow_id", "trigger_key", "idempotency_key", "run_id", "timeout_at_utc", "timeout"),
    ),
    "configure_runs": (operations.configure_runs, ("runs",)),
    "get_run_control": (operations.get_run_control, ("run_id",)),
    "request_cancel": (operations.request_cancel, ("run_id", "reason")),
    "extend_deadline": (operations.extend_deadline, ("run_id", "new_timeout_at_utc")),
    "extend_by": (partial(operations.extend_deadline, new_timeout_at_utc=UNSET), ("run_id", "timeout")),
    "heartbeat": (operations.heartbeat, ("run_id", "timeout")),
    "purge": (retention.purge, ("before", "limit")),
}


def _is_moment(value: Any) -> bool:
    """Whether a deadline or a cut-off may be this moment, asked of the calendar and not of the store."""
    if value is None or value is UNSET:
        return True
    if not isinstance(value, datetime) or value.tzinfo is None:
        return False
    first, last = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    return first <= value < last


VALID: Mapping[str, Callable[[Any], bool]] = {
    "run_id": lambda value: value is None or (isinstance(value, UUID) and value != UUID(int=0)),
    "flow_id": lambda value: isinstance(value, UUID),
    "trigger_key": lambda value: isinstance(value, str) and len(value) <= MAX_KEY_LENGTH and "\0" not in value,
    "reason": lambda value: value is None or (isinstance(value, str) and len(value) <= 4000 and "\0" not in value),
    "timeout_at_utc": _is_moment,
    "new_timeout_at_utc": _is_moment,
    "before": lambda value: value is not None and _is_moment(value),
    "timeout": lambda value: value is None or value is UNSET or (isinstance(value, timedelta) and value > timedelta(0)),
    "limit": lambda value: type(value) is int and 0 < value < 2**63,
}
"""Of the parameters that a call has taken: what each may be at most."""


@dataclass(frozen=True, slots=True)
class Property:
    """*check* must return for whatever its arguments' *strategies* give."""

    check: Callable[..., None]
    strategies: Mapping[str, SearchStrategy[Any]]

    def tried(self, examples: int, seed: int | None = None) -> None:
        """Check so many examples: always the same ones, or those of a seed. Raises with the smallest that fails."""
        limits = settings(
            max_examples=examples,
            deadline=None,  # a loaded machine may take long over any one example
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(HealthCheck),
        )

        @given(**self.strategies)
        def check(**arguments: Any) -> None:
            self.check(**arguments)

        limited = limits(check)
        (limited if seed is None else seeded(seed)(limited))()


def is_shown_nowhere(error: BaseException) -> None:
    """The canary is neither in the message nor in what a log would show of it."""
    assert CANARY not in f"{error}{error!r}{''.join(traceback.format_exception(error))}"
    assert error.__context__ is None


def settings_are_taken_or_refused(environ: dict[str, str]) -> None:
    """Loading gives settings that show no secret, or an error of the settings that shows none."""
    try:
        loaded = Settings.load(environ)
    except SettingsError as error:
        is_shown_nowhere(error)
    else:
        assert CANARY not in repr(loaded) + loaded.model_dump_json()


def a_url_is_taken_or_refused(url: str) -> None:
    """What comes out is what libpq reads, and shows no password; what is refused is refused without one."""
    try:
        conninfo = to_conninfo(url)
    except ConninfoError as error:
        is_shown_nowhere(error)
        return
    options = conninfo_to_dict(conninfo)
    assert connect_attempts(conninfo, {}) >= 1
    secret = str(options.get("password", ""))
    if secret and not any(secret in str(value) for name, value in options.items() if name != "password"):
        assert secret not in describe(conninfo)
        assert len(secret) < 4 or secret not in redact(f"before {url} after {conninfo}", conninfo)
    if CANARY in secret:
        assert holds_password(url)


def a_file_is_taken_or_refused(content: bytes) -> None:
    """Whatever stands in a file of settings: settings of ours alone, or an error that shows nothing of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "curfewd.env")
        file.write_bytes(content)
        try:
            given = with_env_file({ENV_FILE: str(file)})
        except SettingsError as error:
            is_shown_nowhere(error)
        else:
            assert all(name.startswith(PREFIX) and name != ENV_FILE for name in given)


def a_duration_is_taken_or_refused(text: str) -> None:
    """An option of a command is a positive duration, or a usage error."""
    with contextlib.suppress(typer.BadParameter):
        assert timedelta(0) < _duration("--within", text) <= timedelta(days=36_500)


def a_call_is_taken_or_refused(call: tuple[str, dict[str, Any]]) -> None:
    """Every parameter with every value: an operation, or a typed error that names one of the parameters."""
    method, values = call
    operation, names = CALLS[method]
    try:
        assert callable(operation(tables_in("public"), **{name: values[name] for name in names}))
    except (InvalidValue, WrongType) as error:
        refused = error
    else:
        assert all(VALID[name](values[name]) for name in names if name in VALID)
        return
    assert refused.parameter in values
    assert len(str(refused)) < 300


def a_key_is_taken_or_refused(key: str) -> None:
    """Taken is what PostgreSQL stores and is not blank; its normal form is its own, and no longer than it."""
    storable = "\0" not in key and not any("\ud800" <= each <= "\udfff" for each in key)
    normal = normalised(key)
    blanks = "".join({each for each in key if each in "\t\n\v\f\r\x85" or unicodedata.category(each)[0] == "Z"})
    assert len(normal) == len(key.strip(blanks) if blanks else key)
    try:
        assert checked_key(key) == key
        taken = True
    except InvalidValue:
        taken = False
    assert taken == (storable and len(key) <= MAX_KEY_LENGTH and normal != "")
    assert normalised(normal) == normal
    assert len(normal) <= len(key)


def a_weight_is_read(accept: str) -> None:
    """Any Accept header is answered in one of the two formats."""
    assert wants_openmetrics(accept) in {True, False}


PROPERTIES: Mapping[str, Property] = {
    "settings": Property(settings_are_taken_or_refused, {"environ": strategies.environments()}),
    "url": Property(a_url_is_taken_or_refused, {"url": strategies.urls()}),
    "file": Property(a_file_is_taken_or_refused, {"content": strategies.files()}),
    "duration": Property(a_duration_is_taken_or_refused, {"text": strategies.durations()}),
    "call": Property(
        a_call_is_taken_or_refused,
        {"call": strategies.calls_of({method: names for method, (_, names) in CALLS.items()})},
    ),
    "key": Property(a_key_is_taken_or_refused, {"key": strategies.keys()}),
    "accept": Property(a_weight_is_read, {"accept": strategies.accepts()}),
}


@contextlib.contextmanager
def of_the_pages(url: str) -> Iterator[Property]:
    """Whatever bytes a client sends: answers with a status of ours and nothing of the request, and no line in a log."""
    where = urlsplit(url)
    logged: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record)

    kept = Kept(logging.WARNING)
    logging.getLogger("uvicorn").addHandler(kept)

    def each_client_is_answered_or_dropped(words: bytes) -> None:
        heard = b""
        with contextlib.suppress(ConnectionError), socket.create_connection((where.hostname, where.port), 5) as client:
            client.sendall(words)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                heard += piece
        answers = heard.split(b"HTTP/1.1 ")
        assert answers[0] == b""
        assert {int(each[:3]) for each in answers[1:]} <= STATUSES
        assert CANARY.encode() not in heard
        assert logged == []

    try:
        yield Property(each_client_is_answered_or_dropped, {"words": strategies.requests()})
    finally:
        logging.getLogger("uvicorn").removeHandler(kept)
