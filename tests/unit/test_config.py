"""The settings: what each accepts, what an environment may hold besides, and what SIGHUP takes over."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curfew_daemon.config import RELOADABLE, VARIABLES, Connects, Settings, SettingsError, reload
from curfew_daemon.conninfo import read_database_url, read_listen_url, read_purge_url
from curfew_daemon.settings_table import markdown

URL = {"CURFEW_DATABASE_URL": "host=/run/postgresql"}


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    """What is wrong with an environment."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_defaults_need_nothing_but_a_database() -> None:
    """With a URL alone every other setting has its documented default."""
    settings = Settings.load(URL)
    assert settings.model_dump(exclude={"database_url"}) == {
        "database_url_file": None,
        "migration_database_url": None,
        "migration_database_url_file": None,
        "schema_name": "public",
        "poll_interval": 1.0,
        "batch_size": 2000,
        "drain_connections": 2,
        "connect_timeout": 2,
        "statement_timeout": 5.0,
        "lock_timeout": 2.0,
        "reconnect_max": 1.0,
        "reconnect_spread": 0.0,
        "observe_interval": 5.0,
        "observe_budget": 1.0,
        "retention": None,
        "purge_interval": 3600.0,
        "purge_url": None,
        "purge_url_file": None,
        "listen": False,
        "listen_url": None,
        "listen_url_file": None,
        "shutdown_grace": 10.0,
        "http_host": "127.0.0.1",
        "http_port": 9847,
        "status_runs": True,
        "log_format": "auto",
        "log_level": "info",
        "instance": f"{socket.gethostname()[:40]}:{os.getpid()}",
    }
    assert settings.ignored == ()


def test_each_setting_is_read_from_its_variable(tmp_path: Path) -> None:
    """Every variable reaches its field, letter case of choices aside."""
    file = tmp_path / "url"
    file.write_text("service=curfew")
    given = {
        "CURFEW_DATABASE_URL_FILE": str(file),
        "CURFEW_MIGRATION_DATABASE_URL_FILE": "/run/direct",
        "CURFEW_SCHEMA": "Läufe",
        "CURFEW_POLL_INTERVAL": "0.25",
        "CURFEW_BATCH_SIZE": "10",
        "CURFEW_DRAIN_CONNECTIONS": "3",
        "CURFEW_CONNECT_TIMEOUT": "3",
        "CURFEW_STATEMENT_TIMEOUT": "4",
        "CURFEW_LOCK_TIMEOUT": "4",
        "CURFEW_RECONNECT_MAX": "2.5",
        "CURFEW_RECONNECT_SPREAD": "12",
        "CURFEW_OBSERVE_INTERVAL": "60",
        "CURFEW_OBSERVE_BUDGET": "0.5",
        "CURFEW_RETENTION": "30d",
        "CURFEW_PURGE_INTERVAL": "600",
        "CURFEW_PURGE_URL_FILE": str(file),
        "CURFEW_LISTEN": "true",
        "CURFEW_LISTEN_URL_FILE": str(file),
        "CURFEW_SHUTDOWN_GRACE": "0",
        "CURFEW_HTTP_HOST": "::",
        "CURFEW_HTTP_PORT": "0",
        "CURFEW_STATUS_RUNS": "False",
        "CURFEW_LOG_FORMAT": "JSON",
        "CURFEW_LOG_LEVEL": "Warning",
        "CURFEW_INSTANCE": "blue-1",
    }
    settings = Settings.load(given)
    fields = {name: getattr(settings, name) for name, variable in VARIABLES.items() if variable in given}
    assert list(fields.values()) == [
        *(file, Path("/run/direct"), "Läufe", 0.25, 10, 3, 3, 4.0, 4.0, 2.5, 12.0, 60.0, 0.5),
        *(30 * 86_400.0, 600.0, file, True, file, 0.0),
        *("::", 0, False, "json", "warning", "blue-1"),
    ]


