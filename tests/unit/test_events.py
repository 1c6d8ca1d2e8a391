"""Log events: fixed names, one line each whatever the fields hold, and never at the daemon's expense."""

import ast
import fcntl
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from curfew_daemon import events as module
from curfew_daemon import loglines
from curfew_daemon.events import EVENTS, Events, configure, dropped, set_level
from curfew_daemon.logtext import FIELD_BYTES, clean, clean_value
from curfew_daemon.results import (
    DatabaseState,
    ListenerState,
    MarkedBatch,
    MarkedRun,
    Observation,
    PurgedSlice,
    PurgeResult,
    SweepResult,
)

GUIDE = Path(module.__file__).parents[1] / "README.md"
NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
RUN = MarkedRun(UUID(int=1), UUID(int=2), NOW, NOW)
SWEEP = SweepResult("deadline", 0, 1, 2, 0.0123, (), None, 1.5, overdue_remains=False)
NASTY = (
    "a\nb", "a\r\nb", "\x1b[2J\x1b[31mred", "\x85next", "\u2028line\u2029par", "\u202egnp.exe", "\u2066x\u2069",
    "\x00", "\x9b31m", "\ud800", "\ufeff", "\U000e0041",
)  # fmt: skip
FORGED = '\n{"event": "forged", "level": "error"}\n2030-01-01T00:00:00Z error   forged'


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Puts the process's log back after each test: structlog, the root logger and Python's warnings."""
    yield
    logging.captureWarnings(False)
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, loglines._LibraryHandler)]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def to_json(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure("json", level, stream)
    return stream


def every_method(events: Events) -> list[Callable[[], None]]:
    """A call of every public method of Events, in an order that silences none of them."""
    batch = MarkedBatch((RUN,), 0.001)
    error = RuntimeError("no")
    return [
        lambda: events.started(version="1", poll_interval=1.0),
        lambda: events.settings_ignored_service_links(["CURFEW_PORT"]),
        lambda: events.http_listening("http://127.0.0.1:1"),
        lambda: events.database(None, DatabaseState.UNREACHABLE, "start it", error),
        lambda: events.listener(None, ListenerState.SILENT, "go past the pooler", error),
        lambda: events.startup_options_dropped(["statement_timeout"]),
        lambda: events.startup_options_dropped([]),
        lambda: events.upstream_engine_found("public.flow_runs"),
        lambda: events.marked(batch),
        lambda: events.swept(replace(SWEEP, marked=1, run_ids=(RUN.run_id,), lag_max=0.002)),
        lambda: events.swept(SWEEP),
        lambda: events.sweep_failed(error),
        lambda: events.run_refused(RUN.run_id, 1.0, error),
        lambda: events.drain_connection_failed(error),
        events.drain_connections_recovered,
        lambda: events.observation_failed(error),
        lambda: events.observed(Observation(0, False, None, 0, False, None, 0.1)),
        lambda: events.status_page_incomplete(error),
        events.status_page_complete,
        lambda: events.purge_failed(DatabaseState.DENIED, error, "grant it"),
        lambda: events.purged(PurgeResult("done", PurgedSlice(1, 1, 0), 2, 0.1, 0.4)),
        lambda: events.http_died(error),
        lambda: events.scheduler_missed("sweep"),
        lambda: events.scheduler_job_failed("sweep", error),
        lambda: events.reloaded(["log_level"]),
        lambda: events.reload_refused(["schema"]),
        lambda: events.reload_failed(error),
        lambda: events.crashed(error, "loop"),
        lambda: events.stopping("SIGTERM"),
        lambda: events.second_signal("SIGTERM"),
        lambda: events.shutdown_grace_exceeded(5.0),
        lambda: events.stopped(0),
    ]


# The catalogue


def test_every_event_is_in_the_catalogue_and_said() -> None:
    """The methods, all called, say each event of the catalogue once, at its level, and no other."""
    stream = to_json("debug")
    events = Events()
    calls = every_method(events)
    for call in calls:
        call()
    logging.getLogger("other").warning("x")

    said = {line["event"]: line["level"] for line in json_lines(stream)}
    assert said == {event.name: event.level for event in module._ALL}
    methods = [name for name in vars(Events) if not name.startswith("_")]
    assert len(calls) == len(methods) + 2  # twice: swept, with marks and without, and options, refused and taken
    assert len(json_lines(stream)) == len(EVENTS)


def test_a_listener_that_hears_is_news_and_one_that_does_not_is_a_warning() -> None:
    """Each change is a line with what to do and the first line of what was met."""
    stream = to_json()
    events = Events()
    events.listener(None, ListenerState.SILENT, "go past the pooler", RuntimeError("nothing\nheard"))
    events.listener(ListenerState.SILENT, ListenerState.UP, None, None)
    silent, up = json_lines(stream)
    assert (silent["level"], silent["old"], silent["new"]) == ("warning", None, "silent")
    assert (silent["remedy"], silent["error"]) == ("go past the pooler", "RuntimeError: nothing")
    assert (up["level"], up["old"], up["new"]) == ("info", "silent", "up")
    assert not {"remedy", "error"} & up.keys()


def test_a_purge_that_fails_is_told_once_per_state() -> None:
    """The same state again is silent, another one is told, and so is the end of it; an empty round is debug."""
    stream = to_json("info")
    events = Events()
    for state in (DatabaseState.DENIED, DatabaseState.DENIED, DatabaseState.UNREACHABLE, DatabaseState.DENIED):
        events.purge_failed(state, "permission denied", "grant it")
    for _ in range(2):
        events.purged(PurgeResult("done", PurgedSlice(), 2, 0.1, 0.4))
    events.purged(PurgeResult("done", PurgedSlice(0, 0, 3), 2, 0.1, 0.4))
    events.purge_failed(DatabaseState.DENIED, "permission denied", "grant it")
    lines = json_lines(stream)
    assert [(line["event"], line.get("state")) for line in lines] == [
        ("purge_failed", "denied"),
        ("purge_failed", "unreachable"),
        ("purge_failed", "denied"),
        ("purge_recovered", None),
        ("purged", None),
        ("purge_failed", "denied"),
    ]
    assert (lines[0]["error"], lines[0]["remedy"]) == ("permission denied", "grant it")
    assert (lines[4]["orphaned_keys"], lines[4]["outcome"]) == (3, "done")


def test_only_this_module_names_events() -> None:
    """No other module of the daemon logs through structlog with a name of its own."""
    own = {"events.py", "loglines.py", "structured.py"}
    for path in Path(module.__file__).parent.rglob("*.py"):
        imports = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert path.name in own or "structlog" not in imports, path


def test_table_has_a_row_for_every_event() -> None:
    """The documentation table lists every event once, in valid Markdown columns."""
    lines = module.table().splitlines()

    assert [line.split("`")[1] for line in lines[2:]] == list(EVENTS)
    assert {line.count("|") for line in lines} == {4}


def test_operators_guide_holds_the_table() -> None:
    """The operator's guide carries the catalogue as the code has it."""
    assert module.table() in GUIDE.read_text(encoding="utf-8")


