"""``curfewd`` and ``python -m curfew_daemon``."""

from __future__ import annotations

import sys

from curfew_daemon.lifecycle import Exit  # of the standard library alone


def main() -> None:
    """Run the command line; without the extra, say how to install it."""
    try:
        from curfew_daemon.cli import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = (error.name or "curfewd").partition(".")[0]
        if missing.startswith("curfew") or missing in sys.stdlib_module_names:
            raise  # no extra brings that; whatever else is missing comes with ours
        sys.stderr.write(f"curfewd needs its daemon extra ({error.name} is missing): pip install 'curfewd[daemon]'\n")
        raise SystemExit(Exit.MISSING_EXTRA) from None
    app()


if __name__ == "__main__":
    main()