def test_the_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `load` without an argument looks at the process's own environment."""
    monkeypatch.setenv("CURFEW_BATCH_SIZE", "7")
    monkeypatch.setenv("CURFEW_DATABASE_URL", "host=/run/postgresql")
    assert Settings().batch_size == 2000
    assert Settings.load(URL).batch_size == 2000
    assert Settings.load().batch_size == 7


def test_settings_are_frozen() -> None:
    """A loaded setting cannot be changed."""
    settings = Settings.load(URL)
    with pytest.raises(ValidationError, match="frozen"):
        settings.batch_size = 1


@pytest.mark.parametrize(
    ("variable", "accepted", "refused"),
    [
        ("CURFEW_POLL_INTERVAL", ("0.01", "10"), ("0.009", "10.1")),
        ("CURFEW_BATCH_SIZE", ("1", "10000"), ("0", "10001")),
        ("CURFEW_DRAIN_CONNECTIONS", ("1", "16"), ("0", "17")),
        ("CURFEW_CONNECT_TIMEOUT", ("2", "10"), ("1", "11")),
        # The upper ends of the two server timeouts are never reached: other settings bound them first.
        ("CURFEW_STATEMENT_TIMEOUT", ("2", "13.9"), ("0.09", "61")),
        ("CURFEW_LOCK_TIMEOUT", ("0.01", "5"), ("0.009", "61")),
        ("CURFEW_RECONNECT_MAX", ("0.1", "10"), ("0.09", "10.1")),
        ("CURFEW_RECONNECT_SPREAD", ("0", "14"), ("-0.1", "14.1")),
        ("CURFEW_OBSERVE_INTERVAL", ("1", "300"), ("0.4", "301")),
        ("CURFEW_OBSERVE_BUDGET", ("0.01", "5"), ("0.009", "61")),
        ("CURFEW_RETENTION", ("60", "3153600000"), ("59.9", "3153600001")),
        ("CURFEW_PURGE_INTERVAL", ("1", "86400"), ("0.9", "86401")),
        ("CURFEW_SHUTDOWN_GRACE", ("0", "600"), ("-0.1", "601")),
        ("CURFEW_HTTP_PORT", ("0", "65535"), ("-1", "65536")),
    ],
)
def test_a_number_may_be_as_far_out_as_its_range(
    variable: str, accepted: tuple[str, str], refused: tuple[str, str]
) -> None:
    """Both ends of each range are accepted; beyond them the variable and the value are named."""
    for text in accepted:
        Settings.load({**URL, variable: text})
    for text in refused:
        (problem,) = problems({**URL, variable: text})
        assert re.fullmatch(rf"{variable}: input should be (less|greater) than or equal to .*, not {text}", problem)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "1e9", "1s", "true", "1,5", "0x1"])
