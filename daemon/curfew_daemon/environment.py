"""Which variables of an environment are settings, which belong to others, and which are mistakes."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from curfew_daemon.settings_error import SettingsError
from curfew_daemon.text_file import read_text

PREFIX = "CURFEW_"

ENV_FILE = "CURFEW_ENV_FILE"
"""Names a file of further settings, one NAME=value a line; the one variable that can only be in the environment."""

# Variables with our prefix that other commands of the project read.
_OTHER_COMMANDS = frozenset({"CURFEW_TEST_DATABASE_URL", "CURFEW_PG_BIN"})

# Kubernetes gives every pod variables about each service of its namespace. A service called `curfew`, or
# `curfew-` and more, makes names with our prefix. (name, value), both to be matched whole; see
# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_ADDRESS = r"(?:tcp|udp|sctp)://\S+"
_SERVICE_LINKS = tuple(
    (re.compile(rf"CURFEW(?:_[A-Z0-9_]+)?_{name}"), re.compile(value))
    for name, value in (
        (r"PORT", _ADDRESS),
        (r"SERVICE_HOST", r"\S+"),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d+"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)", _ADDRESS),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_ADDR", r"\S+"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PORT", r"\d+"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    )
)


def with_env_file(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, and beneath it the settings in the file that `CURFEW_ENV_FILE` names, if it is set.

    An empty variable of the environment counts as not set and hides nothing of the file. The process's own environment
    cannot be changed from outside, so this file is what SIGHUP reads again.
    Raises `SettingsError` if it cannot be read, exceeds 64 KiB, or holds anything but `CURFEW_*` settings.
    """
    merged = dict(environ)
    path = merged.pop(ENV_FILE, "")
    if not path:
        return merged
    text, problem = read_text(Path(path))
    if problem:
        raise SettingsError([f"{ENV_FILE}: {path!r} {problem}"])
    beneath = _settings_in(text, path)
    return beneath | {name: value for name, value in merged.items() if value or name not in beneath}


def _settings_in(text: str, path: str) -> dict[str, str]:
    """The settings of a file; of one that is given twice the last, as systemd does it."""
    given: dict[str, str] = {}
    for line in parse_stream(StringIO(text)):
        name, value = line.key, line.value
        if name is None and not line.error:
            continue  # a comment
        if name is None or value is None or not name.startswith(PREFIX) or name == ENV_FILE:
            # Without the line itself, which may be a secret in the wrong place.
            rule = f"may hold lines CURFEW_…=value only, and no {ENV_FILE}"
            raise SettingsError([f"{ENV_FILE}: {path!r} {rule}: see line {line.original.line}"])
        given[name] = value
    return given


@dataclass(frozen=True, slots=True)
class SortedEnvironment:
    """The variables with our prefix, by what they are."""

    values: dict[str, str]
    """Settings that were given, by variable. An empty value counts as not given and is left out."""
    service_links: tuple[str, ...]
    """Names of variables that Kubernetes made; they set nothing."""
    problems: tuple[str, ...]
    """One sentence for each variable that is no setting, naming the nearest setting, never the value."""


def sort_environment(environ: Mapping[str, str], variables: Collection[str]) -> SortedEnvironment:
    """Sort what in `environ` begins with `CURFEW_`, in any case of letters, given the settings' `variables`."""
    values: dict[str, str] = {}
    links: list[str] = []
    problems: list[str] = []
    for name in sorted(name for name in environ if name.upper().startswith(PREFIX)):
        value = environ[name]
        # Before the settings: a service called `curfew-http` makes CURFEW_HTTP_PORT=tcp://….
        if _is_service_link(name, value):
            links.append(name)
        elif name in variables:
            if value:
                values[name] = value
        elif name not in _OTHER_COMMANDS:
            nearest = difflib.get_close_matches(name.upper(), variables, n=1, cutoff=0.0)[0]
            problems.append(f"{name}: no such setting; the nearest is {nearest}")
    return SortedEnvironment(values, tuple(links), tuple(problems))


def _is_service_link(name: str, value: str) -> bool:
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_LINKS)
