"""No single wait of the sweep may be so long that somebody takes the daemon for dead meanwhile."""

import os
from collections.abc import Mapping

HEALTHZ_STALENESS = 30.0
"""Seconds without a beat of the sweep after which `/healthz` says that the loop is dead."""

MARGIN = 1.0
"""Seconds that the client allows beyond a timeout which the server or libpq should have kept."""


def watchdog_period(environ: Mapping[str, str]) -> float | None:
    """The period of systemd's watchdog in seconds, or None where it does not watch this process.

    Raises `ValueError` for a WATCHDOG_USEC that systemd cannot have written. As in sd_watchdog_enabled(3), a
    WATCHDOG_PID of another process means that the variables were inherited by mistake.
    """
    own = str(os.getpid())
    text = environ.get("WATCHDOG_USEC")
    if not text or environ.get("WATCHDOG_PID", own) != own:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError("WATCHDOG_USEC: not a whole number of microseconds above 0")
    return int(text) / 1_000_000


def wait_problems(waits: Mapping[str, float], attempts: int, environ: Mapping[str, str]) -> list[str]:
    """One sentence for each of `waits` (seconds by variable) that is not below half of what watches the loop.

    `attempts` is the number of addresses that the wait for a connect was reckoned with.
    """
    limits = {f"the {HEALTHZ_STALENESS:g} s after which /healthz gives up": HEALTHZ_STALENESS}
    try:
        if (period := watchdog_period(environ)) is not None:
            limits[f"WATCHDOG_USEC ({period:g} s)"] = period
    except ValueError as error:
        return [str(error)]
    return [
        f"{variable}: one wait may take {seconds:g} s, but must stay below half of {limit}"
        + (f"; a connect may try {attempts} addresses" if variable == "CURFEW_CONNECT_TIMEOUT" else "")
        for limit, longest in limits.items()
        for variable, seconds in waits.items()
        if seconds >= longest / 2
    ]