def test_a_bad_duration_names_its_variable(value: str) -> None:
    """What is no finite number in range is one problem, with the value."""
    (problem,) = problems({**URL, "CURFEW_POLL_INTERVAL": value})
    assert problem.startswith("CURFEW_POLL_INTERVAL: input should be ")
    assert value in problem or value == "1,5"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CURFEW_BATCH_SIZE", "1.5", "valid integer"),
        ("CURFEW_HTTP_PORT", "http", "valid integer"),
        ("CURFEW_STATUS_RUNS", "maybe", "valid boolean, unable to interpret input, not maybe"),
        ("CURFEW_CONNECT_TIMEOUT", "2.5", "valid integer"),
        ("CURFEW_LOG_FORMAT", "xml", "'auto', 'console' or 'json', not xml"),
        ("CURFEW_LOG_LEVEL", "trace", "'debug', 'info', 'warning' or 'error', not trace"),
        ("CURFEW_HTTP_HOST", "[::1]", "without scheme, brackets or port"),
        ("CURFEW_HTTP_HOST", "http://localhost", "without scheme, brackets or port"),
        ("CURFEW_INSTANCE", "blue one", "1 to 54 visible ASCII characters"),
        ("CURFEW_INSTANCE", "x" * 55, "1 to 54 visible ASCII characters"),
        ("CURFEW_SCHEMA", "x" * 64, "1 to 63 bytes"),
        ("CURFEW_SCHEMA", "ä" * 32, "1 to 63 bytes"),
        ("CURFEW_SCHEMA", "a\0b", "no NUL"),
        ("CURFEW_SCHEMA", "a\udcff", "bytes of UTF-8"),
        ("CURFEW_RETENTION", "30 days", "write 30d, 12h or a number of seconds"),
        ("CURFEW_RETENTION", "-3h", "greater than or equal to 60"),
        ("CURFEW_RETENTION", "nan", "finite number"),
        ("CURFEW_RETENTION", "1e999d", "write 30d"),
        ("CURFEW_SCHEMA", "pg_catalog", "PostgreSQL's own"),
        ("CURFEW_SCHEMA", "information_schema", "PostgreSQL's own"),
    ],
)
def test_a_bad_value_says_what_is_expected(variable: str, value: str, said: str) -> None:
    """A value that cannot be used is one problem, which names the variable and what would do."""
    (problem,) = problems({**URL, variable: value})
    assert problem.startswith(f"{variable}: ")
    assert said in problem


@pytest.mark.parametrize("schema", ["x" * 63, 'we"ird', "PG_upper", " ", "läufe"])
def test_any_name_that_postgresql_takes_is_a_schema(schema: str) -> None:
    """A schema may have quotes, spaces and 63 bytes, since it is always quoted."""
    assert Settings.load({**URL, "CURFEW_SCHEMA": schema}).schema_name == schema


@pytest.mark.parametrize(
    "pair", ["CURFEW_DATABASE_URL", "CURFEW_MIGRATION_DATABASE_URL", "CURFEW_PURGE_URL", "CURFEW_LISTEN_URL"]
)
def test_a_url_and_its_file_exclude_each_other(pair: str) -> None:
    """A URL given both ways is an error that names both variables."""
    environ = {**URL, pair: "host=/tmp", f"{pair}_FILE": "/run/url"}
    assert problems(environ) == (f"{pair}_FILE: {pair} is set too; keep one of the two",)


def test_without_a_database_the_variable_is_named() -> None:
    """Neither a URL nor a file nor libpq's own variables: the error names what to set."""
    (problem,) = problems({"PGUSER": "ann", "CURFEW_DATABASE_URL": "", "PGHOST": ""})
    assert problem.startswith("CURFEW_DATABASE_URL: not set")


@pytest.mark.parametrize("variable", ["PGSERVICE", "PGHOST", "PGHOSTADDR"])
def test_libpqs_own_variables_name_a_database(variable: str) -> None:
    """With a host or a service in libpq's variables no URL is needed."""
    assert read_database_url(Settings.load({variable: "10.0.0.1"})) == ""


def test_an_empty_variable_is_not_set() -> None:
    """Every variable may be empty, which means its default."""
    assert Settings.load({**dict.fromkeys(VARIABLES.values(), ""), **URL}) == Settings.load(URL)


def test_a_file_that_cannot_be_used_is_found_at_the_start(tmp_path: Path) -> None:
    """The file of the daemon's URL is read once while loading; that of the migrations' URL is not."""
    (problem,) = problems({"CURFEW_DATABASE_URL_FILE": str(tmp_path)})
    assert problem == f"CURFEW_DATABASE_URL_FILE: '{tmp_path}' is not a regular file"
    Settings.load({**URL, "CURFEW_MIGRATION_DATABASE_URL_FILE": str(tmp_path)})


