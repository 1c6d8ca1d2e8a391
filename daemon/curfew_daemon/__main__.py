"""``curfewd`` and ``python -m curfew_daemon``."""

from __future__ import annotations

import sys

from curfew_daemon.arguments import REFUSAL, WARNING, password_in
from curfew_daemon.lifecycle import Exit  # both of the standard library alone


def _say(line: str) -> None:
    if sys.stderr is not None:  # started with standard error closed
        sys.stderr.write(line)


def main() -> None:
    """Run the command line; without the extra, say how to install it."""
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
