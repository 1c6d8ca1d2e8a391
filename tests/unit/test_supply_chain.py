"""What comes from a package index is pinned, hashed and accounted for."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = (ROOT, ROOT / "deploy", ROOT / "tests" / "mutants")
FILES = sorted(path for folder in FOLDERS for path in folder.glob("requirements*.txt"))
FILES.append(ROOT / "tests" / "system" / "kubernetes" / "kubernetes-validate.txt")

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+]+)( ; .+?)?((?: +--hash=sha256:[0-9a-f]{64})+)")
# An address, an option that names an index, a direct reference or a path: whatever ties the pins to one machine.
_PLACE = re.compile(r"://|\w@\w|--(extra-)?index|--trusted-host|--find-links|(^|\s)(-i|-f|-e|-r|@)\s|(^|\s)\.{0,2}/")


def logical_lines(text: str) -> list[str]:
    """The requirements of a file, one a line, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def unpinned(text: str) -> list[str]:
    """The lines that are anything else than one exact version with its hashes."""
    return [line for line in logical_lines(text) if not _PIN.fullmatch(line)]


def pinned(text: str) -> dict[str, str]:
    """Distribution to version."""
    matches = [_PIN.fullmatch(line) for line in logical_lines(text)]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_requirement_is_one_version_with_its_hashes(path: Path) -> None:
    """No range, no direct reference, no requirement that pip would take without a hash, none twice."""
    text = path.read_text(encoding="utf-8")
    assert unpinned(text) == []
    assert len(pinned(text)) == len(logical_lines(text)) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_place_is_named(path: Path) -> None:
    """Neither an index nor a host nor a path, not in a comment either: the pins hold for whatever index one uses."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if _PLACE.search(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "alembic",
        "alembic>=1",
        "alembic==1.0",
        "alembic==1.0 --hash=md5:00",
        f"alembic==1.0 --hash=sha256:{'0' * 63}",
        f"alembic==1.* --hash=sha256:{'0' * 64}",
        f"alembic @ https://packages.example/a.whl --hash=sha256:{'0' * 64}",
        "--index-url https://packages.example/simple",
        "-e .",
    ],
)
def test_what_is_not_a_pin_is_found(line: str) -> None:
    """The check of the two tests above sees each way out."""
    assert unpinned(f"# pins\n{line}\n") == [line]


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://packages.example/simple",
        "# from http://10.0.0.1/",
        "-i mirror",
        "-f ../wheels",
        "-r /etc/x",
    ],
)
def test_a_place_is_found(line: str) -> None:
    """In an option and in a comment."""
    assert _PLACE.search(line)


def test_everything_that_the_project_asks_for_is_pinned_within_its_bounds() -> None:
    """Each dependency and extra of pyproject.toml, and what builds the package."""
    pins = pinned((ROOT / "requirements-dev.txt").read_text(encoding="utf-8"))
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [*PROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)]
    for each in map(Requirement, asked + PROJECT["build-system"]["requires"]):
        if each.name != PROJECT["project"]["name"]:
            assert each.specifier.contains(pins[canonicalize_name(each.name)]), each


def asked_with_extras(asked: list[str]) -> list[str]:
    """The requirements that name an extra and hold for an installation without extras."""
    requirements = map(Requirement, asked)
    return [str(each) for each in requirements if each.extras and (not each.marker or each.marker.evaluate())]


def test_no_pinned_distribution_asks_for_another_with_an_extra() -> None:
    """pip before 23.3 looks past the pin for ``name[extra]``: a newer release then ends the installation."""
    asked: dict[str, list[str]] = {}
    for path in FILES:
        for name in pinned(path.read_text(encoding="utf-8")):
            try:
                asked[name] = asked_with_extras(requires(name) or [])
            except PackageNotFoundError:  # for another platform, or of an environment that a command makes
                continue
    assert len(asked) > 50
    assert {name: found for name, found in asked.items() if found} == {}


def test_an_extra_is_found() -> None:
    """With a marker that holds and without one, but not where the marker is for an extra of the distribution itself."""
    asked = ["coverage[toml]>=7", "a[b]; python_version > '3'", "c[d]; extra == 'e'", "plain>=1"]
    assert asked_with_extras(asked) == ["coverage[toml]>=7", 'a[b]; python_version > "3"']


def test_make_installs_nothing_without_a_hash() -> None:
    """The environment of `make` takes from an index what is pinned, and the project itself without dependencies."""
    installs = re.findall(r"\$\(PIP\) install (.*)", MAKEFILE)
    assert installs == [
        "--no-compile --require-hashes -r requirements-dev.txt",
        "--no-deps --no-build-isolation -e .",
        '--no-deps --require-hashes --target "$$tmp" -r tests/mutants/requirements.txt && \\',
    ]


def test_audit_and_bill_of_materials_leave_no_pins_out() -> None:
    """`make audit` looks at every file of pins, and fails for what it could not look up; `make sbom` at what is run."""
    names = {str(path.relative_to(ROOT)) for path in FILES}
    whole_lines = MAKEFILE.replace("\\\n", " ")
    assert set(re.findall(r"^PINNED := (.*)$", whole_lines, re.MULTILINE)[0].split()) == names
    audit = MAKEFILE.partition("\naudit:")[2].partition("\n\n")[0]
    assert "--strict" in audit
    assert "--require-hashes" in audit
    sbom = MAKEFILE.partition("\nsbom:")[2].partition("\n\n")[0]
    assert {"deploy/requirements.txt", "requirements-dev.txt"} <= set(re.findall(r"[\w/.-]+\.txt", sbom))


def test_security_page_tells_what_is_true() -> None:
    """The commands that it names exist, the version that it supports is this one, and it invents no address."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", page):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)", page):
        assert (ROOT / link).exists(), link
    minor = ".".join(PROJECT["project"]["version"].split(".")[:2])
    assert f"| {minor}.x | yes |" in page
    assert not re.search(r"\w@\w+\.\w|https?://", page)
