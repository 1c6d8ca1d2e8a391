"""Builds the image's stages as plain folders and runs commands in them as Kubernetes would.

No container engine is needed: each stage starts as a copy of a minimal Debian with Python, in which the
Dockerfile's own COPY and RUN instructions are carried out. What differs from a built image is that base: it is
Debian's Python instead of the one that the Dockerfile names.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.system.image.dockerfile import PATH, ROOT, Stage, expand, stages

SUITE = "bookworm"


def _mirror() -> str:
    """Where this machine's own apt gets the suite from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"], capture_output=True, text=True, check=True
    )
    return next(uri for codename, uri in map(str.split, listed.stdout.splitlines()) if codename == SUITE)


# As `securityContext` has it: no capability, none to be gained, and nothing but /proc and /dev besides the root.
_ENTER = """
set -eu
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
if [ -n "$1" ]; then mount --bind "$1" "$0/mnt"; fi
mount -o remount,bind,$2 "$0"
shift 2
exec chroot "$0" "$@"
"""
_RESTRICTED = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups")


def make_base(folder: Path, debootstrap: Path) -> None:
    """Make *folder* a minimal Debian with Python and its venv module; takes a minute and a network. For root."""
    script = debootstrap / "usr" / "sbin" / "debootstrap"
    packages = "python3,python3-venv,ca-certificates"
    subprocess.run(
        [script, "--variant=minbase", f"--include={packages}", SUITE, folder, _mirror()],
        env=os.environ | {"DEBOOTSTRAP_DIR": str(debootstrap / "usr" / "share" / "debootstrap")},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (folder / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")


class Container:
    """The file system of one stage, and what its instructions said about how to run in it."""

    def __init__(self, base: Path, folder: Path, stage: Stage) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", base, folder], check=True)
        self.root = folder
        self.stage = stage
        self.environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self._workdir = "/"

    def build(self, others: dict[str, Container]) -> None:
        """Carry out the stage's instructions; *others* are the stages that it may copy from."""
        for each in self.stage.instructions:
            match each.name:
                case "ENV":
                    self.environ |= each.pairs
                case "WORKDIR":
                    self._workdir = each.text
                    self._inside(each.text).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(each.words, others)
                case "RUN":
                    self._run(expand(each.text, {}))
                case "ARG" | "LABEL" | "USER" | "EXPOSE" | "STOPSIGNAL" | "ENTRYPOINT" | "CMD":
                    pass
                case other:
                    raise NotImplementedError(other)

    def _inside(self, path: str) -> Path:
        return self.root / os.path.normpath(f"{self._workdir}/{path}" if path[0] != "/" else path).lstrip("/")

    def _copy(self, words: list[str], others: dict[str, Container]) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source = others[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        for name in names:
            found, into = source / name.lstrip("/"), self._inside(target)
            if target.endswith("/"):
                into = into / found.name
            into.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                # A build context does not hold __pycache__; what comes from a stage comes whole.
                ignore = shutil.ignore_patterns("__pycache__") if source == ROOT else None
                shutil.copytree(found, into, symlinks=True, ignore=ignore, dirs_exist_ok=True)
            else:
                shutil.copy2(found, into)

    def _run(self, command: str) -> None:
        """As root and with this machine's network, like a RUN of a build."""
        for path in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf"):
            if Path("/", path).exists():
                shutil.copy2(Path("/", path), self.root / path)
        given = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "http", "https_", "no_"))
        }
        environ = [f"{name}={value}" for name, value in (given | self.environ).items()]
        inside = f"cd {shlex.quote(self._workdir)} && {command}"
        enter: list[str | Path] = [*_namespaces(), "sh", "-c", _ENTER, self.root, "", "rw"]
        done = subprocess.run(
            [*enter, "env", "-i", *environ, "sh", "-c", inside],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def command(
        self, *arguments: str, bind: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> list[str | Path]:
        """How to start the image with these arguments: its user, its entry point, process 1, a read-only root.

        *bind* is a folder that is found at /mnt.
        """
        user, _, group = self.stage.last("USER")[0].partition(":")
        given = [f"{name}={value}" for name, value in (self.environ | dict(environ or {})).items()]
        restricted = ["setpriv", f"--reuid={user}", f"--regid={group}", *_RESTRICTED]
        program = [*self.stage.last("ENTRYPOINT"), *(arguments or self.stage.last("CMD"))]
        enter = [*_namespaces(), "sh", "-c", _ENTER, self.root, bind or "", "ro"]
        return [*enter, *restricted, "env", "-i", *given, *program]

    def run(
        self, *arguments: str, bind: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Start the image and wait for its end."""
        command = self.command(*arguments, bind=bind, environ=environ)
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of every file, for comparing."""
        found = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        facts = ((path, path.lstat()) for path in found)
        return {str(path): (fact.st_size, fact.st_mtime_ns) for path, fact in facts}


def _namespaces() -> list[str]:
    # Whatever is left in the namespace of processes ends with the first of them.
    return ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]


@contextlib.contextmanager
def built(base: Path, folder: Path) -> Iterator[Container]:
    """The image, built in *folder* by the Dockerfile's own instructions; its files are gone afterwards."""
    containers: dict[str, Container] = {}
    try:
        for number, stage in enumerate(stages(PATH.read_text(encoding="utf-8"))):
            container = Container(base, folder / f"stage{number}", stage)
            container.build(containers)
            containers[stage.name] = container
        yield container
    finally:
        for each in containers.values():
            shutil.rmtree(each.root)
