"""The shipped unit in a booted systemd, installed by the README's commands."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from curfew_store.embedded import EmbeddedPostgres
from tests.system.systemd.machine import CREDENTIAL, DAEMON, ENV_FILE, Machine

pytestmark = pytest.mark.system

# The shortest watchdog that these settings allow: a connect may take 3 s, a statement 1.5 s.
SHORT_WAITS = "CURFEW_STATEMENT_TIMEOUT=0.5\nCURFEW_LOCK_TIMEOUT=0.4\n"
SHORT_WATCHDOG = "[Service]\nWatchdogSec=7s\n"
WATCHDOG = 7


def shorten_watchdog(machine: Machine) -> None:
    """Restart the daemon with a watchdog that a test can wait for."""
    machine.system.write(ENV_FILE, SHORT_WAITS)
    machine.drop_in(DAEMON, SHORT_WATCHDOG)
    machine.system.run("systemctl", "restart", DAEMON)
    machine.system.wait_shown(DAEMON, "StatusText", "database: up")
    assert machine.system.show(DAEMON, "WatchdogUSec") == "7s"


def test_readme_leads_to_a_service_that_is_ready_and_enforces(machine: Machine) -> None:
    """After the README's commands the service is active, enabled, ready, watched, and marks an overdue run."""
    system = machine.system
    wanted = {"ActiveState": "active", "SubState": "running", "Type": "notify", "UnitFileState": "enabled"}
    assert {name: system.show(DAEMON, name) for name in wanted} == wanted
    assert system.show(DAEMON, "WatchdogUSec") == "30s"
    assert int(system.show(DAEMON, "WatchdogTimestampMonotonic")) > 0
    assert system.show(DAEMON, "DropInPaths") == ""
    system.wait(lambda: machine.get("/readyz").strip(), "ok")
    machine.wait_marked(machine.overdue_run())
    assert "\nprocess_resident_memory_bytes " in machine.get("/metrics"), "the sandbox hides what metrics read"


def test_database_url_is_read_from_the_credential_alone(machine: Machine) -> None:
    """The URL reaches the service through LoadCredential: in no environment, log or command line, for no other user."""
    system = machine.system
    pid = machine.main_pid()
    environment = system.path(f"/proc/{pid}/environ").read_text().split("\0")
    shown = f"/run/credentials/{DAEMON}/database-url"
    assert f"CURFEW_DATABASE_URL_FILE={shown}" in environment
    seen = system.path(f"/proc/{pid}/root{shown}")
    assert seen.read_text().strip() == machine.url
    assert seen.stat().st_mode & 0o037 == 0
    assert system.path(CREDENTIAL).stat().st_mode & 0o777 == 0o600
    told = [*environment, system.path(f"/proc/{pid}/cmdline").read_text(), str(system.journal(DAEMON))]
    assert not [text for text in told if machine.password in text]


