"""The daemon's settings: one frozen model, read from the environment and from a file that it may name.

The model is also the source of the table of settings in the operator's guide, which `settings_table` renders;
its descriptions make this module longer than most.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from .conninfo import (
    connect_attempts,
    read_database_url,
    read_listen_url,
    read_migration_database_url,
    read_purge_url,
)
from .environment import PREFIX, sort_environment, with_env_file
from .setting_types import (
    Age,
    DatabaseUrl,
    InstanceName,
    ListenAddress,
    LogFormat,
    LogLevel,
    SchemaName,
    Seconds,
    SecretFile,
    default_instance,
)
from .settings_error import SettingsError
from .wait_bounds import HEALTHZ_STALENESS, MARGIN, wait_problems

__all__ = ["HEALTHZ_STALENESS", "MARGIN", "RELOADABLE", "VARIABLES", "Connects", "Settings", "SettingsError", "reload"]

Connects = Literal["database_url", "migration_database_url", "purge_url"]
"""The field of a URL that a command connects with; where it is not set, the database URL takes its place."""

_READ: dict[Connects, Callable[["Settings"], str]] = {
    "database_url": read_database_url,
    "migration_database_url": read_migration_database_url,
    "purge_url": read_purge_url,
}


class Settings(BaseSettings):
    """Everything that an operator can set. Durations are in seconds.

    `Settings.load()` reads an environment; the constructor takes only what it is given. Instances are frozen,
    and no form of printing them shows a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True
    )

    database_url: DatabaseUrl | None = Field(
        default=None,
        description="Where the tables are and as whom to connect: a `postgresql://` or `postgres://` URL (also"
        " with several hosts), libpq's key=value form, or `service=name`. Without it and its file, libpq's own"
        " variables are used if PGSERVICE, PGHOST or PGHOSTADDR is set.",
    )
    database_url_file: SecretFile | None = Field(
        default=None,
        description="File that holds the database URL: UTF-8, at most 64 KiB; newlines at its end are dropped."
        " Read again at each connect. Excludes `CURFEW_DATABASE_URL`.",
    )
    migration_database_url: DatabaseUrl | None = Field(
        default=None,
        description="URL for `curfewd migrate`: past a pooler, and as a role that may alter the tables. Without"
        " it and its file, the database URL.",
    )
    migration_database_url_file: SecretFile | None = Field(
        default=None,
        description="File that holds the URL for `curfewd migrate`. Excludes `CURFEW_MIGRATION_DATABASE_URL`.",
    )
    schema_name: SchemaName = Field(
        default="public",
        validation_alias=f"{PREFIX}SCHEMA",
        description="Schema of the tables, as PostgreSQL stores its name: letter case counts, no quotes.",
    )
    poll_interval: Seconds = Field(
        default=1.0,
        ge=0.01,
        le=10,
        description="Longest sleep between two sweeps, in seconds. A deadline armed at least this long before it"
        " passes is met within milliseconds; one armed later, within this time.",
    )
    batch_size: int = Field(
        default=2000,
        ge=1,
        le=10_000,
        description="Most runs that one statement marks. A sweep begins with 500 and doubles as long as more are due.",
    )
    drain_connections: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Connections that mark a deep backlog together, the sweep's own among them. The others are made"
        " when one pass has marked 5,000 runs and more are due, and given up after it.",
    )
    connect_timeout: int = Field(
        default=2,
        ge=2,
        le=10,
        description="Longest wait for one address of the database to accept a connection, in whole seconds."
        " Replaces `connect_timeout` of the URL.",
    )
    statement_timeout: Seconds = Field(
        default=5.0, ge=0.1, le=60, description="Longest run of one statement of the sweep on the server, in seconds."
    )
    lock_timeout: Seconds = Field(
        default=2.0,
        ge=0.01,
        le=60,
        description="Longest wait for a lock on the server, in seconds; at most `CURFEW_STATEMENT_TIMEOUT`. Rows"
        " that others hold are skipped: only a lock on a whole table is waited for.",
    )
    reconnect_max: Seconds = Field(
        default=1.0,
        ge=0.1,
        le=10,
        description="Longest pause between two attempts to reach the database, in seconds. The pauses grow to it"
        " and are jittered.",
    )
    reconnect_spread: Seconds = Field(
        default=0.0,
        ge=0,
        le=14,
        description="Time over which the daemons of a large fleet spread their attempts to reach the database, in"
        " seconds; each then attempts once in that time. 0 for up to 50 daemons; beyond, 0.06 for each daemon"
        " (12 for 200).",
    )
    observe_interval: Seconds = Field(
        default=5.0,
        ge=0.5,
        le=300,
        description="Time between two readings of the gauges that cost a query, such as overdue and armed runs,"
        " in seconds.",
    )
    observe_budget: Seconds = Field(
        default=1.0,
        ge=0.01,
        le=60,
        description="Longest run of one query for those gauges, in seconds; at most `CURFEW_OBSERVE_INTERVAL`.",
    )
    retention: Age | None = Field(
        default=None,
        ge=60,
        le=36_500 * 86_400,
        json_schema_extra={"accepts": "duration, `1m` to `36500d`"},
        description="How long to keep a run after its end, in seconds or as `30d` or `12h`. Older ones are deleted with"
        " their idempotency keys, and keys as old that point to no run: **the same key then starts a run again**."
        " **Longer than any step may still be queued**: of a run that is gone nothing stops a late one."
        " None keeps all.",
    )
    purge_interval: Seconds = Field(
        default=3600.0,
        ge=1,
        le=86_400,
        description="Time between two rounds through the tables for what is older than `CURFEW_RETENTION`, in seconds.",
    )
    purge_url: DatabaseUrl | None = Field(
        default=None,
        description="URL for deleting, as a role that may; what `curfewd run` marks with need not. Without it and its"
        " file, the database URL.",
    )
    purge_url_file: SecretFile | None = Field(
        default=None, description="File that holds the URL for deleting. Excludes `CURFEW_PURGE_URL`."
    )
    listen: bool = Field(
        default=False,
        description="Whether to listen for hints from producers whose store was made with `notify_within`: deadlines"
        " nearer than the poll interval are then met within milliseconds, too. Takes a connection of its own.",
    )
    listen_url: DatabaseUrl | None = Field(
        default=None,
        description="URL for listening: past a pooler that shares sessions between transactions, through which nothing"
        " is heard. Without it and its file, the database URL.",
    )
    listen_url_file: SecretFile | None = Field(
        default=None, description="File that holds the URL for listening. Excludes `CURFEW_LISTEN_URL`."
    )
    shutdown_grace: Seconds = Field(
        default=10.0,
        ge=0,
        le=600,
        description="Time that SIGTERM leaves the statement in hand before it is cancelled, in seconds. 0"
        " cancels at once.",
    )
    http_host: ListenAddress = Field(
        default="127.0.0.1",
        description="Address that the status page, `/metrics`, `/healthz` and `/readyz` listen on, without"
        " brackets. `0.0.0.0` or `::` for every interface; the pages ask for no password.",
    )
    http_port: int = Field(
        default=9847, ge=0, le=65535, description="Port of those pages. 0 takes any free one, which is logged."
    )
    status_runs: bool = Field(
        default=True,
        description="Whether the status page lists runs by their ids, and asks the database for them.",
    )
    log_format: LogFormat = Field(
        default="auto", description="How log lines look. `auto`: for people on a terminal, JSON otherwise."
    )
    log_level: LogLevel = Field(
        default="info", description="Least level that is logged. `debug` adds a line for each marked run."
    )
    instance: InstanceName = Field(
        default_factory=default_instance,
        json_schema_extra={"default": "host name:process id"},
        description="Name of this daemon in its log lines and, after `curfewd `, in `application_name`: 1 to 54"
        " visible ASCII characters.",
    )

    _ignored: tuple[str, ...] = PrivateAttr(())

    @property
    def ignored(self) -> tuple[str, ...]:
        """Variables that look like settings but are Kubernetes' service links, in alphabetical order."""
        return self._ignored

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, *, only: Connects | None = None) -> Self:
        """Read the settings from `environ` (default: the process's own), and the files that it names.

        Those are the files of the URLs and, for what the environment does not set, `CURFEW_ENV_FILE`. An empty
        variable counts as not set. `only` names the one URL that a command connects with: no other is demanded, no
        other's file is read, and what watches the loop of `run` does not count. Raises `SettingsError` with every
        problem that was found.
        """
        environ = with_env_file(os.environ if environ is None else environ)
        found = sort_environment(environ, VARIABLES.values())
        problems = list(found.problems)
        if not _names_a_database(found.values, environ, only or "database_url"):
            problems.append(
                "CURFEW_DATABASE_URL: not set, nor CURFEW_DATABASE_URL_FILE, nor libpq's PGSERVICE or PGHOST"
            )
        # The library's source reads os.environ by itself; the sorted values take the place of what it read.
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): value for name, value in found.values.items()}
        try:
            settings = cls(**source())
        except ValidationError as error:
            settings = None
            problems += _problems_of(error)
        if settings is not None:
            settings._ignored = found.service_links  # noqa: SLF001  the class's own attribute
            problems += _problems_of_url(settings, only) if only else _problems_at_run_time(settings, environ)
        if settings is None or problems:
            # Outside of the except clause: the library's error holds the values, and must not be its context.
            raise SettingsError(problems)
        return settings

    def longest_wait(self, hosts: int = 1) -> float:
        """The most seconds between two beats of the sweep, which beats between any two waits.

        `hosts` is the number of addresses that one connect may try in turn.
        """
        return max(self.waits(hosts).values())

    def waits(self, hosts: int = 1) -> dict[str, float]:
        """Each bounded wait of the sweep in seconds, by the variable that bounds it."""
        return {
            VARIABLES["connect_timeout"]: hosts * self.connect_timeout + MARGIN,
            VARIABLES["statement_timeout"]: self.statement_timeout + MARGIN,
            VARIABLES["poll_interval"]: self.poll_interval,
            VARIABLES["reconnect_max"]: self.reconnect_max,
            VARIABLES["reconnect_spread"]: self.reconnect_spread,
        }

    @classmethod
    def settings_customise_sources(  # the library's signature
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `load` has sorted the environment before."""
        return (init_settings,)

    # Each of these looks back at a field above its own, so that one bad field does not hide another problem.

    @field_validator("database_url_file", "migration_database_url_file", "purge_url_file", "listen_url_file")
    @classmethod
    def _one_of_a_pair(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        other = str(info.field_name).removesuffix("_file")
        if path is not None and info.data.get(other) is not None:
            raise ValueError(f"{VARIABLES[other]} is set too; keep one of the two")
        return path

    @field_validator("lock_timeout")
    @classmethod
    def _within_a_statement(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds > info.data.get("statement_timeout", seconds):
            raise ValueError("longer than CURFEW_STATEMENT_TIMEOUT, which would end the statement first")
        return seconds

    @field_validator("observe_budget")
    @classmethod
    def _within_an_interval(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds > info.data.get("observe_interval", seconds):
            raise ValueError("longer than CURFEW_OBSERVE_INTERVAL, after which the next reading is due")
        return seconds


VARIABLES: dict[str, str] = {
    name: str(field.validation_alias or f"{PREFIX}{name.upper()}") for name, field in Settings.model_fields.items()
}
"""The environment variable of each field."""

RELOADABLE = frozenset(
    {
        "database_url",
        "database_url_file",
        "migration_database_url",
        "migration_database_url_file",
        "retention",
        "purge_interval",
        "purge_url",
        "purge_url_file",
        "listen_url",
        "listen_url_file",
        "poll_interval",
        "batch_size",
        "log_level",
    }
)
"""Fields that a running daemon takes over on SIGHUP."""


def reload(old: Settings, environ: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Read the environment again and take over from it the `RELOADABLE` fields.

    Returns the settings that now hold and, in the order of the model, the variables whose change was refused.
    Raises `SettingsError` if the new environment cannot be used, or not together with what stays of `old`.
    """
    environ = os.environ if environ is None else environ
    new = type(old).load(environ)  # reads CURFEW_ENV_FILE, the part of the environment that can have changed
    taken = old.model_copy(update={name: getattr(new, name) for name in RELOADABLE})
    if problems := _problems_at_run_time(taken, environ):
        raise SettingsError(problems)
    return taken, [VARIABLES[name] for name, value in taken if value != getattr(new, name)]


def _names_a_database(values: Mapping[str, str], environ: Mapping[str, str], url: Connects) -> bool:
    ours = [VARIABLES[name] for each in ("database_url", url) for name in (each, f"{each}_file")]
    libpq = ("PGSERVICE", "PGHOST", "PGHOSTADDR")
    return any(map(values.get, ours)) or any(map(environ.get, libpq))


def _problems_of(error: ValidationError) -> list[str]:
    """One sentence for each error of pydantic, naming the variable; a value only if it cannot be a secret."""
    problems = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0])
        if detail["type"] == "value_error":
            said = str(detail["ctx"]["error"])
        else:
            said = detail["msg"][0].lower() + detail["msg"][1:]
            # Short and plain, so that a URL or a password in the wrong variable is not repeated.
            if re.fullmatch(r"[\w.+-]{1,20}", value := str(detail["input"])):
                said += f", not {value}"
        problems.append(f"{VARIABLES.get(name, name)}: {said}")
    return problems


def _problems_of_url(settings: Settings, url: Connects) -> list[str]:
    """What only shows when the file of the URL is read."""
    try:
        _READ[url](settings)
    except SettingsError as error:
        return list(error.problems)
    return []


def _problems_at_run_time(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """What only shows beside the world around: the file of the URL, the number of hosts, the watchdog."""
    try:
        conninfo = read_database_url(settings)
        read_purge_url(settings)
        read_listen_url(settings)
    except SettingsError as error:
        return list(error.problems)
    attempts = connect_attempts(conninfo, environ)
    return wait_problems(settings.waits(attempts), attempts, environ)