# What is said, and when


def test_a_sweep_that_marked_is_one_line() -> None:
    """At info: count, greatest lag and duration in milliseconds, batches, at most five run ids."""
    stream = to_json()
    ids = tuple(UUID(int=n) for n in range(9))
    events = Events()
    events.marked(MarkedBatch((RUN,) * 9, 0.0))
    events.swept(replace(SWEEP, marked=9, batches=2, run_ids=ids, lag_max=0.00251))

    [line] = json_lines(stream)
    timestamp = line.pop("timestamp")
    assert line == {
        "level": "info",
        "logger": "curfewd",
        "event": "runs_timed_out",
        "count": 9,
        "lag_max_ms": 2.51,
        "duration_ms": 12.3,
        "sweeps": 1,
        "batches": 2,
        "run_ids": [str(each) for each in ids[:5]],
        "reason": "deadline",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp)


def test_silent_sweeps_and_single_runs_are_debug() -> None:
    """At info a sweep that marked nothing says nothing; at debug it does, as does each run."""
    stream = to_json("info")
    events = Events()
    events.swept(SWEEP)
    events.marked(MarkedBatch((RUN, RUN), 0.0))
    assert stream.getvalue() == ""

    set_level("debug")
    events.swept(SWEEP)
    events.marked(MarkedBatch((RUN, RUN), 0.0))
    assert [line["event"] for line in json_lines(stream)] == ["sweep_silent", "run_timed_out", "run_timed_out"]
    assert json_lines(stream)[1]["deadline"] == "2030-05-01T12:00:00+00:00"


def test_level_changes_at_run_time() -> None:
    """`set_level` holds for loggers that exist already; an unknown level is refused by name and changes nothing."""
    stream = to_json("warning")
    events = Events()
    events.stopped(0)
    with pytest.raises(ValueError, match="'loud'"):
        set_level("loud")
    events.stopped(1)
    assert stream.getvalue() == ""

    set_level("info")
    events.stopped(2)
    assert [line["exit_code"] for line in json_lines(stream)] == [2]


