"""The booted system that the tests of the service stand on: apart from this machine, and gone afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.system.systemd.booted import BootedSystem
from tests.system.systemd.machine import ROOT

pytestmark = pytest.mark.system

HOLD = """
from tests.system.systemd.booted import BootedSystem
with BootedSystem({}) as system:
    print(system.pid, flush=True)
    input()
"""


def control_groups() -> set[str]:
    """The branches of control groups that booted systems have here now."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
    return {str(path) for root in mounted for path in Path(root).rglob("curfewd-test-*")}


def folders() -> set[Path]:
    """The folders of booted systems."""
    return set(Path("/tmp").glob("curfewd-boot-*"))


def test_booted_system_is_apart_from_this_machine() -> None:
    """Its files, host name, processes, kernel settings and network are its own or out of reach."""
    with BootedSystem({}) as system:
        system.write("/etc/curfewd-test-only-in-there", "")
        assert not Path("/etc/curfewd-test-only-in-there").exists()
        assert system.run("hostname").stdout == "curfewdtest\n"
        assert system.run("cat", "/proc/1/comm").stdout == "systemd\n"
        names = [line.split(":")[0].strip() for line in system.path("/proc/1/net/dev").read_text().splitlines()[2:]]
        assert names == ["lo"]
        refused = system.run("sh", "-c", "echo 1 > /proc/sys/kernel/core_uses_pid", check=False)
        assert "Read-only file system" in refused.stderr
        others = system.run("systemctl", "list-units", "--plain", "--no-legend", "--type=service,socket,timer").stdout
        assert not [line for line in others.splitlines() if not line.startswith("systemd-")], others


def test_booted_system_leaves_nothing_behind() -> None:
    """At the end its processes, its control groups and its folder have gone."""
    before = control_groups(), folders()
    with BootedSystem({}) as system:
        assert (control_groups(), folders()) != before
        first = Path(f"/proc/{system.pid}")
        assert first.exists()
    assert not first.exists()
    assert (control_groups(), folders()) == before


def test_booted_system_ends_with_a_killed_test_run() -> None:
    """When the process that booted it is killed, everything goes as well."""
    before = control_groups(), folders()
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        first = Path(f"/proc/{int(holder.stdout.readline())}")
        assert first.exists()
        holder.send_signal(signal.SIGKILL)
    give_up = time.monotonic() + PATIENCE
    while first.exists() or (control_groups(), folders()) != before:
        assert time.monotonic() < give_up, "something is left"
        time.sleep(0.05)


def test_nobody_else_can_boot_one() -> None:
    """An ordinary user is told that it takes root, in place of a skip or a hang."""
    code = HOLD.replace("\nwith", "\nimport os\nos.setuid(65534)\nwith")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "takes root" in done.stderr
