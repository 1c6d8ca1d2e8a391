"""kubernetes-validate: the API's own schemas, without a cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Validator:
    """The program in the `bin` of its environment."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs

    def newest(self, count: int) -> list[str]:
        """The newest minor versions of Kubernetes that it knows, as `1.37`, oldest first."""
        ask = (
            "from kubernetes_validate import utils as u; print(*{u.major_minor(each): 0 for each in u.all_versions()})"
        )
        done = subprocess.run([self._programs / "python", "-c", ask], check=True, capture_output=True, text=True)
        return done.stdout.split()[-count:]

    def check(self, path: Path, version: str) -> tuple[int, str]:
        """Its exit code and what it said on a file for a version; fields that the API does not know are errors."""
        command: list[str | Path] = [self._programs / "kubernetes-validate", "--strict", "-k", version, path]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr
