"""The types of the settings: what each kind of value must look like, and what an error says where it does not.

The errors go without the value where it may hold a secret.
"""

import contextlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import durationpy
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from .conninfo import to_conninfo


def default_instance() -> str:
    """This host's name and this process's id."""
    # PostgreSQL cuts application_name at 63 bytes; the process id must survive that.
    name = re.sub(r"[^!-~]", "?", socket.gethostname())[:40]
    return f"{name}:{os.getpid()}"


def _checked_url(url: SecretStr) -> SecretStr:
    to_conninfo(url.get_secret_value())
    return url


def _checked_path(path: Path) -> Path:
    # A URL put into the wrong variable would be shown as the name of a file. Path makes one slash of two.
    text = str(path)
    if "\0" in text:
        raise ValueError("holds a NUL, which no path does")
    if ":/" in text or ("password" in text and "=" in text):
        raise ValueError("holds a database URL, not the path of a file; set the variable without _FILE")
    return path


def _checked_schema(name: str) -> str:
    if not name or re.search("[\0\ud800-\udfff]", name) or len(name.encode()) > 63:
        raise ValueError("a schema's name has 1 to 63 bytes of UTF-8 and no NUL")
    if name.startswith("pg_") or name == "information_schema":
        raise ValueError("this schema is PostgreSQL's own")
    return name


def _like(pattern: str, otherwise: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(otherwise)
        return text

    return checked


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _in_seconds(value: object) -> object:
    """A duration with units, such as 30d or 12h, in seconds; what is none goes on as it is."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    try:
        return durationpy.from_str(str(value).strip()).total_seconds()
    except (ValueError, OverflowError):
        raise ValueError("is no duration; write 30d, 12h or a number of seconds") from None


DatabaseUrl = Annotated[SecretStr, AfterValidator(_checked_url)]
SecretFile = Annotated[Path, AfterValidator(_checked_path)]
SchemaName = Annotated[str, AfterValidator(_checked_schema)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Age = Annotated[Seconds, BeforeValidator(_in_seconds)]
ListenAddress = Annotated[
    str,
    AfterValidator(_like(r"[0-9A-Za-z._:%-]+", "give an address or a host name, without scheme, brackets or port")),
]
InstanceName = Annotated[str, AfterValidator(_like(r"[!-~]{1,54}", "give 1 to 54 visible ASCII characters"))]
LogFormat = Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