def test_database_change_carries_the_remedy_and_one_line_of_the_error() -> None:
    """Away from up is a warning with a remedy and the error's first line; back to up is an info."""
    stream = to_json()
    events = Events()
    events.database(DatabaseState.UP, DatabaseState.STANDBY, "use the primary", OSError("first\nSELECT secret"))
    events.database(DatabaseState.STANDBY, DatabaseState.UP)

    down, up = json_lines(stream)
    assert (down["level"], down["old"], down["new"]) == ("warning", "up", "standby")
    assert down["error"] == "OSError: first"
    assert down["remedy"] == "use the primary"
    assert up["level"] == "info"
    assert up.keys() == {"timestamp", "level", "logger", "event", "old", "new"}


def test_a_repeated_failure_is_said_once() -> None:
    """The same sweep error again is debug, until a sweep succeeds or another error comes; so with observations."""
    stream = to_json()
    events = Events()
    observation = Observation(0, False, None, 0, False, None, 0.1)
    for _ in range(3):
        events.sweep_failed(RuntimeError("one"))
        events.observation_failed(RuntimeError("slow"))
    events.sweep_failed(RuntimeError("two"))
    events.swept(SWEEP)
    events.sweep_failed(RuntimeError("two"))
    events.observed(observation)
    events.observed(observation)
    events.observation_failed(RuntimeError("slow"))

    for _ in range(2):
        events.drain_connections_recovered()
        events.status_page_complete()
    for _ in range(2):
        events.status_page_incomplete("slow")
        events.drain_connection_failed("full")
    for _ in range(2):
        events.status_page_complete()
        events.drain_connections_recovered()
    events.drain_connection_failed("full")

    assert [(line["event"], line.get("error")) for line in json_lines(stream)] == [
        ("sweep_failed", "RuntimeError: one"),
        ("observation_failed", "RuntimeError: slow"),
        ("sweep_failed", "RuntimeError: two"),
        ("sweep_failed", "RuntimeError: two"),
        ("observation_recovered", None),
        ("observation_failed", "RuntimeError: slow"),
        ("status_page_incomplete", "slow"),
        ("drain_connection_failed", "full"),
        ("status_page_complete", None),
        ("drain_connections_recovered", None),
        ("drain_connection_failed", "full"),
    ]


def test_traceback_shows_no_locals() -> None:
    """A traceback is a field of the one JSON line, or indented lines on the console; it shows no local variable."""

    said = "went wrong" + FORGED + "\x1b[2J postgresql://me:s3cr3t@db"

    def fail() -> None:
        hidden = "local-value-of-a-variable"  # noqa: F841
        raise RuntimeError(said)

    for log_format in ("json", "console"):
        stream = io.StringIO()
        configure(log_format, "info", stream)
        try:
            fail()
        except RuntimeError as error:
            Events().crashed(error, "loop")

        first, *rest = stream.getvalue().splitlines()
        shown = json.loads(first)["exception"].splitlines() if log_format == "json" else rest
        assert all(is_safe(line) for line in shown)
        assert "@db" in stream.getvalue()
        assert "in fail" in stream.getvalue()
        assert "local-value" not in stream.getvalue()
        assert "s3cr3t" not in stream.getvalue()
        assert "crashed" in first
        assert all(line.startswith("  | ") for line in rest)
        assert (log_format == "json") == (rest == [])


def test_tracebacks_of_other_libraries_are_shown() -> None:
    """The traceback of a library's record, and of an error in hand, is a field; where there is none, none."""
    stream = to_json()
    logging.getLogger("apscheduler").error("nothing in hand", exc_info=(None, None, None))
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("apscheduler").exception("job failed")
        structlog.get_logger("curfewd").exception("probe")

    without, library, own = json_lines(stream)
    assert "exception" not in without
    assert library["exception"].endswith("ZeroDivisionError: division by zero")
    assert own["exception"] == library["exception"]


# Formats


