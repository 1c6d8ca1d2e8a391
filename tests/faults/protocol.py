"""As much of PostgreSQL's wire protocol 3.0 as a proxy needs to know where in a conversation it is.

Sources: "Frontend/Backend Protocol", sections "Message Flow" and "Message Formats".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Message", "Request", "Splitter", "Startup", "rows_affected"]

_LENGTH: Final = 4
_ENCRYPTION: Final = {80877103, 80877104}  # SSLRequest, GSSENCRequest
_CANCEL: Final = 80877102


@dataclass(frozen=True)
class Message:
    """One message: its type and all of its bytes."""

    kind: bytes
    raw: bytes

    @property
    def body(self) -> bytes:
        """What follows type and length."""
        return self.raw[1 + _LENGTH :]


@dataclass(frozen=True)
class Startup:
    """The packet that a client begins with; *wants_encryption* and *cancels* say that it is another kind of request."""

    raw: bytes
    wants_encryption: bool
    cancels: bool
    application_name: str

    @classmethod
    def read(cls, raw: bytes) -> Startup:
        """Understand a whole packet, its length included."""
        code = int.from_bytes(raw[4:8], "big")
        words = raw[8:].split(b"\0")
        named = dict(zip(words[::2], words[1::2], strict=False))
        name = named.get(b"application_name", b"").decode(errors="replace")
        return cls(raw, code in _ENCRYPTION, code == _CANCEL, name)


@dataclass(frozen=True)
class Request:
    """What a client sends before it waits: one simple query, or messages that end with Sync."""

    messages: tuple[Message, ...]

    @property
    def sql(self) -> bytes:
        """The texts of its queries, one after the other."""
        return b"\n".join(self._texts())

    def _texts(self) -> Iterator[bytes]:
        for message in self.messages:
            if message.kind == b"Q":
                yield message.body.rstrip(b"\0")
            elif message.kind == b"P":  # the statement's name comes first
                yield message.body.split(b"\0", 2)[1]

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        return b"".join(message.raw for message in self.messages)

    @property
    def unsynced(self) -> bytes:
        """Its bytes without the Sync, at which the server commits; none of a simple query, which needs no Sync."""
        return b"".join(message.raw for message in self.messages if message.kind not in {b"S", b"Q"})


class Splitter:
    """Cuts a stream of bytes into messages; keeps what is not whole yet."""

    def __init__(self) -> None:
        self._kept = b""
        self._request: list[Message] = []

    def startup(self, data: bytes) -> Startup | None:
        """The first packet once it is whole; asked until it answers, and again after a refused encryption."""
        self._kept += data
        length = int.from_bytes(self._kept[:_LENGTH], "big")
        if len(self._kept) < max(length, 2 * _LENGTH):
            return None
        raw, self._kept = self._kept[:length], self._kept[length:]
        return Startup.read(raw)

    def messages(self, data: bytes) -> list[Message]:
        """The messages that are whole now."""
        self._kept += data
        found = []
        while len(self._kept) > _LENGTH:
            end = 1 + int.from_bytes(self._kept[1 : 1 + _LENGTH], "big")
            if len(self._kept) < end:
                break
            found.append(Message(self._kept[:1], self._kept[:end]))
            self._kept = self._kept[end:]
        return found

    def requests(self, data: bytes) -> list[Request]:
        """The client's requests that are whole now; what belongs to none (a password, a goodbye) is one of its own."""
        found = []
        for message in self.messages(data):
            self._request.append(message)
            if message.kind not in {b"P", b"B", b"D", b"E", b"C", b"H"}:
                found.append(Request(tuple(self._request)))
                self._request = []
        return found


def rows_affected(complete: Message) -> int:
    """The number in a CommandComplete such as ``UPDATE 3``; 0 where it has none."""
    last = complete.body.rstrip(b"\0").rsplit(b" ", 1)[-1]
    return int(last) if last.isdigit() else 0
