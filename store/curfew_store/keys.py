"""Checks on ids, keys and reasons, and the normal form of idempotency keys.

A key that a .NET service registered must be found by a Python one, so keys are normalised exactly as
FlowOrchestrator does it: ``Trim().ToLowerInvariant()``. That differs from ``str.strip().lower()`` in
three ways: .NET does not trim U+001C to U+001F; it maps code points one to one, so U+0130 stays and a
final sigma becomes U+03C3; and it knows nothing of SQL's locale. The mapping is frozen at Unicode 14 (the
tables of Python 3.11), so that two services on different Pythons agree on every key.
"""

from __future__ import annotations

from uuid import UUID

from curfew_store.errors import InvalidValue, WrongType

__all__ = ["checked_key", "checked_reason", "checked_run_id", "checked_text", "checked_uuid", "normalised"]

MAX_KEY_LENGTH = 256
MAX_REASON_LENGTH = 4000

# What .NET's char.IsWhiteSpace says yes to.
_TRIMMED = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

# Capitals whose small letter came after Unicode 14: 16.0 (Cyrillic, Latin, Garay) and 17.0 (Latin, Beria Erfe).
_LATER_CAPITALS = frozenset(
    {
        0x1C89,
        0xA7CB,
        0xA7CC,
        0xA7CE,
        0xA7D2,
        0xA7D4,
        0xA7DA,
        0xA7DC,
        *range(0x10D50, 0x10D66),
        *range(0x16EA0, 0x16EB9),
    }
)


def _lower(char: str) -> str:
    if char == "\u0130" or ord(char) in _LATER_CAPITALS:
        return char
    low = char.lower()
    return low if len(low) == 1 else char


def normalised(key: str) -> str:
    """The form in which a key is stored and looked up in ``flow_idempotency_keys``."""
    trimmed = key.strip(_TRIMMED)
    return trimmed.lower() if trimmed.isascii() else "".join(map(_lower, trimmed))


def checked_uuid(parameter: str, value: UUID) -> UUID:
    """*value* if it is a UUID, else `WrongType`."""
    if not isinstance(value, UUID):
        raise WrongType(parameter, "a uuid.UUID", value)
    return value


def checked_run_id(value: UUID) -> UUID:
    """*value* if it can be the id of a run. The nil UUID cannot: it is what a forgotten id looks like.

    Raises `WrongType` for what is no UUID, `InvalidValue` for the nil one.
    """
    if not checked_uuid("run_id", value).int:
        raise InvalidValue("run_id", "is the nil UUID")
    return value


def checked_text(parameter: str, value: str, max_length: int) -> str:
    """*value* if PostgreSQL can store it as text of at most *max_length* characters.

    Raises `WrongType` for what is no text, `InvalidValue` for any other; both name *parameter*.
    """
    if not isinstance(value, str):
        raise WrongType(parameter, "a str", value)
    if len(value) > max_length:
        raise InvalidValue(parameter, f"is {len(value)} characters long; at most {max_length} are allowed")
    if "\x00" in value:
        raise InvalidValue(parameter, "holds a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(parameter, "holds a lone surrogate, which is no text") from None
    return value


def checked_key(value: str | None) -> str | None:
    """An idempotency key as it was given, or ``None``; a blank one is an error, since it would join strangers.

    Raises `InvalidValue` for that, and what `checked_text` raises.
    """
    if value is None:
        return None
    if not normalised(checked_text("idempotency_key", value, MAX_KEY_LENGTH)):
        raise InvalidValue("idempotency_key", "is blank; pass None for a run without a key")
    return value


def required_key(value: str) -> str:
    """Like `checked_key`, where ``None`` makes no sense and is a `WrongType`."""
    if value is None:
        raise WrongType("idempotency_key", "a str", value)
    return checked_key(value) or ""


def checked_trigger_key(value: str) -> str:
    """A trigger key; blank is allowed, as upstream's default is blank. Raises what `checked_text` raises."""
    return checked_text("trigger_key", value, MAX_KEY_LENGTH)


def checked_reason(value: str | None) -> str | None:
    """A reason of at most 4,000 characters, or ``None``. Raises what `checked_text` raises."""
    return None if value is None else checked_text("reason", value, MAX_REASON_LENGTH)
