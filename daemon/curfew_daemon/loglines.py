"""How a log event becomes one line: cleaned, rendered, and written, never at the daemon's expense.

The process has one log, as structlog and `logging` have one configuration each. `configure` decides where lines
go and how they look; what other libraries log and Python's own warnings take the same way.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

from curfew_daemon.logstream import LogStream
from curfew_daemon.logtext import clean, clean_key, clean_value, quoted
from curfew_daemon.structured import structlog

LogFormat = Literal["auto", "console", "json"]
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
LIBRARY_MESSAGE = "library_message"

_TRACEBACK_LINES = 50
_FIRST = ("timestamp", "level", "logger", "event")
_COLORS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _BOLD, _CYAN, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m"


class _Log:
    """The one log of the process."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.console = False
        self.colors = False
        self.stream = LogStream(None)
        self.dropped_before = 0


_log = _Log()


def configure(log_format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (standard error) from now on; may be called again.

    "auto" is the console format on a terminal and JSON elsewhere; colours need a terminal, and no `NO_COLOR`.
    Other libraries' records and Python's warnings are let through from WARNING on.
    Raises `ValueError` for an unknown format or level.
    """
    if log_format not in ("auto", "console", "json"):
        raise ValueError(f"unknown log format {log_format!r}; known: auto, console, json")
    set_level(level)
    stream = sys.stderr if stream is None else stream
    terminal = _is_terminal(stream)
    _log.dropped_before = dropped()
    _log.stream = LogStream(stream)
    _log.console = log_format == "console" or (log_format == "auto" and terminal)
    _log.colors = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    structlog.configure(
        processors=[
            _drop_below_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _clean_event,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *names: _Sink(names[0] if names else "curfewd"),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _LibraryHandler)]
    root.addHandler(_LibraryHandler(logging.WARNING))
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Lines below `level` are dropped from now on. Raises `ValueError` for an unknown level."""
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}; known: {', '.join(LEVELS)}")
    _log.level = LEVELS[level]


def enabled(level: str) -> bool:
    """Whether a line of this level would be written; asked before costly fields are built."""
    return LEVELS[level] >= _log.level


def dropped() -> int:
    """How many lines could not be written since the process started."""
    return _log.dropped_before + _log.stream.dropped


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class _Sink:
    """What structlog calls with the finished line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        _log.stream.write(line)

    debug = info = warning = error = critical = exception = msg


class _LibraryHandler(logging.Handler):
    """Takes other libraries' records; their wording becomes a field, so that event names stay a closed set."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  the arguments do not fit the template
            message = str(record.msg)
        logger = structlog.get_logger(record.name)
        write = logger.error if record.levelno >= logging.ERROR else logger.warning
        write(LIBRARY_MESSAGE, message=message, exc_info=record.exc_info)


def _drop_below_level(_logger: object, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if not enabled("error" if method == "exception" else method):
        raise structlog.DropEvent
    return event_dict


class _Trace(list[str]):
    """The lines of a traceback, told apart from what a caller may give under the same name."""


def _clean_event(logger: _Sink, _method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Known keys first, every key and value clean, a traceback as a list of clean lines."""
    trace = _traceback(event_dict.pop("exc_info", None))
    event_dict["logger"] = logger.name
    cleaned: dict[str, Any] = {key: clean_value(event_dict.pop(key)) for key in _FIRST}
    for key, value in event_dict.items():
        cleaned[clean_key(key)] = "***" if "password" in key.lower() else clean_value(value)
    if trace:
        cleaned["exception"] = trace
    return cleaned


def _traceback(exc_info: object) -> _Trace:
    """The last lines of the traceback, without locals: they may hold secrets."""
    error = exc_info
    if exc_info is True:
        error = sys.exc_info()[1]
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    if not isinstance(error, BaseException):
        return _Trace()
    lines = "".join(traceback.format_exception(error)).splitlines()
    return _Trace(clean(line) for line in lines[-_TRACEBACK_LINES:])


def _render(_logger: object, _method: str, event_dict: MutableMapping[str, Any]) -> str:
    if _log.console:
        return _render_console(event_dict, _log.colors)
    if isinstance(trace := event_dict.get("exception"), _Trace):
        event_dict["exception"] = "\n".join(trace)
    return json.dumps(event_dict)  # ASCII only: any stream can carry it and no reader sees a stray line end


def _render_console(event_dict: MutableMapping[str, Any], colors: bool) -> str:
    def paint(color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if colors else text

    timestamp, level, logger, event = (str(event_dict.pop(key)) for key in _FIRST)
    trace = event_dict.pop("exception") if isinstance(event_dict.get("exception"), _Trace) else ()
    if logger != "curfewd":
        event_dict["logger"] = logger
    parts = [
        paint(_DIM, timestamp),
        paint(_COLORS.get(level, ""), f"{level:<7}"),
        paint(_BOLD, event),
        *(f"{paint(_CYAN, key)}={quoted(value)}" for key, value in event_dict.items()),
    ]
    return " ".join(parts) + "".join(f"\n  | {line}" for line in trace)