@pytest.mark.parametrize(
    ("only", "variable"),
    [("migration_database_url", "CURFEW_MIGRATION_DATABASE_URL"), ("purge_url", "CURFEW_PURGE_URL")],
)
def test_a_command_demands_the_url_that_it_connects_with(tmp_path: Path, only: Connects, variable: str) -> None:
    """Its own alone will do, or the database URL in its place; no other URL's file is read."""
    others = {
        f"CURFEW_{name}_URL_FILE": str(tmp_path) for name in ("DATABASE", "PURGE", "LISTEN", "MIGRATION_DATABASE")
    }
    others.pop(f"{variable}_FILE")
    Settings.load({**others, variable: "host=/own"}, only=only)
    Settings.load({variable: "host=/own"}, only=only)
    Settings.load({"CURFEW_DATABASE_URL": "host=/main"}, only=only)
    with pytest.raises(SettingsError, match="CURFEW_DATABASE_URL: not set"):
        Settings.load({variable: ""}, only=only)
    with pytest.raises(SettingsError, match=f"{variable}_FILE: .* is not a regular file"):
        Settings.load({**URL, f"{variable}_FILE": str(tmp_path)}, only=only)
    with pytest.raises(SettingsError, match=r"CURFEW_DATABASE_URL_FILE: .* is not a regular file"):
        Settings.load({"CURFEW_DATABASE_URL_FILE": str(tmp_path)}, only=only)


def test_only_the_daemon_bounds_its_waits_by_its_watchdog() -> None:
    """A command that ends by itself has none, whatever the variables say."""
    environ = {**URL, "WATCHDOG_USEC": "1000000"}
    assert problems(environ)
    Settings.load(environ, only="database_url")


def test_all_problems_are_told_at_once() -> None:
    """One run shows every problem, one per line, each with its variable."""
    found = problems(
        {
            "CURFEW_DATABASE_URL": "mysql://db",
            "CURFEW_DATABASE_URL_FILE": "mysql://db",
            "CURFEW_SCHEME": "x",
            "CURFEW_BATCH_SIZE": "0",
            "CURFEW_LOCK_TIMEOUT": "6",
            "CURFEW_OBSERVE_BUDGET": "6",
        }
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "CURFEW_SCHEME",
        "CURFEW_DATABASE_URL",
        "CURFEW_DATABASE_URL_FILE",
        "CURFEW_BATCH_SIZE",
        "CURFEW_LOCK_TIMEOUT",
        "CURFEW_OBSERVE_BUDGET",
    ]
    assert "CURFEW_STATEMENT_TIMEOUT" in found[4]
    assert "CURFEW_OBSERVE_INTERVAL" in found[5]


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("CURFEW_POLL_INTERVALL", "CURFEW_POLL_INTERVAL"),
        ("CURFEW_SCHEMA_NAME", "CURFEW_SCHEMA"),
        ("CURFEW_DB_URL", "CURFEW_DATABASE_URL"),
        ("CURFEW_PORT", "CURFEW_HTTP_PORT"),
        ("CURFEW_LOGLEVEL", "CURFEW_LOG_LEVEL"),
        ("curfew_batch_size", "CURFEW_BATCH_SIZE"),
    ],
)
def test_an_unknown_variable_names_the_nearest_setting(unknown: str, nearest: str) -> None:
    """A mistyped variable is an error that suggests the setting that was meant."""
    expected = f"{unknown}: no such setting; the nearest is {nearest}"
    assert problems({**URL, unknown: "1"}) == (expected,)
    assert problems({**URL, unknown: ""}) == (expected,)


def test_variables_of_others_are_left_alone() -> None:
    """Other prefixes and the variables of the project's other commands are neither read nor reported."""
    environ = {**URL, "CURFEW_TEST_DATABASE_URL": "x", "CURFEW_PG_BIN": "x", "CURFEWD_PORT": "x", "PATH": "x"}
    settings = Settings.load(environ)
    assert settings.ignored == ()
    assert settings == Settings.load(URL)


