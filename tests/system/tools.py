"""What the system tests fetch for themselves, into `.system-tools/` of the checkout."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".system-tools"
DEBIAN = FOLDER / "debian"


class ToolMissingError(Exception):
    """A tool cannot be had; the message says what to do."""


def debian(package: str) -> Path:
    """Where `tests/install-debian.sh` has unpacked a package that need not be installed."""
    folder = DEBIAN / package
    if not folder.exists():
        raise ToolMissingError(f"{folder} is missing: run tests/install-debian.sh")
    return folder


def npm(package: str, version: str, sha512: str) -> Path:
    """The unpacked tarball of an npm package, fetched on first use and checked against its SHA-512."""
    folder = prepared() / f"{package.rpartition('/')[2]}-{version}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        tarball = next(folder.glob("*.tgz"))
        if base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() != sha512:
            raise ToolMissingError(f"{tarball} does not have the pinned SHA-512")
        subprocess.run(["tar", "-xzf", tarball], cwd=folder, check=True)
        tarball.unlink()
        (folder / "ready").touch()
    return folder / "package"


def environment(requirements: Path) -> Path:
    """The `bin` of a virtual environment with what a requirements file pins, made anew when the file changes."""
    pins = requirements.read_bytes()
    folder = prepared() / requirements.stem
    ready = folder / "ready"
    if not ready.exists() or ready.read_bytes() != pins:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = ["install", "-qq", "--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
        subprocess.run([folder / "bin" / "pip", *install, "-r", requirements], check=True)
        ready.write_bytes(pins)
    return folder / "bin"


def prepared() -> Path:
    """The folder itself, which git does not see."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n", encoding="utf-8")
    return FOLDER
