"""What a database URL may look like, and what libpq is given for it."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from curfew_daemon.config import Settings, SettingsError
from curfew_daemon.conninfo import (
    ConninfoError,
    connect_attempts,
    describe,
    read_database_url,
    read_migration_database_url,
    to_conninfo,
)
from curfew_daemon.text_file import FILE_LIMIT

PASSWORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


def quoted(value: str) -> str:
    """A value as it stands between quotes in a key=value conninfo."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://ann:pw@db/runs", {"user": "ann", "password": "pw", "host": "db", "dbname": "runs"}),
        ("postgresql://ann@db:6432/runs", {"user": "ann", "host": "db", "port": "6432", "dbname": "runs"}),
        ("postgresql+psycopg://ann:pw@db", {"user": "ann", "password": "pw", "host": "db"}),
        ("POSTGRESQL://db/runs", {"host": "db", "dbname": "runs"}),
        ("postgresql://a:5432,b:5433/runs", {"host": "a,b", "port": "5432,5433", "dbname": "runs"}),
        (
            "postgresql+psycopg://a,b/runs?target_session_attrs=read-write",
            {"host": "a,b", "port": ",", "dbname": "runs", "target_session_attrs": "read-write"},
        ),
        ("postgresql://[::1]:5432/runs", {"host": "::1", "port": "5432", "dbname": "runs"}),
        ("host=db port=5432 dbname=runs", {"host": "db", "port": "5432", "dbname": "runs"}),
        ("host = a,b\nport = 5432", {"host": "a,b", "port": "5432"}),
        (r"password='it\'s @:/%' host=db", {"password": "it's @:/%", "host": "db"}),
        ("service=curfew", {"service": "curfew"}),
        ("postgresql://?service=curfew", {"service": "curfew"}),
        ("host=/run/postgresql dbname=runs", {"host": "/run/postgresql", "dbname": "runs"}),
        ("host=@abstract dbname=runs", {"host": "@abstract", "dbname": "runs"}),
        ("postgresql:///runs?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "runs"}),
        ("postgresql://ann@%2Frun%2Fpg/runs", {"user": "ann", "host": "/run/pg", "dbname": "runs"}),
        ("postgresql+psycopg:///runs?host=/tmp&user=ann@corp", {"host": "/tmp", "user": "ann@corp", "dbname": "runs"}),
        (
            "postgresql://ann:p%40%3A%2F%25@db/runs",
            {"user": "ann", "password": "p@:/%", "host": "db", "dbname": "runs"},
        ),
        ("postgresql://ann:p:w#?&=@db", {"user": "ann", "password": "p:w#?&=", "host": "db"}),
        ("postgresql://db?ssl=true&sslrootcert=/ca", {"host": "db", "sslmode": "require", "sslrootcert": "/ca"}),
        ("postgresql+psycopg://", {}),
    ],
)
def test_each_form_of_a_url_means_the_same_to_libpq(url: str, expected: dict[str, str]) -> None:
    """Every accepted form becomes a conninfo with exactly the options that were written."""
    assert conninfo_to_dict(to_conninfo(url)) == expected


@settings(deadline=None)  # a loaded machine may take long over any one example
@given(password=PASSWORDS)
def test_a_percent_encoded_password_arrives_unchanged(password: str) -> None:
    """Whatever the password, its percent-encoded form in a URL is read back as the password."""
    options = conninfo_to_dict(to_conninfo(f"postgresql+psycopg://ann:{quote(password, safe='')}@a:1,b:2/runs"))
    assert options == {"user": "ann", "password": password, "host": "a,b", "port": "1,2", "dbname": "runs"}


