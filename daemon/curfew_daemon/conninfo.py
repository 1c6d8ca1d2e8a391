"""What may stand in a database URL, what libpq is given for it, and what of it may be shown.

No function here puts a value of the URL into an error: a mistyped URL often has a piece of the password where
libpq expects a host, a port or a parameter, and libpq's own messages quote what they could not parse.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from .settings_error import SettingsError
from .text_file import read_text

if TYPE_CHECKING:
    from .config import Settings

_SECRET_OPTIONS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
_SHOWN_OPTIONS = ("service", "host", "hostaddr", "port", "dbname", "user")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://(.*)", re.DOTALL)
_SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")
# One `name = value` of libpq's own grammar; a backslash quotes the next character.
_WORD = re.compile(r"\s*([^\s=]+)\s*=\s*(?:'(?:\\.|[^'\\])*'|(?:\\.|[^\s'\\])(?:\\.|[^\s\\])*)?", re.DOTALL)

_ENCODE = "percent-encode the user name and the password ('@' is %40, '/' %2F, '?' %3F, '%' %25, a space %20)"


class ConninfoError(ValueError):
    """A database URL cannot be used. The message says why and quotes no value of the URL."""


def to_conninfo(url: str) -> str:
    """Turn any accepted form of a database URL into the key=value conninfo that libpq takes.

    Accepted are `postgres://`, `postgresql://` and `postgresql+psycopg://` (also with several hosts) and
    libpq's key=value form, `service=` and unix sockets included. A URL that is only a scheme gives "", which
    stands for libpq's own environment. Raises `ConninfoError`. Reads no file and no environment.
    """
    if not url.strip():
        raise ConninfoError("is blank")
    if re.search("[\0\ud800-\udfff]", url):
        raise ConninfoError("contains a NUL or bytes that are not UTF-8")
    if match := _URL.fullmatch(url):
        _check_scheme(match[1].lower())
        _check_url(match[2])
        url = f"postgresql://{match[2]}"
    else:
        _check_names(list(_names_of_words(url)))
    try:
        options: dict[str, str] | None = _options(url)
    except ProgrammingError:
        options = None  # raised anew below, without this error as its context: its message quotes the URL
    if options is None:
        raise ConninfoError(f"is neither a database URL nor a key=value conninfo; in a URL, {_ENCODE}")
    _check_places(options)
    return make_conninfo("", **options)


def describe(conninfo: str) -> str:
    """What of a conninfo may be shown: where it leads and as whom, never a password or another option."""
    options = _options(conninfo)
    shown = {name: options[name] for name in _SHOWN_OPTIONS if name in options}
    return make_conninfo("", **shown) or "libpq's environment"


def redact(text: str, conninfo: str) -> str:
    """Replace every secret of `conninfo` in `text` by `***`.

    Found are the plain form, any mix with percent-encoding, and the forms escaped for libpq, Python and JSON.
    A secret of fewer than four characters is replaced only where it stands as a word of its own.
    """
    options = _options(conninfo)
    for secret in filter(None, map(options.get, _SECRET_OPTIONS)):
        pattern = _pattern(secret)
        text = pattern.sub("***", text)
        # What is left on both sides of a replacement may spell the secret again, if it has asterisks itself.
        while len(secret) > 3 and pattern.search(text):
            text = pattern.sub("***", text)
    return text


def connect_attempts(conninfo: str, environ: Mapping[str, str]) -> int:
    """How many addresses one connect may try in turn, each for `connect_timeout`.

    A host name counts as two, since it may have an IPv4 and an IPv6 address. Where the conninfo is silent,
    libpq's variables in `environ` are asked.
    """
    options = _options(conninfo)
    addresses = options.get("hostaddr") or environ.get("PGHOSTADDR")
    hosts = addresses or options.get("host") or environ.get("PGHOST") or ""
    attempts = sum(1 if _is_one_address(host) else 2 for host in hosts.split(","))
    target = options.get("target_session_attrs") or environ.get("PGTARGETSESSIONATTRS")
    return attempts * (2 if target == "prefer-standby" else 1)


def read_database_url(settings: Settings) -> str:
    """The conninfo of the database, its file read anew at each call; "" stands for libpq's environment.

    Raises `SettingsError`, which names the variable and the file but nothing of the contents.
    """
    return _read("CURFEW_DATABASE_URL", settings.database_url, settings.database_url_file)


def read_migration_database_url(settings: Settings) -> str:
    """The conninfo for `migrate`: its own where one is set, else that of `read_database_url`."""
    if not has_migration_database_url(settings):
        return read_database_url(settings)
    return _read("CURFEW_MIGRATION_DATABASE_URL", settings.migration_database_url, settings.migration_database_url_file)


def read_purge_url(settings: Settings) -> str:
    """The conninfo for the purge: its own where one is set, else that of `read_database_url`."""
    if not has_purge_url(settings):
        return read_database_url(settings)
    return _read("CURFEW_PURGE_URL", settings.purge_url, settings.purge_url_file)


def read_listen_url(settings: Settings) -> str:
    """The conninfo for LISTEN: its own where one is set, else that of `read_database_url`."""
    if settings.listen_url is None and settings.listen_url_file is None:
        return read_database_url(settings)
    return _read("CURFEW_LISTEN_URL", settings.listen_url, settings.listen_url_file)


def has_migration_database_url(settings: Settings) -> bool:
    """Whether `migrate` connects as somebody else, or elsewhere, than the daemon."""
    return settings.migration_database_url is not None or settings.migration_database_url_file is not None


def has_purge_url(settings: Settings) -> bool:
    """Whether the purge connects as somebody else, or elsewhere, than the daemon."""
    return settings.purge_url is not None or settings.purge_url_file is not None


def _options(conninfo: str) -> dict[str, str]:
    return {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}


def _check_scheme(scheme: str) -> None:
    if scheme in _SCHEMES:
        return
    if scheme.startswith(("postgres+", "postgresql+")):
        raise ConninfoError("names a driver other than psycopg; write postgresql:// or postgresql+psycopg://")
    raise ConninfoError("is not a PostgreSQL URL; it begins with postgresql:// or postgres://")


def _check_url(rest: str) -> None:
    """Refuse what libpq would read as something else than was meant. `rest` is what follows the `://`."""
    if any(character.isspace() for character in rest):
        raise ConninfoError(f"contains white space; {_ENCODE}")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise ConninfoError(f"has a '%' that is not followed by the code of a character; {_ENCODE}")
    # As libpq splits it: credentials only if an '@' comes before any '/', and they end at the first '@'.
    credentials = "@" in rest.partition("/")[0]
    place, _, query = (rest.partition("@")[2] if credentials else rest).partition("?")
    if "@" in place:
        raise ConninfoError(f"has an '@' or a '/' too many; {_ENCODE}")
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    names = [unquote(name) for name, _, value in pairs if (name, value) != ("ssl", "true")]  # JDBC's; libpq's too
    _check_names(names, secret="@" in query)


def _names_of_words(conninfo: str) -> Iterator[str]:
    """The names of a key=value conninfo, as far as it can be parsed."""
    position = 0
    while match := _WORD.match(conninfo, position):
        yield match[1]
        position = match.end()


def _check_names(names: Sequence[str], *, secret: bool = False) -> None:
    """Refuse parameters that libpq does not know, or would silently take the last of.

    An unknown one is named, unless it may be a piece of a password: if `secret`, or right after a password,
    which then had a separator in it.
    """
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    for index, name in enumerate(names):
        if name not in known:
            after_secret = index > 0 and names[index - 1] in _SECRET_OPTIONS
            if secret or after_secret or not re.fullmatch(r"[A-Za-z_]{1,40}", name):
                raise ConninfoError(
                    "has a parameter that libpq does not know, or a password that is not quoted: "
                    f"in a URL, {_ENCODE}; in a key=value conninfo, write password='…'"
                )
            raise ConninfoError(f"has the parameter {name!r}, which libpq does not know")
        if name in names[:index]:
            raise ConninfoError(f"has the parameter {name!r} twice; write several hosts as host1,host2")


def _check_places(options: Mapping[str, str]) -> None:
    hosts = options.get("host", "").split(",")
    ports = options.get("port", "").split(",")
    for host in hosts:
        if "@" in host[1:]:  # a leading '@' is a socket in Linux' abstract namespace
            raise ConninfoError(f"has an '@' in the host; {_ENCODE}")
        if re.fullmatch(r"[^/:]+:\d+", host):
            raise ConninfoError("has a port in the parameter host; it belongs into the parameter port")
    if not all(port == "" or (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536) for port in ports):
        raise ConninfoError(f"has a port that is not a number from 1 to 65535; {_ENCODE}")
    if len(ports) not in {1, max(len(hosts), len(options.get("hostaddr", "").split(",")))}:
        raise ConninfoError("has more than one port, but not one for each host")
    if "://" in options.get("dbname", ""):
        raise ConninfoError("has a URL as the database's name")


def _is_one_address(host: str) -> bool:
    if host == "" or host.startswith(("/", "@")):  # a unix socket
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _pattern(secret: str) -> re.Pattern[str]:
    quoted = (repr(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False))
    forms = {secret, re.sub(r"([\\'])", r"\\\1", secret), *(form[1:-1] for form in quoted)}
    # Longest first, so that no rest of an escaped form stays behind.
    either = "|".join("".join(map(_plain_or_encoded, form)) for form in sorted(forms, key=len, reverse=True))
    return re.compile(either if len(secret) > 3 else rf"(?<!\w)(?:{either})(?!\w)")


def _plain_or_encoded(character: str) -> str:
    encoded = "".join(f"%{byte:02X}" for byte in character.encode())
    return rf"(?:(?i:{encoded})|{re.escape(character)})"


def _read(variable: str, url: SecretStr | None, path: Path | None) -> str:
    if path is not None:
        variable = f"{variable}_FILE"
        text, problem = read_text(path)
        text = text.rstrip("\r\n")
        where = f"{variable}: {str(path)!r} "
    else:
        text, problem = url.get_secret_value() if url else "", ""
        where = f"{variable}: "
    if not problem:
        try:
            return to_conninfo(text) if path or url else ""
        except ConninfoError as error:
            problem = str(error)
    raise SettingsError([where + problem])
