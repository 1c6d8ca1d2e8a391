"""Credentials on the command line, where every user of the machine can read them and an error would print them.

Of the standard library alone: it is asked before anything else is imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["REFUSAL", "WARNING", "holds_password", "password_in"]

REFUSAL = (
    "curfewd: the command line holds a password, which every user of this machine can read there: take it away, and"
    " set CURFEW_DATABASE_URL_FILE or CURFEW_DATABASE_URL\n"
)
WARNING = (
    "curfewd: every user of this machine can read the password in --database-url for as long as the demo runs:"
    " give it that of a throw-away server only\n"
)

_URL_OF_THE_DEMO = "--database-url"
_NAMED = re.compile(r"password\s*=", re.IGNORECASE)  # also of a URL's parameters, and sslpassword


def holds_password(argument: str) -> bool:
    """Whether an argument looks like a database URL, or libpq's key=value form, with a password in it."""
    user_and_password = argument.partition("://")[2].rpartition("@")[0]
    return ":" in user_and_password or bool(_NAMED.search(argument))


def password_in(arguments: Sequence[str]) -> tuple[bool, bool]:
    """Whether a password stands where none belongs, and whether one stands in the option of the demo that takes it."""
    misplaced = expected = False
    before = ""
    for argument in arguments:
        if holds_password(argument):
            in_option = before == _URL_OF_THE_DEMO or argument.startswith(f"{_URL_OF_THE_DEMO}=")
            if in_option and arguments[0] == "demo":
                expected = True
            else:
                misplaced = True
        before = argument
    return misplaced, expected
