"""What importing the daemon does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys, curfew_daemon.cli; print('rich' in sys.modules, 'alembic' in sys.modules)", "False False"),
        ("import curfew_daemon.cli, rich.console; print(rich.console.Console.__name__)", "Console"),
        ("import sys, rich; import curfew_daemon.cli; print(sys.modules['rich'] is rich)", "True"),
    ],
)
def test_rich_and_alembic_are_imported_by_whom_they_serve(program: str, said: str) -> None:
    """The daemon starts without them, whoever wants rich afterwards has it, and who had it before keeps it."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{said}\n"