def test_process_has_no_privilege_left(machine: Machine) -> None:
    """The running process has a passing user of its own, no capability, system call filter and no way to gain more."""
    status = machine.system.path(f"/proc/{machine.main_pid()}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    users = set(map(int, facts["Uid"].split()))
    assert len(users) == 1
    assert 61184 <= users.pop() <= 65519, "not from systemd's range of dynamic users"
    assert int(facts["Umask"], 8) == 0o077


PROBE = """
import ctypes, json, mmap, os, socket
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "done"
print(json.dumps({
    "write /etc": attempt(lambda: Path("/etc/probe").touch()),
    "write /opt": attempt(lambda: Path("/opt/curfewd/probe").touch()),
    "write /usr": attempt(lambda: Path("/usr/probe").touch()),
    "write /var": attempt(lambda: Path("/var/lib/probe").touch()),
    "read the secret at its source": attempt(lambda: Path("/etc/curfewd/database-url").read_text()),
    "look into /root": attempt(lambda: os.listdir("/root")),
    "look into /home": attempt(lambda: os.listdir("/home")),
    "write code": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "packet socket": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "netlink socket": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "new user namespace": attempt(lambda: call("unshare", 0x10000000)),
    "mount": attempt(lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
    "set-user-id file": attempt(lambda: (Path("/tmp/probe").touch(), os.chmod("/tmp/probe", 0o4755))),
    "kernel setting": attempt(lambda: Path("/proc/sys/kernel/hostname").write_text("probe")),
    "other processes": "done" if [each for each in os.listdir("/proc") if each == "1"] else "hidden",
    "write /tmp": attempt(lambda: Path("/tmp/mine").touch()),
    "look up a name": attempt(lambda: socket.getaddrinfo("localhost", 5432)),
    "tcp socket": attempt(lambda: socket.socket(socket.AF_INET6).close()),
    "core size": __import__("resource").getrlimit(4)[1],
}))
"""


def test_sandbox_refuses_what_the_daemon_does_not_need(machine: Machine) -> None:
    """From inside the shipped sandbox nothing can be written but a private /tmp, and no privilege be taken."""
    system = machine.system
    system.path("/tmp/outside").touch()
    system.write("/run/probe.py", PROBE)
    system.write("/run/systemd/system/curfewd-probe.service", system.path(f"/etc/systemd/system/{DAEMON}").read_text())
    run = "ExecStart=\nExecStart=/opt/curfewd/bin/python /run/probe.py\n"
    machine.drop_in("curfewd-probe.service", f"[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\n{run}")
    system.run("systemctl", "start", "curfewd-probe.service")
    (found,) = system.events("curfewd-probe.service")
    allowed = {
        "write /tmp": "done",
        "look up a name": "done",
        "tcp socket": "done",
        "other processes": "hidden",
        "core size": 0,
    }
    assert {name: found.pop(name) for name in allowed} == allowed
    refusals = {
        "Read-only file system",
        "Permission denied",
        "Operation not permitted",
        "Address family not supported by protocol",
    }
    assert {name: said for name, said in found.items() if said not in refusals} == {}


def test_stopped_loop_is_killed_by_the_watchdog_and_started_again(machine: Machine) -> None:
    """A daemon that no longer runs is ended by the watchdog, tells where it was, and another one enforces."""
    system = machine.system
    shorten_watchdog(machine)
    since, pid = system.cursor(), machine.main_pid()
    system.run("kill", "-STOP", pid)
    late = machine.overdue_run()
    system.wait_shown(DAEMON, "NRestarts", "1")
    system.wait_shown(DAEMON, "ActiveState", "active")
    assert machine.main_pid() != pid
    machine.wait_marked(late)
    said = [str(entry["MESSAGE"]) for entry in system.journal(DAEMON, since)]
    assert any("Watchdog timeout" in text for text in said), said
    assert any("Fatal Python error: Aborted" in text for text in said), said
    assert any("lifecycle.py" in text for text in said), said


@contextlib.contextmanager
def stopped(server: EmbeddedPostgres) -> Iterator[None]:
    """A database server that refuses connections."""
    server.halt("immediate")
    try:
        yield
    finally:
        server.resume()


@contextlib.contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """A database server that takes connections and never answers."""
    first = server.postmaster_pid
    assert first is not None
    children = Path(f"/proc/{first}/task/{first}/children").read_text()
    processes = [first, *map(int, children.split())]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("outage", [stopped, frozen])
def test_outage_longer_than_the_watchdog_restarts_nothing(
    machine: Machine, outage: Callable[[EmbeddedPostgres], AbstractContextManager[None]]
) -> None:
    """While the database is away the same process stays active and says so; afterwards it enforces by itself."""
    system = machine.system
    shorten_watchdog(machine)

    def fed() -> int:
        """When the watchdog was last fed, in microseconds."""
        return int(system.show(DAEMON, "WatchdogTimestampMonotonic"))

    pid, fed_before = machine.main_pid(), fed()
    with outage(machine.server):
        system.wait_shown(DAEMON, "StatusText", "database: unreachable")
        system.wait(lambda: fed() > fed_before + 1.5 * WATCHDOG * 1_000_000, True)
        assert (machine.main_pid(), system.show(DAEMON, "ActiveState")) == (pid, "active")
        assert "database: unreachable" in machine.get("/readyz")
    machine.wait_marked(machine.overdue_run())
    system.wait_shown(DAEMON, "StatusText", "database: up")
    assert (machine.main_pid(), system.show(DAEMON, "NRestarts")) == (pid, "0")


def test_service_starts_without_a_database(machine: Machine) -> None:
    """A start during an outage is not a failure: the service becomes active and waits."""
    machine.server.halt()
    try:
        machine.system.run("systemctl", "restart", DAEMON)
        assert machine.system.show(DAEMON, "ActiveState") == "active"
    finally:
        machine.server.resume()
    machine.wait_marked(machine.overdue_run())
    assert machine.system.show(DAEMON, "NRestarts") == "0"


def test_stop_ends_the_process_with_code_0(machine: Machine) -> None:
    """`systemctl stop` is answered by an exit with 0, without a kill and without a new start."""
    system = machine.system
    # systemd forgets how a service ended once nothing refers to the stopped unit.
    tell = "echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >/run/ended"
    machine.drop_in(DAEMON, f"[Service]\nExecStopPost=+/bin/sh -c '{tell}'\n")
    system.run("systemctl", "restart", DAEMON)
    system.path("/run/ended").unlink()
    system.wait_shown(DAEMON, "StatusText", "database: up")
    since = system.cursor()
    system.run("systemctl", "stop", DAEMON)
    assert system.show(DAEMON, "ActiveState") == "inactive"
    assert system.path("/run/ended").read_text() == "success exited 0\n"
    ends = [(line["event"], line.get("exit_code")) for line in system.events(DAEMON, since)]
    assert ends == [("stopping", None), ("stopped", 0)]


def test_reload_takes_settings_over_in_the_same_process(machine: Machine) -> None:
    """`systemctl reload` reads the settings file again, tells systemd about both ends, and restarts nothing."""
    system = machine.system
    pid, since = machine.main_pid(), system.cursor()
    system.write(ENV_FILE, "CURFEW_LOG_LEVEL=debug\nCURFEW_HTTP_PORT=9999\n")
    system.run("systemctl", "log-level", "debug")
    try:
        machine.follow("Change a setting")
        system.wait(
            lambda: [line["event"] for line in system.events(DAEMON, since)][:2], ["reloaded", "reload_refused"]
        )
        system.wait_shown(DAEMON, "ActiveState", "active")
    finally:
        system.run("systemctl", "log-level", "info")
    reloaded, refused = system.events(DAEMON, since)[:2]
    assert reloaded["changed"] == ["CURFEW_LOG_LEVEL"]
    assert refused["names"] == ["CURFEW_HTTP_PORT"]
    assert (machine.main_pid(), system.show(DAEMON, "NRestarts")) == (pid, "0")
    told = [str(entry["MESSAGE"]) for entry in system.journal(DAEMON, since) if "notification" in str(entry["MESSAGE"])]
    assert [text for text in told if "RELOADING=1" in text], told
    assert "READY=1" in told[-1]


def test_mistake_in_a_reload_leaves_the_service_as_it_was(machine: Machine) -> None:
    """A settings file with an unknown name is refused by name and the daemon goes on."""
    system = machine.system
    pid, since = machine.main_pid(), system.cursor()
    system.write(ENV_FILE, "CURFEW_POLL_INTERVALL=1\n")
    system.run("systemctl", "reload", DAEMON)
    system.wait(lambda: [line["event"] for line in system.events(DAEMON, since)][:1], ["reload_failed"])
    machine.wait_marked(machine.overdue_run())
    system.wait_shown(DAEMON, "ActiveState", "active")
    assert machine.main_pid() == pid


def test_mistake_in_the_settings_is_not_tried_again(machine: Machine) -> None:
    """A start with an unknown setting fails once, with the exit code for settings, and stays failed."""
    system = machine.system
    system.write(ENV_FILE, "CURFEW_POLL_INTERVALL=1\n")
    system.run("systemctl", "restart", DAEMON, check=False)
    wanted = {"ActiveState": "failed", "ExecMainStatus": "3", "NRestarts": "0"}
    assert {name: system.show(DAEMON, name) for name in wanted} == wanted


def test_missing_credential_is_waited_for(machine: Machine) -> None:
    """Without the file of the database URL the service is tried again until the file is there."""
    system = machine.system
    system.path(CREDENTIAL).unlink()
    system.run("systemctl", "restart", DAEMON, check=False)
    system.wait(lambda: int(system.show(DAEMON, "NRestarts")) >= 1, True)
    system.wait_shown(DAEMON, "ExecMainStatus", "243")  # 0 for the moment in which it is tried again
    system.write(CREDENTIAL, f"{machine.url}\n")
    system.wait_shown(DAEMON, "StatusText", "database: up")


def test_killed_daemon_is_started_again(machine: Machine) -> None:
    """A daemon that dies is back after RestartSec."""
    system = machine.system
    pid = machine.main_pid()
    system.run("kill", "-KILL", pid)
    system.wait_shown(DAEMON, "NRestarts", "1")
    system.wait_shown(DAEMON, "StatusText", "database: up")
    assert machine.main_pid() != pid


def test_exposure_of_the_running_service_is_low(machine: Machine) -> None:
    """systemd's own review of the loaded unit stays within 1.2 of 10."""
    done = machine.system.run("systemd-analyze", "security", "--threshold=12", "--no-pager", DAEMON, check=False)
    assert done.returncode == 0, done.stdout


def test_rotated_password_is_taken_over_by_a_reload(machine: Machine) -> None:
    """With the README's lasting account, a new password needs a reload and no restart."""
    system = machine.system
    machine.follow("Change the password")
    try:
        system.wait_shown(DAEMON, "StatusText", "database: up")
        pid, since = machine.main_pid(), system.cursor()
        uid = system.run("id", "-u", "curfewd").stdout.strip()
        assert int(uid) < 1000, "still a dynamic user"
        assert f"Uid:\t{uid}\t" in system.path(f"/proc/{pid}/status").read_text()
        machine.rotate_password()
        system.write(CREDENTIAL, f"{machine.url}\n")
        system.run("systemctl", "reload", DAEMON)
        system.wait(lambda: "reloaded" in [line["event"] for line in system.events(DAEMON, since)], True)
        machine.wait_marked(machine.overdue_run())
        system.wait_shown(DAEMON, "StatusText", "database: up")
        states = [line["new"] for line in system.events(DAEMON, since) if line["event"] == "database_state_changed"]
        assert (machine.main_pid(), states) == (pid, [])
    finally:
        system.run("rm", "-r", f"/etc/systemd/system/{DAEMON}.d", "/etc/sysusers.d/curfewd.conf")
        system.run("systemctl", "stop", DAEMON)
        system.run("userdel", "curfewd")


def test_template_runs_instances_side_by_side(machine: Machine) -> None:
    """Two instances of the template, set up as the README says, enforce with names and ports of their own."""
    system = machine.system
    machine.follow("Several instances")
    machine.follow("Several instances", blue="green", **{"9848": "9849"})
    ready = machine.get("/readyz")
    assert "ok" in ready
    for name, port in (("blue", 9848), ("green", 9849)):
        unit = f"curfewd@{name}.service"
        system.wait_shown(unit, "StatusText", "database: up")
        system.wait(functools.partial(machine.get, "/readyz", port), ready)
    assert {"curfewd curfewdtest:blue", "curfewd curfewdtest:green"} <= machine.instances()
    system.run("systemctl", "stop", DAEMON, "curfewd@blue.service")
    machine.wait_marked(machine.overdue_run())
    system.run("systemctl", "disable", "--now", "curfewd@blue.service", "curfewd@green.service")


def test_timer_marks_without_a_daemon(machine: Machine) -> None:
    """With the daemon stopped, the timer's `curfewd once` marks an overdue run and ends well."""
    system = machine.system
    system.run("systemctl", "stop", DAEMON)
    machine.follow("A timer instead of a daemon")
    timer = "curfewd-once.timer"
    assert (system.show(timer, "ActiveState"), system.show(timer, "UnitFileState")) == ("active", "enabled")
    assert "OnCalendar=*-*-* *:*:00" in system.show(timer, "TimersCalendar")
    machine.drop_in(timer, "[Timer]\nOnCalendar=*:*:*\nAccuracySec=100ms\n")
    system.run("systemctl", "restart", timer)
    machine.wait_marked(machine.overdue_run())
    system.run("systemctl", "disable", "--now", timer)
    system.wait_shown("curfewd-once.service", "ActiveState", "inactive")
    said = [str(entry["MESSAGE"]) for entry in system.journal("curfewd-once.service")]
    assert any("marked 1 runs" in text for text in said), said
    assert not [text for text in said if "Failed" in text]