def test_service_links_of_kubernetes_are_ignored() -> None:
    """What Kubernetes sets for services called curfew, curfew-db and curfew-http is listed and sets nothing."""
    links = {
        f"{service}_{ending}": value
        for service in ("CURFEW", "CURFEW_DB", "CURFEW_HTTP")
        for ending, value in {
            "PORT": "tcp://10.0.0.1:80",
            "PORT_80_TCP": "tcp://10.0.0.1:80",
            "PORT_80_TCP_ADDR": "10.0.0.1",
            "PORT_80_TCP_PORT": "80",
            "PORT_80_TCP_PROTO": "tcp",
            "PORT_53_UDP": "udp://[fd00::1]:53",
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "80",
            "SERVICE_PORT_METRICS": "80",
        }.items()
    }
    settings = Settings.load({**URL, **links})
    assert settings.ignored == tuple(sorted(links))
    assert settings.http_port == 9847


@pytest.mark.parametrize(
    ("name", "value"),
    [("CURFEW_DB_PORT", "80"), ("CURFEW_DB_SERVICE_PORT", "http"), ("CURFEW_PORT_80_TCP", "10.0.0.1")],
)
def test_only_what_kubernetes_writes_is_a_service_link(name: str, value: str) -> None:
    """A variable that merely sounds like a service link is an unknown setting."""
    (problem,) = problems({**URL, name: value})
    assert problem.startswith(f"{name}: no such setting")


def test_the_longest_wait_is_the_longest_single_one() -> None:
    """Between two beats lies one wait: all addresses of a connect, or one statement, each with a margin."""
    settings = Settings.load(URL)
    assert settings.longest_wait() == 6.0
    assert settings.longest_wait(hosts=4) == 9.0
    assert Settings(statement_timeout=2, connect_timeout=2, poll_interval=10).longest_wait() == 10.0
    assert Settings(statement_timeout=2, reconnect_max=9).longest_wait() == 9.0
    assert Settings(statement_timeout=2, reconnect_spread=12).longest_wait() == 12.0


@pytest.mark.parametrize(
    ("environ", "variable", "said"),
    [
        ({"CURFEW_STATEMENT_TIMEOUT": "14"}, "CURFEW_STATEMENT_TIMEOUT", "15 s, but must stay below half of the 30 s"),
        ({"CURFEW_DATABASE_URL": "host=a,b,c,d"}, "CURFEW_CONNECT_TIMEOUT", "17 s, but must stay below half of the 30"),
        ({"CURFEW_DATABASE_URL": "host=a,b,c,d"}, "CURFEW_CONNECT_TIMEOUT", "may try 8 addresses"),
        ({"WATCHDOG_USEC": "12000000"}, "CURFEW_STATEMENT_TIMEOUT", "6 s, but must stay below half of WATCHDOG_USEC"),
        (
            {"WATCHDOG_USEC": "16000000", "CURFEW_POLL_INTERVAL": "8"},
            "CURFEW_POLL_INTERVAL",
            "8 s, but must stay below half of WATCHDOG_USEC (16 s)",
        ),
        (
            {"WATCHDOG_USEC": "16000000", "CURFEW_RECONNECT_MAX": "8", "WATCHDOG_PID": str(os.getpid())},
            "CURFEW_RECONNECT_MAX",
            "8 s",
        ),
        ({"WATCHDOG_USEC": "1s"}, "WATCHDOG_USEC", "not a whole number of microseconds above 0"),
        ({"WATCHDOG_USEC": "0"}, "WATCHDOG_USEC", "not a whole number of microseconds above 0"),
    ],
)
def test_a_wait_that_looks_like_death_is_refused(environ: dict[str, str], variable: str, said: str) -> None:
    """A wait of half of the watchdog's or of healthz's patience is an error that names what bounds it."""
    (problem,) = problems({**URL, **environ})
    assert problem.startswith(f"{variable}: ")
    assert said in problem


