"""``curfewd`` and ``python -m curfew_daemon``."""

from __future__ import annotations

import os
import signal
import sys

from curfew_daemon.arguments import REFUSAL, WARNING, password_in
from curfew_daemon.lifecycle import Exit  # both of the standard library alone


def _say(line: str) -> None:
    if sys.stderr is not None:  # started with standard error closed
        sys.stderr.write(line)


def _heed_signals() -> None:
    """Until `run` has handlers of its own a stop is one of an idle daemon, and SIGHUP finds nothing to read again.

    The imports take most of a second. A process that is the first of its container would not even notice SIGTERM.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(Exit.OK))
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)


def main() -> None:
    """Run the command line; without the extra, say how to install it."""
    if sys.argv[1:2] == ["run"]:
        _heed_signals()
    misplaced, expected = password_in(sys.argv[1:])
    if misplaced:
        _say(REFUSAL)
        raise SystemExit(Exit.USAGE)
    if expected:
        _say(WARNING)
    try:
        from curfew_daemon.cli import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = (error.name or "curfewd").partition(".")[0]
        if missing.startswith("curfew") or missing in sys.stdlib_module_names:
            raise  # no extra brings that; whatever else is missing comes with ours
        _say(f"curfewd needs its daemon extra ({error.name} is missing): pip install 'curfewd[daemon]'\n")
        raise SystemExit(Exit.MISSING_EXTRA) from None
    app()


if __name__ == "__main__":
    main()
