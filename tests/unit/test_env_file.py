"""`CURFEW_ENV_FILE`: a file beneath the environment, the part of it that SIGHUP can read anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from curfew_daemon.config import Settings, SettingsError, reload
from curfew_daemon.environment import ENV_FILE, with_env_file

URL = "postgresql://db.example/runs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "curfewd.env"


def test_without_the_variable_the_environment_is_all(file: Path) -> None:
    """Nothing is read, and the result is a copy: an empty variable counts as not set."""
    environ = {"CURFEW_BATCH_SIZE": "7", "HOME": "/root"}
    assert with_env_file(environ) == environ
    assert with_env_file(environ) is not environ
    assert with_env_file(environ | {ENV_FILE: ""}) == environ


def test_the_file_is_beneath_the_environment(file: Path) -> None:
    """A setting of the environment wins over the same one in the file; the variable itself is no setting."""
    file.write_text("CURFEW_BATCH_SIZE=7\nCURFEW_LOG_LEVEL=debug\n")
    merged = with_env_file({ENV_FILE: str(file), "CURFEW_LOG_LEVEL": "error", "HOME": "/root"})
    assert merged == {"CURFEW_BATCH_SIZE": "7", "CURFEW_LOG_LEVEL": "error", "HOME": "/root"}


def test_the_file_is_written_as_env_files_are(file: Path) -> None:
    """Comments, blank lines, `export`, quotes and `=` in values are understood; nothing is interpolated."""
    file.write_text(
        "# the database\n\n"
        f"export CURFEW_DATABASE_URL='{URL}?options=-c%20x%3D1&application_name=$HOME'\n"
        'CURFEW_INSTANCE="${HOME}"\n'
        "CURFEW_BATCH_SIZE = 9  # nine\n"
        "CURFEW_LOG_LEVEL=\n"
    )
    assert with_env_file({ENV_FILE: str(file)}) == {
        "CURFEW_DATABASE_URL": f"{URL}?options=-c%20x%3D1&application_name=$HOME",
        "CURFEW_INSTANCE": "${HOME}",
        "CURFEW_BATCH_SIZE": "9",
        "CURFEW_LOG_LEVEL": "",
    }


def test_settings_come_from_the_file(file: Path) -> None:
    """Loading the settings reads the file, and what is wrong in it is said by the name of the variable."""
    file.write_text(f"CURFEW_DATABASE_URL={URL}\nCURFEW_POLL_INTERVAL=0.5\n")
    settings = Settings.load({ENV_FILE: str(file)})
    assert settings.poll_interval == 0.5
    file.write_text(f"CURFEW_DATABASE_URL={URL}\nCURFEW_POLL_INTERVALL=0.5\n")
    with pytest.raises(SettingsError, match=r"CURFEW_POLL_INTERVALL.*nearest is CURFEW_POLL_INTERVAL"):
        Settings.load({ENV_FILE: str(file)})


@pytest.mark.parametrize("line", ["PGPASSWORD=canary", f"{ENV_FILE}=/other", "CURFEW_BATCH_SIZE", "canary"])
def test_anything_but_settings_is_refused_without_being_shown(file: Path, line: str) -> None:
    """Other variables, a further file and lines that are none may be secrets in the wrong place."""
    file.write_text(f"CURFEW_LOG_LEVEL=info\n{line}\n")
    with pytest.raises(SettingsError, match=ENV_FILE) as raised:
        with_env_file({ENV_FILE: str(file)})
    assert str(file) in str(raised.value)
    assert "canary" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(file: Path, tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: each is a settings error and no traceback."""
    for path, why in ((file, "No such file"), (tmp_path, "is not a regular file")):
        with pytest.raises(SettingsError, match=f"{ENV_FILE}.*{path}.*{why}"):
            with_env_file({ENV_FILE: str(path)})
    file.write_bytes(b"CURFEW_INSTANCE=\xff\xfe\n")
    with pytest.raises(SettingsError, match="not UTF-8"):
        with_env_file({ENV_FILE: str(file)})


def test_a_reload_takes_over_what_it_may_and_names_the_rest(file: Path) -> None:
    """Log level, poll interval, batch size and credentials change; any other difference is refused by name."""
    environ = {ENV_FILE: str(file)}
    file.write_text(f"CURFEW_DATABASE_URL={URL}\n")
    old = Settings.load(environ)
    file.write_text(
        f"CURFEW_DATABASE_URL={URL}2\nCURFEW_LOG_LEVEL=debug\nCURFEW_POLL_INTERVAL=0.2\nCURFEW_BATCH_SIZE=9\n"
        "CURFEW_SCHEMA=other\nCURFEW_HTTP_PORT=1\n"
    )
    new, refused = reload(old, environ)
    assert (new.log_level, new.poll_interval, new.batch_size) == ("debug", 0.2, 9)
    assert new.database_url is not None
    assert new.database_url.get_secret_value() == f"{URL}2"
    assert (new.schema_name, new.http_port) == (old.schema_name, old.http_port)
    assert refused == ["CURFEW_SCHEMA", "CURFEW_HTTP_PORT"]


def test_what_the_environment_sets_a_reload_cannot_change(file: Path) -> None:
    """The file stays beneath the environment of the process, which no signal changes."""
    environ = {ENV_FILE: str(file), "CURFEW_DATABASE_URL": URL, "CURFEW_BATCH_SIZE": "5"}
    file.write_text("")
    old = Settings.load(environ)
    file.write_text("CURFEW_BATCH_SIZE=9\n")
    assert reload(old, environ) == (old, [])


def test_a_bad_file_leaves_the_old_settings(file: Path) -> None:
    """A reload that fails raises and hands out nothing."""
    environ = {ENV_FILE: str(file)}
    file.write_text(f"CURFEW_DATABASE_URL={URL}\n")
    old = Settings.load(environ)
    file.write_text(f"CURFEW_DATABASE_URL={URL}\nCURFEW_BATCH_SIZE=0\n")
    with pytest.raises(SettingsError, match="CURFEW_BATCH_SIZE"):
        reload(old, environ)
    file.unlink()
    with pytest.raises(SettingsError, match=ENV_FILE):
        reload(old, environ)