def test_the_watchdog_of_another_process_does_not_count() -> None:
    """A watchdog that is empty, slow enough or another process's leaves the settings alone."""
    for environ in (
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "12000001"},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ):
        assert Settings.load({**URL, **environ}) == Settings.load(URL)


def test_reload_takes_over_what_may_change(tmp_path: Path) -> None:
    """Level, poll interval, batch size and credentials are taken over, from a URL to a file as well."""
    file = tmp_path / "url"
    file.write_text("host=/tmp")
    new = {
        "CURFEW_LOG_LEVEL": "debug",
        "CURFEW_POLL_INTERVAL": "2",
        "CURFEW_BATCH_SIZE": "9",
        "CURFEW_DATABASE_URL_FILE": str(file),
        "CURFEW_MIGRATION_DATABASE_URL": "host=/direct",
        "CURFEW_RETENTION": "12h",
        "CURFEW_PURGE_INTERVAL": "60",
        "CURFEW_PURGE_URL": "host=/purge",
        "CURFEW_LISTEN_URL": "host=/direct",
    }
    settings, refused = reload(Settings.load(URL), new)
    assert refused == []
    assert settings == Settings.load(new)
    assert (settings.database_url, read_database_url(settings)) == (None, "host=/tmp")


def test_reload_refuses_everything_else_by_name(tmp_path: Path) -> None:
    """Each other setting keeps its value; the refused variables are named, the rest is taken over."""
    old = Settings.load(URL)
    new = {
        **URL,
        "CURFEW_SCHEMA": "other",
        "CURFEW_DRAIN_CONNECTIONS": "1",
        "CURFEW_CONNECT_TIMEOUT": "3",
        "CURFEW_STATEMENT_TIMEOUT": "4",
        "CURFEW_LOCK_TIMEOUT": "1",
        "CURFEW_RECONNECT_MAX": "2",
        "CURFEW_RECONNECT_SPREAD": "3",
        "CURFEW_OBSERVE_INTERVAL": "6",
        "CURFEW_OBSERVE_BUDGET": "2",
        "CURFEW_LISTEN": "true",
        "CURFEW_SHUTDOWN_GRACE": "1",
        "CURFEW_HTTP_HOST": "::1",
        "CURFEW_HTTP_PORT": "1",
        "CURFEW_STATUS_RUNS": "false",
        "CURFEW_LOG_FORMAT": "json",
        "CURFEW_INSTANCE": "blue",
    }
    settings, refused = reload(old, {**new, "CURFEW_BATCH_SIZE": "9"})
    assert refused == [variable for variable in new if variable not in URL]
    assert {VARIABLES[name] for name in RELOADABLE}.isdisjoint(refused)
    assert len(refused) + len(RELOADABLE) == len(VARIABLES)
    assert settings == old.model_copy(update={"batch_size": 9})


def test_reload_of_the_same_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change, the process's own environment gives the same settings and refuses nothing."""
    monkeypatch.setenv("CURFEW_DATABASE_URL", "host=/run/postgresql")
    old = Settings.load()
    assert reload(old) == (old, [])


def test_a_bad_reload_leaves_the_old_settings(tmp_path: Path) -> None:
    """An environment with an error, by itself or beside what stays, is refused as a whole."""
    old = Settings.load({**URL, "CURFEW_CONNECT_TIMEOUT": "10"})
    before = old.model_copy()
    with pytest.raises(SettingsError, match="CURFEW_BATCH_SIZE"):
        reload(old, {**URL, "CURFEW_BATCH_SIZE": "0", "CURFEW_LOG_LEVEL": "debug"})
    # Two addresses are fine with the connect timeout of the new environment, not with the one that stays.
    with pytest.raises(SettingsError, match="CURFEW_CONNECT_TIMEOUT: one wait may take 21 s"):
        reload(old, {"CURFEW_DATABASE_URL": "host=db"})
    assert old == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1e3", 1000), ("1h30m", 5400), (" 7d ", 604_800), ("36500D", 0)]
)
def test_a_retention_may_have_units(text: str, seconds: int) -> None:
    """A number of seconds, or a duration in small letters; anything else says how to write one."""
    if seconds:
        assert Settings.load({**URL, "CURFEW_RETENTION": text}).retention == seconds
    else:
        assert "write 30d" in problems({**URL, "CURFEW_RETENTION": text})[0]


