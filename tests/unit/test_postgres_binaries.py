"""Who the embedded server runs as, and where, on machines other than this one."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from curfew_store import _postgres_binaries as binaries
from curfew_store._postgres_binaries import Account, EmbeddedPostgresUnavailable


def test_without_an_unprivileged_account_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is neither nobody nor postgres, the error says that one is needed."""
    entry = pwd.struct_passwd(("nobody", "x", 0, 0, "", "/", "/bin/false"))
    known = {"nobody": entry}  # a name for root does not count
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    with pytest.raises(EmbeddedPostgresUnavailable, match="neither a user 'nobody' nor 'postgres'"):
        binaries.unprivileged_account()
    known["postgres"] = pwd.struct_passwd(("postgres", "x", 101, 104, "", "/", "/bin/false"))
    assert binaries.unprivileged_account() == (101, 104)


def test_an_ordinary_user_s_server_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without root's rights there is no account to change to."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert binaries.account_for(tmp_path) is None
    assert binaries.may_traverse(tmp_path, None)


def test_another_user_s_data_directory_runs_as_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """For root, an existing data directory decides on the account: its owner."""
    entry = os.stat_result((0o40755, 0, 0, 1, 1234, 5678, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path, **_: entry)
    assert binaries.account_for(Path("/data")) == (1234, 5678)


@pytest.mark.parametrize(
    ("mode", "account", "may"),
    [
        (0o40700, Account(1, 9), True),
        (0o40077, Account(1, 2), False),
        (0o40010, Account(9, 2), True),
        (0o40707, Account(9, 2), False),
        (0o40701, Account(9, 9), True),
        (0o40770, Account(9, 9), False),
    ],
)
def test_mode_bits_decide_who_passes(monkeypatch: pytest.MonkeyPatch, mode: int, account: Account, may: bool) -> None:
    """The first class that fits decides, as in the kernel: owner, then group, then others."""
    entry = os.stat_result((mode, 0, 0, 1, 1, 2, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda path, **_: entry)
    assert binaries.may_traverse(Path("/"), account) is may


def test_no_place_short_enough_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no temporary directory will do, the error says so instead of a failing server."""
    monkeypatch.setattr(binaries, "_SOCKET_PATH_LIMIT", 1)
    with pytest.raises(EmbeddedPostgresUnavailable, match="short enough"):
        binaries.new_working_directory(None)


def test_an_installation_in_pieces_is_not_copied(tmp_path: Path) -> None:
    """Programs without their share directory beside them would not work as a copy."""
    with pytest.raises(EmbeddedPostgresUnavailable, match="cannot be copied"):
        binaries.copy_installation(tmp_path / "bin", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
