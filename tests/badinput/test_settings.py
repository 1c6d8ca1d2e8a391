"""Files of settings that are none, and credentials where everybody can read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curfew_daemon.arguments import holds_password, password_in
from curfew_daemon.config import Settings, SettingsError
from curfew_daemon.environment import ENV_FILE, with_env_file
from curfew_daemon.text_file import FILE_LIMIT

BOMB = "a: &a [x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "curfewd.env"


def refusal(environ: dict[str, str]) -> str:
    """What is said of an environment that cannot be used."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert caught.value.__context__ is None
    return str(caught.value)


def test_a_pipe_as_the_file_of_settings_does_not_block(file: Path) -> None:
    """Nobody writes into it, and still the error is there at once; nor is a device read that never ends."""
    os.mkfifo(file)
    assert refusal({ENV_FILE: str(file)}) == f"{ENV_FILE}: '{file}' is not a regular file"
    assert refusal({ENV_FILE: "/dev/zero"}) == f"{ENV_FILE}: '/dev/zero' is not a regular file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"CURFEW_BATCH_SIZE=7\n" * 500_000, f"larger than {FILE_LIMIT} bytes"),
        (b"\xef\xbb\xbfCURFEW_BATCH_SIZE=7\n", "byte order mark"),
        ("CURFEW_BATCH_SIZE=7\n".encode("utf-16"), "byte order mark"),
        (b"CURFEW_INSTANCE=\xc3(\n", "is not UTF-8"),
        (b'CURFEW_BATCH_SIZE=7\nCURFEW_INSTANCE="canary\nCURFEW_LOG_LEVEL=info\n', "see line 2"),
        (b"CURFEW_BATCH_SIZE=7\nCURFEW_INSTANCE='canary' canary\n", "see line 2"),
        (b"=canary\n", "see line 1"),
        (BOMB.encode(), "see line 1"),
    ],
    ids=["10 MB", "BOM", "UTF-16", "bad UTF-8", "open quote", "text behind a quote", "no name", "YAML bomb"],
)
def test_a_file_of_settings_that_cannot_be_read(file: Path, content: bytes, said: str) -> None:
    """Too large, of another encoding or not NAME=value throughout: refused whole, and nothing of it is shown."""
    file.write_bytes(content)
    problem = refusal({ENV_FILE: str(file)})
    assert problem.startswith(f"{ENV_FILE}: '{file}' ")
    assert said in problem
    assert "canary" not in problem


def test_a_file_of_settings_may_be_as_large_as_the_limit(file: Path) -> None:
    """Exactly 64 KiB are read; one byte more is refused."""
    file.write_bytes(b"CURFEW_BATCH_SIZE=7\n".ljust(FILE_LIMIT, b"\n"))
    assert with_env_file({ENV_FILE: str(file)}) == {"CURFEW_BATCH_SIZE": "7"}
    file.write_bytes(b"CURFEW_BATCH_SIZE=7\n".ljust(FILE_LIMIT + 1, b"\n"))
    assert "larger" in refusal({ENV_FILE: str(file)})


def test_of_a_setting_that_a_file_gives_twice_the_last_holds(file: Path) -> None:
    """As systemd reads the same file; the environment is above both, and only what holds is checked."""
    file.write_text("CURFEW_BATCH_SIZE=0\nCURFEW_BATCH_SIZE=7\nCURFEW_DATABASE_URL=host=/tmp\n")
    assert Settings.load({ENV_FILE: str(file)}).batch_size == 7
    assert Settings.load({ENV_FILE: str(file), "CURFEW_BATCH_SIZE": "8"}).batch_size == 8


def test_an_empty_variable_hides_nothing_of_the_file(file: Path) -> None:
    """Empty means not set, in the environment and in the file."""
    file.write_text("CURFEW_BATCH_SIZE=7\nCURFEW_DATABASE_URL=host=/tmp\nCURFEW_POLL_INTERVAL=\n")
    environ = {ENV_FILE: str(file), "CURFEW_BATCH_SIZE": "", "CURFEW_DATABASE_URL": ""}
    settings = Settings.load(environ)
    assert (settings.batch_size, settings.poll_interval) == (7, 1)
    assert Settings.load(environ | {"CURFEW_POLL_INTERVAL": "2"}).poll_interval == 2


@pytest.mark.parametrize("variable", ["CURFEW_DATABASE_URL_FILE", "CURFEW_PURGE_URL_FILE", "CURFEW_LISTEN_URL_FILE"])
def test_a_name_that_no_file_has(file: Path, variable: str) -> None:
    """A NUL, which only a file of settings can bring into a path, is a problem of the variable and no traceback."""
    file.write_bytes(f'{variable}="a\0b"\n'.encode())
    assert refusal({ENV_FILE: str(file), "PGHOST": "/tmp"}) == f"{variable}: holds a NUL, which no path does"
    assert "cannot be read" in refusal({ENV_FILE: "a\0b"})
    assert "cannot be read: File name too long" in refusal({ENV_FILE: "a" * 5000})


@pytest.mark.parametrize("variable", ["CURFEW_HTTP_PORT", "CURFEW_BATCH_SIZE", "CURFEW_CONNECT_TIMEOUT"])
@pytest.mark.parametrize("value", ["1e3", "0x10", "1 000", "9" * 400, "nan", "\0", "\udcff"], ids=ascii)
def test_what_is_no_whole_number(variable: str, value: str) -> None:
    """Other notations, hundreds of digits and bytes of nothing are one problem of their variable."""
    assert refusal({"PGHOST": "/tmp", variable: value}).startswith(f"{variable}: input should be ")


@pytest.mark.parametrize(
    "argument",
    [
        "postgresql://ann:canary@db/runs",
        "postgresql+psycopg://ann:can/ary@db,other/runs",
        "--url=postgres://:canary@/runs",
        "postgresql://db/runs?user=ann&password=canary",
        "host=db password = 'canary'",
        "host=db sslpassword=canary",
    ],
)
def test_a_password_among_the_arguments_is_known(argument: str) -> None:
    """Every form of a database URL in which one can stand, also as part of an option."""
    assert holds_password(argument)
    assert password_in(["run", argument]) == (True, False)
    assert password_in(["demo", argument]) == (True, False)
    assert password_in(["demo", "--database-url", argument]) == (False, True)
    assert password_in(["demo", f"--database-url={argument}", "--plain"]) == (False, True)
    assert password_in(["run", "--database-url", argument]) == (True, False)


@pytest.mark.parametrize(
    "argument", ["postgresql://ann@db:5432/runs", "postgresql://db:5432/runs", "service=curfew", "run", "--wait", "1h"]
)
def test_what_holds_no_password_is_left_to_its_command(argument: str) -> None:
    """A URL without one is as good or bad as any other argument."""
    assert password_in(["demo", "--database-url", argument]) == (False, False)
    assert password_in([argument]) == (False, False)