def test_the_purge_has_a_url_of_its_own_or_the_databases(tmp_path: Path) -> None:
    """Without one it is that of the database; a file that cannot be read is found at the start."""
    assert read_purge_url(Settings.load(URL)) == read_database_url(Settings.load(URL))
    assert read_purge_url(Settings.load({**URL, "CURFEW_PURGE_URL": "host=/purge"})) == "host=/purge"
    file = tmp_path / "url"
    assert "CURFEW_PURGE_URL_FILE" in problems({**URL, "CURFEW_PURGE_URL_FILE": str(file)})[0]
    file.write_text("host=/file\n")
    assert read_purge_url(Settings.load({**URL, "CURFEW_PURGE_URL_FILE": str(file)})) == "host=/file"


def test_the_listener_has_a_url_of_its_own_or_the_databases(tmp_path: Path) -> None:
    """Without one it is that of the database; a file that cannot be read is found at the start."""
    assert read_listen_url(Settings.load(URL)) == read_database_url(Settings.load(URL))
    assert read_listen_url(Settings.load({**URL, "CURFEW_LISTEN_URL": "host=/direct"})) == "host=/direct"
    file = tmp_path / "url"
    assert "CURFEW_LISTEN_URL_FILE" in problems({**URL, "CURFEW_LISTEN_URL_FILE": str(file)})[0]
    file.write_text("host=/file\n")
    assert read_listen_url(Settings.load({**URL, "CURFEW_LISTEN_URL_FILE": str(file)})) == "host=/file"


def test_settings_made_by_hand_are_checked_too() -> None:
    """The constructor refuses what `load` refuses, and an unknown name."""
    with pytest.raises(ValidationError, match="lock_timeout"):
        Settings(statement_timeout=1)
    mistaken: dict[str, Any] = {"database_url": "postgresql://ann:canary@db@db"}
    with pytest.raises(ValidationError, match="database_url") as caught:
        Settings(**mistaken)
    assert "canary" not in str(caught.value)
    with pytest.raises(ValidationError, match="polling"):
        Settings(polling=1)  # type: ignore[call-arg]


def test_the_table_has_a_row_for_each_setting() -> None:
    """The table of the guide names every variable once, in order, with default, range and meaning."""
    rows = [re.split(r" \| ", row.strip("| \n")) for row in markdown().splitlines()]
    assert rows[0] == ["Variable", "Default", "Accepts", "Meaning"]
    assert [row[0] for row in rows[2:]] == [
        f"`{variable}`{' *' if name in RELOADABLE else ''}" for name, variable in VARIABLES.items()
    ]
    assert all(len(row) == 4 and row[3].endswith(".") for row in rows[2:])
    cells = {row[0].strip("`* "): (row[1], row[2]) for row in rows[2:]}
    assert cells["CURFEW_POLL_INTERVAL"] == ("`1`", "number, 0.01 to 10")
    assert cells["CURFEW_BATCH_SIZE"] == ("`2000`", "whole number, 1 to 10000")
    assert cells["CURFEW_DATABASE_URL"] == ("none", "URL")
    assert cells["CURFEW_DATABASE_URL_FILE"] == ("none", "path")
    assert cells["CURFEW_LOG_FORMAT"] == ("`auto`", "`auto`, `console`, `json`")
    assert cells["CURFEW_INSTANCE"] == ("host name:process id", "text")
    assert cells["CURFEW_SCHEMA"] == ("`public`", "text")