def test_format_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto is JSON off a terminal, colours on one; NO_COLOR and a dumb terminal take the colours away."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def said(stream: io.StringIO) -> str:
        configure("auto", "info", stream)
        Events().stopped(0)
        return stream.getvalue()

    assert json.loads(said(io.StringIO()))["event"] == "stopped"
    assert "\x1b[" in said(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = said(Terminal())
    assert re.fullmatch(r"\S+Z info    stopped exit_code=0\n", plain)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in said(Terminal())


def test_unknown_format_is_refused() -> None:
    """A format or level that does not exist is refused by name."""
    with pytest.raises(ValueError, match="'xml'"):
        configure("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'loud'"):
        configure("json", "loud")


def test_console_fields_cannot_be_mistaken() -> None:
    """A text with a space, a quote or an equals sign is quoted, so that one field cannot look like two."""
    stream = io.StringIO()
    configure("console", "info", stream)
    Events().reload_failed('x level=error "y"')
    Events().reload_failed("")

    first, second = stream.getvalue().splitlines()
    assert first.endswith(r'error="x level=error \"y\""')
    assert second.endswith('error=""')


def test_other_libraries_come_out_of_the_same_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of `logging` from warning on are one event with the wording as a field; Python's warnings too."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own refuse a bad template
    stream = to_json()
    configure("json", "info", stream)
    logging.getLogger("sqlalchemy.pool").info("not shown")
    logging.getLogger("apscheduler.executors").warning("job %s\nforged", "x")
    logging.getLogger("uvicorn.error").error("bad %d", "not a number")
    set_level("error")
    logging.getLogger("uvicorn.error").warning("below the level")
    set_level("info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        configure("json", "info", stream)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)

    lines = json_lines(stream)
    assert [(line["logger"], line["level"], line["event"]) for line in lines] == [
        ("apscheduler.executors", "warning", "library_message"),
        ("uvicorn.error", "error", "library_message"),
        ("py.warnings", "warning", "library_message"),
    ]
    assert lines[0]["message"] == r"job x\x0aforged"
    assert lines[1]["message"] == "bad %d"
    assert "old thing" in lines[2]["message"]


# No field forges a line


def is_safe(text: str) -> bool:
    return not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]", text)


@pytest.mark.parametrize("text", NASTY)
def test_unsafe_characters_are_spelled_out(text: str) -> None:
    """Control, direction and separator characters become visible escapes in fields, in both formats."""
    assert is_safe(clean(text))
    assert re.search(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", clean(text))
    for log_format in ("json", "console"):
        stream = io.StringIO()
        configure(log_format, "info", stream)
        Events().started(**{"field": text, "ke\ny " + text: 1, "many": [text]})
        [line] = stream.getvalue().split("\n")[:-1]
        assert is_safe(line)
        if log_format == "json":
            assert all(is_safe(str(part)) for item in json.loads(line).items() for part in item)


@example({"exception": "0"})
@given(st.dictionaries(st.text(max_size=20), st.text() | st.lists(st.text()) | st.integers() | st.floats()))
def test_any_fields_make_one_parseable_line(fields: dict[str, Any]) -> None:
    """Whatever keys and values come, JSON output is one strict JSON line and console output one clean line."""
    fields = {key: value for key, value in fields.items() if key not in ("event", "level", "self", "exc_info")}
    for log_format in ("json", "console"):
        stream = io.StringIO()
        configure(log_format, "info", stream)
        structlog.get_logger("curfewd").info("probe", **fields)

        [line] = stream.getvalue().split("\n")[:-1]
        assert is_safe(line)
        if log_format == "json":
            parsed = json.loads(line, parse_constant=pytest.fail)
            assert parsed["event"] == "probe"
            assert parsed["level"] == "info"
            assert parsed["logger"] == "curfewd"


def test_ordinary_text_of_any_language_is_kept() -> None:
    """Letters of any script, symbols and backslashes pass unchanged."""
    text = r"Đã quá hạn · 期限切れ · C:\path · 🕰 · ½"
    stream = to_json()
    Events().reload_failed(text)

    assert clean(text) == text
    assert json_lines(stream)[0]["error"] == text


def test_a_field_is_cut_at_two_kilobytes() -> None:
    """Texts and lists over 2 KB are cut with a mark; shorter ones are whole."""
    whole = "x" * FIELD_BYTES
    assert clean(whole) == whole
    for long in ("x" * (FIELD_BYTES + 1), "\x1b" * 3000, "期" * 3000, "x" * 10_000_000):
        assert len(clean(long).encode()) <= FIELD_BYTES
        assert clean(long).endswith("(cut)")
    listed = clean_value(["y" * 100] * 1000)
    assert isinstance(listed, str)
    assert len(listed.encode()) <= FIELD_BYTES


def test_values_that_cannot_be_shown_are_named() -> None:
    """A value whose own text raises is shown by its type; odd numbers stay valid JSON."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert clean_value(Broken()) == "<Broken that cannot be shown>"
    assert clean_value(10**5000) == "<int that cannot be shown>"
    assert clean_value(float("nan")) == "nan"
    assert clean_value(2**64) == str(2**64)
    assert clean_value(True) is True
    assert clean_value(DatabaseState.UP) == "up"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:s3cr3t@db/x",
        "cannot reach postgresql+psycopg://me:s3cr3t@p/@:x@db:5432/x now",
        "host=db password=s3cr3t user=me",
        "host=db password = 's3cr3t with \\' quote' user=me",
        'PGPASSWORD: "s3cr3t" {"password": "s3cr3t"}',
        "postgresql://db/x?password=s3cr3t&user=me",
        "postgresql://me:s3cr3t\n@db/x",
    ],
)
def test_passwords_are_masked(text: str) -> None:
    """A password inside a URL, a connection string or a field of that name does not reach the log."""
    assert "s3cr3t" not in clean(text)
    assert "***" in clean(text)
    stream = to_json()
    Events().started(database_password="s3cr3t", other=text)
    assert "s3cr3t" not in stream.getvalue()


def test_a_failed_login_stays_readable() -> None:
    """The masking leaves the server's own words on passwords, and addresses without one, as they are."""
    for text in ('FATAL: password authentication failed for user "me"', "http://127.0.0.1:9187/metrics"):
        assert clean(text) == text


# A bad stream


def test_broken_streams_lose_lines_and_nothing_else() -> None:
    """A closed stream, a broken pipe, a full disk, no stream at all: counted, not raised, and writing resumes."""
    closed = io.StringIO()
    closed.close()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken, Path("/dev/full").open("w", encoding="utf-8") as full:
        for stream in (closed, broken, full):
            configure("json", "info", stream)
            before = dropped()
            Events().stopped(0)
            assert dropped() == before + 1
    before = dropped()
    good = to_json()
    Events().stopped(0)
    assert dropped() == before
    assert len(json_lines(good)) == 1


def test_a_closed_terminal_is_no_terminal() -> None:
    """A closed stream can be configured: it is no terminal, and loses its lines."""
    closed = Terminal()
    closed.close()
    closed.isatty = io.StringIO.isatty.__get__(closed)  # type: ignore[method-assign]  # raises when closed
    before = dropped()
    configure("auto", "info", closed)
    Events().stopped(0)

    assert dropped() == before + 1


def test_records_of_a_logger_named_otherwise_show_it_on_the_console() -> None:
    """On the console the logger's name is shown where it is not the daemon's own."""
    stream = io.StringIO()
    configure("console", "info", stream)
    logging.getLogger("uvicorn.error").error("x")

    assert stream.getvalue().rstrip().endswith("error   library_message message=x logger=uvicorn.error")


def test_a_process_without_standard_error_logs_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started with standard error closed, every line is counted as dropped."""
    monkeypatch.setattr("sys.stderr", None)
    configure("auto")
    before = dropped()
    Events().stopped(0)

    assert dropped() == before + 1


def test_a_reader_that_stalls_holds_nobody_up() -> None:
    """Lines for a full pipe are dropped; once it is read again whole lines come, a torn one ended first."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb", buffering=0) as source, os.fdopen(writer, "w") as sink:
        configure("json", "info", sink)
        before = dropped()
        events = Events()
        events.started(**{f"f{n}": "x" * 2000 for n in range(10)})  # longer than the pipe: torn
        for number in range(100):
            events.stopped(number)
        assert dropped() == before + 101
        torn = source.read(4096)
        events.stopped(200)
        line = source.read(4096)

    assert len(torn) == 4096
    assert line.startswith(b"\n{")
    assert json.loads(line)["exit_code"] == 200


def test_streams_of_another_encoding_are_served() -> None:
    """On an ASCII stream the console writes escapes; nothing is lost."""
    raw = io.BytesIO()
    stream: TextIO = io.TextIOWrapper(raw, encoding="ascii")
    configure("console", "info", stream)
    before = dropped()
    Events().reload_failed("hạn")

    assert raw.getvalue().rstrip().endswith(rb"error=h\u1ea1n")
    assert dropped() == before


def test_a_handler_that_interrupts_a_write_does_not_hang() -> None:
    """A line logged while the same thread holds the stream is dropped after a moment, not waited for."""
    stream = to_json()
    before = dropped()
    with loglines._log.stream._lock:
        Events().second_signal("SIGTERM")

    assert dropped() == before + 1
    assert stream.getvalue() == ""
