"""Text that is safe to put into a log line, whoever wrote it.

Control characters, line separators, terminal escapes and the characters that turn the direction of text are
written as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`, and a field is cut at 2 KB. Passwords in URLs and connection strings
are masked as a last defence; the first is not to log them.
"""

import json
import re
from datetime import datetime

FIELD_BYTES = 2048
_CUT = "… (cut)"
_KEY_LENGTH = 64

# C0, DEL, C1; invisible and direction-turning characters; line and paragraph separators; lone surrogates;
# byte order marks; tag characters.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_UNSAFE_IN_KEY = re.compile(r"[^A-Za-z0-9_.-]")
# As far as the last @ of the word: a password may hold any of `@:/` unescaped. Too much is masked, never too little.
_URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)\S*@")
_KEYWORD_PASSWORD = re.compile(r"""(password['"]?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"""[\s="']|^$""")


def clean(text: str) -> str:
    """One line's worth of `text`: nothing unsafe in it, at most 2 KB of UTF-8, passwords masked."""
    text = _UNSAFE.sub(_escape, text[: 2 * FIELD_BYTES])
    text = _KEYWORD_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))
    encoded = text.encode()
    if len(encoded) <= FIELD_BYTES:
        return text
    return encoded[: FIELD_BYTES - len(_CUT.encode())].decode(errors="ignore") + _CUT


def clean_key(key: str) -> str:
    """The name of a field: letters, digits, `_`, `.` and `-`, at most 64 of them."""
    return _UNSAFE_IN_KEY.sub("_", key[:_KEY_LENGTH])


def clean_value(value: object) -> object:
    """The value as JSON knows it: numbers and truth values, lists of texts, and clean text for all else.

    Never raises, whatever the value's own methods do.
    """
    try:
        if value is None or (isinstance(value, int | float) and abs(value) < 2**63):
            return value  # false for not-a-number and the infinities, which JSON does not know
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, list | tuple | set | frozenset):
            items = [clean(str(item)) for item in value]
            return items if len(json.dumps(items)) <= FIELD_BYTES else clean(", ".join(items))
        return clean(str(value))
    except Exception:  # noqa: BLE001  a foreign __str__ may raise anything; the line matters more
        return f"<{clean_key(type(value).__name__)} that cannot be shown>"


def quoted(value: object) -> str:
    """A clean value for the console: quoted where it could be taken for more than one field."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if _AMBIGUOUS.search(value) else value
    return json.dumps(value, ensure_ascii=False)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
