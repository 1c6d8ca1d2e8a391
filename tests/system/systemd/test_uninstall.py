"""The README's "Uninstall", after everything that the page can install."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.systemd.machine import DAEMON, booted

pytestmark = pytest.mark.system

PLACES = ("/etc", "/opt", "/usr/local", "/var/lib")


def test_uninstall_leaves_nothing(wheels: Path) -> None:
    """After the README's commands no file, unit, process or account of curfewd is left, and the tables stay."""
    with booted(wheels) as machine:
        system = machine.system

        def files() -> set[str]:
            return set(system.run("find", *PLACES, "-not", "-path", "/opt/python/*").stdout.splitlines())

        for step in ("Install", "Change the password", "Several instances", "A timer instead of a daemon"):
            machine.follow(step)
        assert {f"/etc/systemd/system/{DAEMON}.d/rotation.conf", "/opt/curfewd/bin/curfewd"} <= files()
        assert "curfewd:" in system.path("/etc/passwd").read_text()
        machine.follow("Uninstall")
        assert {path for path in files() if "curfewd" in path} == set()
        assert system.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "curfewd*").stdout == ""
        commands = [path.read_text() for path in system.path("/proc").glob("[0-9]*/cmdline")]
        assert not [command for command in commands if "/opt/curfewd" in command]
        assert "curfewd:" not in system.path("/etc/passwd").read_text()
        machine.overdue_run()
