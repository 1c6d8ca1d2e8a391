"""The sources in deploy/kubernetes, read without kustomize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))


def load(path: str | Path) -> Any:
    """The one document of a file, named from deploy/kubernetes."""
    return yaml.safe_load((FOLDER / path).read_text(encoding="utf-8"))


def objects() -> dict[str, dict[str, Any]]:
    """Every object that a base or an overlay creates, by its file's name from deploy/kubernetes."""
    found = {}
    for path in KUSTOMIZATIONS:
        for name in load(path).get("resources", []):
            file = path.parent / name
            found[file.relative_to(FOLDER).as_posix()] = load(file)
    return found


def pod_specs() -> dict[str, dict[str, Any]]:
    """The pod's spec of every object that makes pods."""
    return {
        name: each["spec"]["template"]["spec"] for name, each in objects().items() if "template" in each.get("spec", {})
    }


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of a container's environment by name."""
    return {each["name"]: each for each in container.get("env", [])}
