"""A TCP proxy that can fail as networks do: fall silent, refuse, or dawdle."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal, Self

Mode = Literal["forward", "black hole", "refuse", "delay"]


class Proxy:
    """Forwards connections to a port of this machine; a context manager.

    *mode* may be changed at any time and holds for open connections too: "forward"; "black hole" accepts and
    swallows everything; "refuse" resets new connections; "delay" holds each chunk back for `delay` seconds.
    With `answers` set, a connection falls silent after so many chunks of the server have been handed on; without
    `takes_options`, a connection that asks for options at its start is refused as PgBouncer 1.18 does.
    """

    def __init__(self, port: int, mode: Mode = "forward") -> None:
        self.mode: Mode = mode
        self.delay = 0.2
        self.answers: int | None = None
        self.takes_options = True
        self.accepted = 0
        self._target = port
        self._sockets: list[socket.socket] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept
        self._acceptor.join(10)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection that is open."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.mode == "refuse":
                # A reset, not an orderly end.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            if not self.takes_options and b"\0options\0" in client.recv(4096, socket.MSG_PEEK):
                body = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        handed_on = 0
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                if self.mode == "delay":
                    self._closing.wait(self.delay)
                silent = answers and self.answers is not None and handed_on >= self.answers
                if self.mode == "black hole" or silent:
                    continue
                handed_on += 1
                sink.sendall(data)
            if self.mode != "black hole":
                sink.shutdown(socket.SHUT_WR)


class Stopwatch:
    """How long a block took; a context manager."""

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self.seconds = 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
