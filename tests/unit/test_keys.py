"""The normal form of keys, on its edge code points and on all others at once, and the checks on ids and texts."""

from __future__ import annotations

import hashlib
import sys
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curfew_store import InvalidValue, WrongType, keys

# Capitals that got their small letter in Unicode 15 to 17. Where Python already knows them they must stay as
# they are, since it did not on the oldest supported Python.
CAPITALS_SINCE_UNICODE_15 = {
    *(0x1C89, 0xA7CB, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA, 0xA7DC),
    *range(0x10D50, 0x10D66),
    *range(0x16EA0, 0x16EB9),
}
SURROGATES = range(0xD800, 0xE000)

# What .NET's Char.IsWhiteSpace is true for, by the table in its documentation.
WHITE_SPACE = {
    *range(0x09, 0x0E),
    *(0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000),
    *range(0x2000, 0x200B),
}


@pytest.mark.contract("K-1", "K-2", "K-3")
@pytest.mark.parametrize(
    ("given_key", "normal"),
    [
        ("Key-A", "key-a"),
        ("  key\t\r\n", "key"),
        ("a  B", "a  b"),
        ("\x1ckey\x1d \x1e\x1f", "\x1ckey\x1d \x1e\x1f"),
        ("\x85key\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000", "key"),
        ("\ufeff\u200bKey\u200b\u180e", "\ufeff\u200bkey\u200b\u180e"),
        ("\u0130", "\u0130"),
        ("\u0130I\u0131i", "\u0130i\u0131i"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),
        ("\u03a3", "\u03c3"),
        ("\u03c2", "\u03c2"),
        ("\u1e9e\u00df", "\u00df\u00df"),
        ("\u01c5\u01c4", "\u01c6\u01c6"),
        ("\u2126\u212a\u212b", "\u03c9k\u00e5"),
        ("\u00c9", "\u00e9"),
        ("E\u0301", "e\u0301"),
        ("\U00010400", "\U00010428"),
        ("\u1f88", "\u1f80"),
        ("\ufb01", "\ufb01"),
        ("", ""),
        ("\u3000 ", ""),
    ],
    ids=ascii,
)
def test_edge_cases_of_the_normal_form(given_key: str, normal: str) -> None:
    """Each rule in which .NET differs from str.strip().lower(), and each neighbour in which it does not."""
    assert keys.normalised(given_key) == normal


@pytest.mark.contract("K-4")
def test_later_capitals_stay_as_they_are() -> None:
    """A newer Python that knows more pairs of letters must not change a key that an older one has written."""
    assert {c for c in CAPITALS_SINCE_UNICODE_15 if keys.normalised(chr(c)) != chr(c)} == set()
    assert sorted(map(hex, CAPITALS_SINCE_UNICODE_15 ^ keys._LATER_CAPITALS)) == []


@pytest.mark.contract("K-6", "K-7", "K-8")
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "blank"),
        ("\u3000\t ", "blank"),
        ("k" * 257, "257 characters"),
        ("k" + " " * 256, "257 characters"),
        ("a\0", "NUL"),
        ("\ud800", "surrogate"),
        ("\udc00\ud800", "surrogate"),
    ],
    ids=ascii,
)
def test_keys_that_are_refused(key: str, says: str) -> None:
    """The error names the parameter and what is wrong with its value."""
    with pytest.raises(InvalidValue, match=says) as raised:
        keys.checked_key(key)
    assert raised.value.parameter == "idempotency_key"
    with pytest.raises(InvalidValue):
        keys.required_key(key)


@pytest.mark.contract("K-5", "K-6", "K-7")
def test_keys_that_are_accepted() -> None:
    """A good key comes back as it was given; None is no key where that makes sense; a trigger key may be blank."""
    for key in ("k", " K ", "k" * 256, "\u4e2d" * 256, "\U0001f600" * 256, "\x1c", "\ufeff"):
        assert keys.checked_key(key) == keys.required_key(key) == key
    assert keys.checked_key(None) is None
    with pytest.raises(WrongType):
        keys.required_key(None)  # type: ignore[arg-type]
    assert keys.checked_trigger_key("") == ""
    assert keys.checked_trigger_key(" \t") == " \t"


@pytest.mark.contract("Z-2")
def test_ids_that_are_refused() -> None:
    """A run id is a UUID and not the nil one; a flow id may be nil, as upstream's default is."""
    run_id = uuid4()
    assert keys.checked_run_id(run_id) is run_id
    assert keys.checked_uuid("flow_id", UUID(int=0)).int == 0
    with pytest.raises(InvalidValue, match="nil"):
        keys.checked_run_id(UUID(int=0))
    with pytest.raises(WrongType, match="got str") as raised:
        keys.checked_run_id(str(run_id))  # type: ignore[arg-type]
    assert (raised.value.parameter, raised.value.got) == ("run_id", str)


@pytest.mark.contract("R-1", "R-2")
def test_reasons() -> None:
    """Up to 4,000 characters of any text, or none."""
    for reason in (None, "", "r" * 4000, "\U0001f600" * 4000, "\x1b[31m\n\x07"):
        assert keys.checked_reason(reason) == reason
    for refused in ("r" * 4001, "a\0", "\udfff"):
        with pytest.raises(InvalidValue):
            keys.checked_reason(refused)


# Those that take longer


@pytest.mark.contract("K-1", "K-2", "K-7")
@given(st.text())
def test_properties_of_the_normal_form(key: str) -> None:
    """Normalising twice changes nothing more, and no key grows by it, so a key that fits fits in its normal form."""
    normal = keys.normalised(key)
    assert keys.normalised(normal) == normal
    assert len(normal) <= len(key)


@pytest.mark.contract("K-3")
def test_what_is_trimmed() -> None:
    """Exactly .NET's white space is trimmed, at both ends and not in the middle."""
    trimmed = {point for point in range(sys.maxunicode + 1) if keys.normalised(f"{chr(point)}a{chr(point)}") == "a"}
    assert trimmed == WHITE_SPACE
    assert keys.normalised("a\u2003b") == "a\u2003b"


@pytest.mark.contract("K-2", "K-4")
def test_the_whole_mapping_is_pinned() -> None:
    """The small letters of all code points are the same on every Python: this digest was made on Python 3.11."""
    mapping = "".join(keys.normalised(f"|{chr(point)}|")[1:-1] for point in range(sys.maxunicode + 1))
    assert len(mapping) == sys.maxunicode + 1
    digest = hashlib.sha256(mapping.encode("utf-32-le", "surrogatepass")).hexdigest()
    assert digest == "fcee80e991ab4ff29a4446286aa4c691024ebe2b33b0a9029c4dd198ae26361c"