@settings(deadline=None)  # a loaded machine may take long over any one example
@given(password=PASSWORDS)
def test_a_quoted_password_arrives_unchanged(password: str) -> None:
    """Whatever the password, its quoted form in a key=value conninfo is read back as the password."""
    options = conninfo_to_dict(to_conninfo(f"host=db password={quoted(password)} dbname=runs"))
    assert options == {"host": "db", "password": password, "dbname": "runs"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is blank"),
        (" \n", "is blank"),
        ("postgresql://db/ru\0ns", "a NUL"),
        ("host=db user=\udcff", "not UTF-8"),
        ("mysql://db/runs", "not a PostgreSQL URL"),
        ("postgresql+psycopg2://db/runs", "driver other than psycopg"),
        ("postgres+asyncpg://db/runs", "driver other than psycopg"),
        ("postgresql://db/runs ", "white space"),
        ("postgresql://db/runs?prepare_threshold=0", "'prepare_threshold', which libpq does not know"),
        ("postgresql+psycopg://db/runs?ssl=false", "'ssl', which libpq does not know"),
        ("host=db conect_timeout=3", "'conect_timeout', which libpq does not know"),
        ("postgresql+psycopg:///runs?host=a&host=b", "'host' twice"),
        ("host=a host=b", "'host' twice"),
        ("postgresql+psycopg:///runs?host=a:5432", "has a port in the parameter host"),
        ("host=db:5432", "has a port in the parameter host"),
        ("host=db port=5432/runs", "not a number from 1 to 65535"),
        ("host=db port=0", "not a number from 1 to 65535"),
        ("postgresql://db:65536/runs", "not a number from 1 to 65535"),
        ("postgresql://a,b,c/runs?port=1,2", "not one for each host"),
        ("host=db dbname=postgresql://other/runs", "URL as the database's name"),
        ("runs", "neither a database URL nor"),
        ("host=db password='open", "neither a database URL nor"),
        ("host=db =5", "neither a database URL nor"),
        ("postgresql://[::1/runs", "neither a database URL nor"),
    ],
)
def test_an_unusable_url_says_what_is_wrong(url: str, said: str) -> None:
    """An unusable URL is refused with the reason; parameters that libpq lacks are named, not dropped."""
    with pytest.raises(ConninfoError) as caught:
        to_conninfo(url)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:can@ary@db/runs",
        "postgresql://ann:canary@@db/runs",
        "postgresql://ann:can/ary@db/runs",
        "postgresql://ann:123/canary@db/runs",
        "postgresql://ann:1/can?ary@db/runs",
        "postgresql://ann:1/?canary=1@db/runs",
        "postgresql://ann:can@ary?canary=1@db/runs",
        "postgresql://ann:canary%@db/runs",
        "postgresql://ann:canary%zz@db/runs",
        "postgresql://ann:canary%00@db/runs",
        "postgresql://can ary:canary@db/runs",
        "postgresql://ann:canary/runs",
        "postgresql://db/runs?password=a&canary=b",
        "postgresql://db/runs?password=a&canary",
        "postgresql://db/runs?canary1=b",
        "host=db password=a canary=b",
        "host=db password=a canary",
        "host=db password='a' canary=b",
        "host=db password='canary",
        "host=ann:canary@db dbname=runs",
        "canary",
    ],
)
def test_a_password_that_needs_quoting_is_not_repeated(url: str) -> None:
    """A password that was not percent-encoded or quoted is refused with advice and without a piece of it."""
    with pytest.raises(ConninfoError) as caught:
        to_conninfo(url)
    assert "canary" not in str(caught.value)
    assert "percent-encode" in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        ("host=a,b port=1,2 dbname=runs user=ann password=canary", "host=a,b port=1,2 dbname=runs user=ann"),
        ("service=curfew sslpassword=canary options='-c a.b=canary'", "service=curfew"),
        ("password=canary", "libpq's environment"),
        ("", "libpq's environment"),
    ],
)
def test_a_description_says_where_and_as_whom(conninfo: str, shown: str) -> None:
    """A description has hosts, ports, database and user, and nothing else of the conninfo."""
    assert describe(to_conninfo(conninfo) if conninfo else "") == shown


