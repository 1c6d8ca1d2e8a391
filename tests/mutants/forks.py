"""Runs of pytest, each in a fork of one process that has imported everything but what is mutated.

A mutant costs little more than the tests that it takes: most of what a session does before its first test is importing
other people's packages. Requests and answers are a line of JSON each, on standard input and output; at the end of the
input the process ends. No fork outlives its answer, nor does what it started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

OWN: Final = ("curfew_store", "curfew_daemon", "tests", "__main__", "conftest")
TIMED_OUT: Final = -1
"""The exit code of a fork that was ended."""

# No rewriting of assertions, since nobody reads what a failure would say. A test that hangs has failed after a minute.
_PYTEST: Final = (
    "-x",
    "-q",
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "--assert=plain",
    "--no-header",
    "--tb=line",
    "--timeout=60",
)


@dataclass(frozen=True)
class Done:
    """How a fork ended, what it wrote, and how long it took."""

    code: int
    output: str
    seconds: float


class Forks:
    """The process that forks, from outside."""

    def __init__(self, root: Path, env: dict[str, str], warm: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *warm],
            cwd=root,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, tests: Sequence[str], patience: float) -> Done:
        """Run *tests* until one fails, for *patience* seconds at most."""
        return self._ask({"pytest": list(tests), "patience": patience})

    def imports(self, module: str, patience: float) -> bool:
        """Whether *module* can be imported at all."""
        return self._ask({"import": module, "patience": patience}).code == 0

    def _ask(self, request: dict[str, object]) -> Done:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return Done(**json.loads(stdout.readline()))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def _forked(work: Callable[[], int], output: IO[bytes], patience: float) -> Done:
    begun = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()
            for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output.fileno()), (2, output.fileno())):
                os.dup2(target, number)
            random.seed()
            code = work()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    ended = os.pidfd_open(child)
    in_time = bool(select.select([ended], [], [], patience)[0])
    os.close(ended)
    for _ in range(1 if in_time else 2):
        # The child may be gone and have left others behind, or not have come as far as its own session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not in_time:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    output.seek(0)
    text = output.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status) if in_time else TIMED_OUT
    return Done(code, text, time.monotonic() - begun)


def _pytest(arguments: Sequence[str]) -> int:
    import pytest

    return int(pytest.main([*_PYTEST, *arguments]))


def _imported(module: str) -> int:
    importlib.import_module(module)
    return 0


def _warm(tests: Sequence[str]) -> None:
    """Import what collecting *tests* imports, without what is mutated."""

    def collect() -> int:
        code = _pytest(["--collect-only", *tests])
        print("\n".join(["", "imported:", *sys.modules]))
        return code

    with tempfile.TemporaryFile() as output:
        found = _forked(collect, output, 600).output
    for name in found.partition("imported:\n")[2].split():
        if name.partition(".")[0] not in OWN:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def main() -> None:
    """Answer requests until there are no more."""
    _warm(sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output:
            if "import" in request:
                done = _forked(lambda: _imported(request["import"]), output, request["patience"])  # noqa: B023
            else:
                done = _forked(lambda: _pytest(request["pytest"]), output, request["patience"])  # noqa: B023
        print(json.dumps(done.__dict__), flush=True)


if __name__ == "__main__":
    main()
