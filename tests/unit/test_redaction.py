"""A password is never shown: not by the settings, not by an error, not in a text that went through `redact`."""

import io
import json
import pickle
import re
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import make_conninfo

from curfew_daemon import events
from curfew_daemon.app import Daemon
from curfew_daemon.config import Settings, SettingsError
from curfew_daemon.conninfo import describe, read_database_url, redact, to_conninfo

CANARY = "c4nary-Pa55"
PASSWORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=30)


def test_settings_show_no_password(tmp_path: Path) -> None:
    """No form of printing or dumping the settings has the password, be it from a URL or from a file."""
    file = tmp_path / "url"
    file.write_text(f"postgresql://ann:{CANARY}@db/runs")
    url = f"postgresql://ann:{CANARY}@db/runs?sslpassword={CANARY}"
    for environ in (
        {"CURFEW_DATABASE_URL": url, "CURFEW_MIGRATION_DATABASE_URL": url},
        {"CURFEW_DATABASE_URL_FILE": str(file)},
    ):
        loaded = Settings.load(environ)
        shown = (repr(loaded), str(loaded), repr(loaded.model_dump()), loaded.model_dump_json())
        assert CANARY in read_database_url(loaded)
        assert CANARY not in "".join(shown)
        assert CANARY not in describe(read_database_url(loaded))


@pytest.mark.parametrize(
    "environ",
    [
        {"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}@db@db/runs"},
        {"CURFEW_DATABASE_URL": f"postgresql://ann:x/{CANARY}@db/runs"},
        {"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}%@db/runs"},
        {"CURFEW_DATABASE_URL": f"host=db password={CANARY} {CANARY}"},
        {"CURFEW_DATABASE_URL": CANARY},
        {"CURFEW_DATABASE_URL": CANARY + "\udcff"},
        {"CURFEW_DATABASE_URL": f"mysql://ann:{CANARY}@db/runs"},
        {"CURFEW_DATABASE_URL_FILE": f"postgresql://ann:{CANARY}@db/runs"},
        {"CURFEW_DATABASE_URL_FILE": f"host=db password={CANARY}"},
        {"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}@db", "CURFEW_DATABASE_URL_FILE": "/run/url"},
        {"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}@db", "CURFEW_BATCH_SIZE": "0"},
        {"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}@db", "CURFEW_CONNECT_TIMEOUT": "9"},
        {"CURFEW_DATABASE_PASSWORD": CANARY},
        {"CURFEW_MIGRATION_DATABASE_URL": f"postgresql://ann:{CANARY}@db@db/runs"},
        {"CURFEW_SCHEMA": f"postgresql://ann:{CANARY}@db/runs" + "x" * 63},
        {"CURFEW_HTTP_HOST": f"postgresql://ann:{CANARY}@db/runs"},
        {"CURFEW_HTTP_PORT": f"postgresql://ann:{CANARY}@db/runs"},
        {"CURFEW_LOG_LEVEL": f"postgresql://ann:{CANARY}@db/runs"},
    ],
)
def test_an_error_shows_no_password(environ: dict[str, str]) -> None:
    """An error over settings, its traceback and its pickle are free of the password, wherever it was put."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)
    assert CANARY.encode() not in pickle.dumps(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@settings(deadline=None)  # a loaded machine may take long over any one example
@given(password=PASSWORDS, before=st.text(max_size=8), after=st.text(max_size=8))
def test_nothing_of_a_password_is_left(password: str, before: str, after: str) -> None:
    """Plain, percent-encoded in any letter case, escaped for libpq, Python or JSON: the password is gone."""
    encoded = quote(password, safe="")
    conninfo = to_conninfo(f"postgresql://ann:{encoded}@db/runs")
    forms = (
        password,
        encoded,
        quote(password),
        re.sub("%..", lambda code: code[0].lower(), encoded),
        make_conninfo("", password=password).removeprefix("password="),
        repr(password)[1:-1],
        json.dumps(password)[1:-1],
    )
    for form in forms:
        left = redact(before + form + after, conninfo)
        assert password not in left
        assert form not in left


@settings(deadline=None)  # a loaded machine may take long over any one example
@given(password=PASSWORDS, text=st.text(max_size=40))
def test_other_text_stays(password: str, text: str) -> None:
    """A text without the password is returned as it was."""
    assume(not any(character in text for character in password + "\\%"))
    assert redact(text, make_conninfo("", host="db", password=password)) == text


def test_each_secret_option_is_removed() -> None:
    """Not only the password: the key's passphrase and the other secrets that libpq takes are removed."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    names = ["password", "sslpassword"]
    names += sorted(known & {"oauth_client_secret", "scram_client_key", "scram_server_key"})  # libpq 18 and later
    options = {name: f"secret-of-{name}" for name in names}
    conninfo = make_conninfo("", host="db", **options)
    assert redact(conninfo, conninfo) == "host=db " + " ".join(f"{name}=***" for name in names)
    assert describe(conninfo) == "host=db"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('FATAL: "p%40 s/1" is wrong', 'FATAL: "***" is wrong'),
        ("p%40%20s%2F1 p@ s%2f1", "*** ***"),
        ("P@ S/1", "P@ S/1"),
    ],
)
def test_mixed_forms_are_removed(text: str, left: str) -> None:
    """A password of which only some characters are percent-encoded is found; another letter case is not it."""
    assert redact(text, make_conninfo("", password="p@ s/1")) == left


def test_a_short_password_does_not_spoil_every_word() -> None:
    """A password of fewer than four characters goes where it stands alone, and words that contain it stay."""
    assert redact("a cat sat: 'a'", make_conninfo("", password="a")) == "*** cat sat: '***'"


def test_asterisks_do_not_bring_a_password_back() -> None:
    """A password of asterisks is not spelt by the replacement and what stands beside it."""
    conninfo = make_conninfo("", password="****")
    assert "****" not in redact("*" * 21, conninfo)


def test_without_a_password_nothing_is_redacted() -> None:
    """A conninfo without secrets leaves every text alone."""
    assert redact("host=db *** user", "host=db user=ann") == "host=db *** user"
    assert redact("any text", "") == "any text"


def test_what_a_further_connection_met_is_told_without_the_password() -> None:
    """The driver quotes what it cannot read of a URL, and each connection reads it anew."""
    stream = io.StringIO()
    events.configure("json", "info", stream)
    daemon = Daemon(Settings.load({"CURFEW_DATABASE_URL": f"postgresql://ann:{CANARY}@db/runs"}))
    daemon.crew_failed(OSError(f"cannot use {CANARY}"))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "drain_connection_failed"
    assert CANARY not in line