@pytest.mark.parametrize(
    ("conninfo", "environ", "attempts"),
    [
        ("", {}, 1),
        ("host=/run/postgresql", {}, 1),
        ("host=10.0.0.1,::1", {}, 2),
        ("host=db", {}, 2),
        ("host=a,b,10.0.0.1", {}, 5),
        ("host=a,b hostaddr=10.0.0.1,10.0.0.2", {}, 2),
        ("dbname=runs", {"PGHOST": "a,b"}, 4),
        ("host=db", {"PGHOST": "a,b"}, 2),
        ("host=10.0.0.1,10.0.0.2 target_session_attrs=prefer-standby", {}, 4),
        ("host=10.0.0.1", {"PGTARGETSESSIONATTRS": "prefer-standby"}, 2),
    ],
)
def test_attempts_of_a_connect_are_counted(conninfo: str, environ: dict[str, str], attempts: int) -> None:
    """A connect tries each address in turn; a name counts as two, prefer-standby goes round twice."""
    assert connect_attempts(conninfo, environ) == attempts


def test_a_url_file_is_read_at_each_call(tmp_path: Path) -> None:
    """A rotated file gives the new URL at the next call; newlines at its end are dropped."""
    file = tmp_path / "url"
    loaded = Settings(database_url_file=file)
    file.write_bytes(b"postgresql://ann:old@db/runs\n")
    assert conninfo_to_dict(read_database_url(loaded))["password"] == "old"
    file.write_bytes(b"postgresql://ann:new@db/runs\r\n")
    assert conninfo_to_dict(read_database_url(loaded))["password"] == "new"


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    """A file of exactly the limit is accepted."""
    file = tmp_path / "url"
    file.write_bytes(b"service=curfew" + b"\n" * (FILE_LIMIT - 14))
    assert read_database_url(Settings(database_url_file=file)) == "service=curfew"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is blank"),
        (b"\n", "is blank"),
        (b"postgresql://ann:canary@db/\0runs", "contains a NUL"),
        (b"\xef\xbb\xbfpostgresql://ann:canary@db/runs", "byte order mark"),
        ("postgresql://ann:canary@db/runs".encode("utf-16"), "byte order mark"),
        (b"postgresql://ann:canary\xff@db/runs", "is not UTF-8"),
        (b"service=canary" + b"\n" * (FILE_LIMIT - 13), f"larger than {FILE_LIMIT} bytes"),
        (b"postgresql://ann:canary@db/runs\npostgresql://ann:canary@db/runs", "white space"),
    ],
)
def test_an_unusable_file_is_named_without_its_contents(tmp_path: Path, content: bytes, said: str) -> None:
    """A file that holds no usable URL is an error that names variable and file, and shows nothing of the text."""
    file = tmp_path / "url"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_database_url(Settings(database_url_file=file))
    assert str(caught.value).startswith(f"CURFEW_DATABASE_URL_FILE: '{file}' ")
    assert said in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A missing file, a directory, a name that is too long and a pipe are errors; the pipe does not block."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, said in (
        (tmp_path / "missing", "cannot be read: No such file or directory"),
        (tmp_path, "is not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (pipe, "is not a regular file"),
    ):
        with pytest.raises(SettingsError) as caught:
            read_database_url(Settings(database_url_file=path))
        assert said in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the process may not open is an error with the system's reason."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may open every file, so the system would not

    file = tmp_path / "url"
    file.touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
        read_database_url(Settings(database_url_file=file))


def test_without_a_url_libpq_asks_its_environment() -> None:
    """Settings without a URL and a file give the empty conninfo, for `migrate` as well."""
    assert read_database_url(Settings()) == ""
    assert read_migration_database_url(Settings()) == ""


def test_migrations_use_their_own_url_if_there_is_one(tmp_path: Path) -> None:
    """`migrate` takes its own URL or file, and the daemon's where it has none."""
    ours, theirs = SecretStr("host=pooler"), SecretStr("host=direct")
    file = tmp_path / "url"
    file.write_text("host=filed")
    assert read_migration_database_url(Settings(database_url=ours)) == "host=pooler"
    both = Settings(database_url=ours, migration_database_url=theirs)
    assert (read_database_url(both), read_migration_database_url(both)) == ("host=pooler", "host=direct")
    assert read_migration_database_url(Settings(database_url=ours, migration_database_url_file=file)) == "host=filed"
    with pytest.raises(SettingsError, match=r"^CURFEW_MIGRATION_DATABASE_URL_FILE: '"):
        read_migration_database_url(Settings(migration_database_url_file=tmp_path))
