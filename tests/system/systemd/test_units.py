"""The shipped units as text and in systemd's own reviews: hardened, without mistakes, in step with the code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import SecretStr

from curfew_daemon.config import RELOADABLE, VARIABLES, Settings
from curfew_daemon.lifecycle import Exit
from curfew_daemon.wait_bounds import HEALTHZ_STALENESS, MARGIN
from tests.system.systemd.machine import Machine
from tests.system.systemd.readme import FOLDER

pytestmark = pytest.mark.system

UNIT, TEMPLATE, ONCE, TIMER = "curfewd.service", "curfewd@.service", "curfewd-once.service", "curfewd-once.timer"
SERVICES = (UNIT, TEMPLATE, ONCE)


def directives(unit: str) -> list[tuple[str, str]]:
    """The assignments of a unit, in order."""
    lines = (FOLDER / unit).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if re.match(r"[A-Za-z]+=", line))
    return [(name, value) for name, _, value in pairs]


def seconds(unit: str, name: str) -> float:
    """A time span of a unit that is written in seconds."""
    value = dict(directives(unit))[name]
    assert re.fullmatch(r"\d+s", value), f"{name}={value}"
    return float(value.removesuffix("s"))


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_low(unit: str) -> None:
    """systemd's review of the unit file alone stays within 1.2 of 10."""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=12", "--no-pager", str(FOLDER / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_exposure_review_notices_a_missing_protection(tmp_path: Path) -> None:
    """The limit is near enough that a weaker unit fails the review."""
    weaker = tmp_path / UNIT
    weaker.write_text((FOLDER / UNIT).read_text().replace("\nProtectSystem=strict", "").replace("~@privileged", ""))
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=12", "--no-pager", str(weaker)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.fixture
def verified(machine: Machine) -> Iterator[Machine]:
    """The machine with every shipped unit in place, the programs that they name included."""
    units = [*SERVICES, TIMER]
    machine.system.run("install", "-m", "644", *units, "/etc/systemd/system/", cwd="/srv/systemd")
    yield machine
    machine.system.run("rm", *(f"/etc/systemd/system/{unit}" for unit in units[1:]))


@pytest.mark.parametrize("unit", [UNIT, "curfewd@blue.service", ONCE, TIMER])
def test_verify_finds_no_mistake(verified: Machine, unit: str) -> None:
    """systemd's check of an installed unit says nothing at all: it also ends with 0 after a warning."""
    done = verified.system.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_names_a_mistake(verified: Machine) -> None:
    """The same check names a directive that does not exist."""
    mistaken = (FOLDER / UNIT).read_text().replace("WatchdogSec", "WatchdogSeconds")
    verified.system.write("/run/curfewd-mistaken.service", mistaken)
    done = verified.system.run("systemd-analyze", "verify", "/run/curfewd-mistaken.service", check=False)
    assert "WatchdogSeconds" in done.stderr


def test_services_share_one_sandbox() -> None:
    """The template and the timer's service are as hardened as the daemon's unit, directive by directive."""

    def sandbox(unit: str) -> list[tuple[str, str]]:
        names = [name for name, _ in directives(unit)]
        first, install = names.index("LimitCORE"), ("WantedBy", "multi-user.target")
        return [pair for pair in directives(unit)[first:] if pair != install]

    assert len(sandbox(UNIT)) > 25
    assert sandbox(TEMPLATE) == sandbox(UNIT) == sandbox(ONCE)


def test_template_differs_from_the_unit_only_in_its_places_and_name() -> None:
    """An instance reads its own folder and carries its own name; everything else is the unit's."""
    placed = {(name, value.replace("/etc/curfewd/%i/", "/etc/curfewd/")) for name, value in directives(TEMPLATE)}
    others = {pair for pair in placed ^ set(directives(UNIT)) if pair[0] != "Description"}
    assert others == {("Environment", "CURFEW_INSTANCE=%l:%i")}


@pytest.mark.parametrize("unit", [UNIT, TEMPLATE])
def test_times_fit_the_settings(unit: str) -> None:
    """The default settings stay below what the unit allows, so that only a fault is ended by force."""
    settings = Settings(database_url=SecretStr("postgresql://localhost"))
    assert settings.longest_wait(hosts=3) < seconds(unit, "WatchdogSec") / 2
    assert seconds(unit, "WatchdogSec") == HEALTHZ_STALENESS
    assert settings.shutdown_grace + 2 * MARGIN < seconds(unit, "TimeoutStopSec")
    assert dict(directives(unit))["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize("unit", [UNIT, TEMPLATE])
def test_only_hopeless_exits_end_the_restarts(unit: str) -> None:
    """A start is not repeated for what only a person can mend; a port that is taken may become free."""
    hopeless = {Exit.USAGE, Exit.SETTINGS, Exit.UPSTREAM_ENGINE, Exit.MISSING_EXTRA}
    assert set(map(int, dict(directives(unit))["RestartPreventExitStatus"].split())) == hopeless


@pytest.mark.parametrize("unit", SERVICES)
def test_environment_names_settings_only(unit: str) -> None:
    """What the units set exists: settings, the file of settings, and Python's fault handler."""
    names = {value.partition("=")[0] for name, value in directives(unit) if name == "Environment"}
    assert names <= {*VARIABLES.values(), "CURFEW_ENV_FILE", "PYTHONFAULTHANDLER"}
    assert "CURFEW_DATABASE_URL_FILE" in names


def test_example_settings_are_the_defaults_and_sorted_by_when_they_hold() -> None:
    """Every line of curfewd.env is a setting with its default, below the right heading, and commented out."""
    text = (FOLDER / "curfewd.env").read_text(encoding="utf-8")
    assert not dotenv_values(FOLDER / "curfewd.env"), "something is set"
    by_reload, by_restart = text.partition("# Taken over by a restart")[::2]
    fields = {variable: field for field, variable in VARIABLES.items()}
    for part, reloadable in ((by_reload, True), (by_restart, False)):
        given = re.findall(r"^#(CURFEW_\w+)=(.*)$", part, re.MULTILINE)
        assert given
        for variable, value in given:
            field = fields[variable]
            default = Settings.model_fields[field].default
            written = str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")
            assert written == value, variable
            assert (field in RELOADABLE) is reloadable, variable


def test_readme_names_every_file_and_only_these() -> None:
    """The page's table of files is the folder's content."""
    rows = re.findall(r"^\| (`.+?`) \| [a-z]", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w@.-]+\.(?:service|timer|env|conf))`", row)}
    assert named == {path.name for path in FOLDER.iterdir()} - {"README.md"}
