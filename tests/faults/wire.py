"""A proxy before PostgreSQL that knows the protocol, and fails at a chosen point of a chosen session's conversation.

A `Trap` waits for its point and then cuts, resets, garbles or silences that one connection; `Weather` slows or
drops the traffic of sessions while it lasts. Sessions are told by their ``application_name``. The proxy declines
encryption itself, so it sees what is said. One thread serves all connections. Longer than most modules: a
conversation's two directions share its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Literal, Self

from tests.faults.protocol import Message, Request, Splitter, Startup, rows_affected
from tests.faults.traps import Deed, Point, Trap, Weather

__all__ = ["Deed", "Mode", "Point", "Trap", "Weather", "Wire"]

Mode = Literal["forward", "black hole", "refuse", "delay"]
_CHUNK: Final = 65536
_GARBAGE: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    b"\x16\x03\x03\x00\x02\x02\x28",
    bytes(range(256)),
    b"E\xff\xff\xff\xff",
    b"Z\x00\x00\x00\x04I",
)


class Wire:
    """Forwards connections to *target*, a port of this machine, and may be told another; a context manager.

    *mode* holds for open connections too, as in `tests.integration.proxy`. It listens at *address*, by default on a
    free port.
    """

    def __init__(
        self, target: int, mode: Mode = "forward", seed: int = 1, *, address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self.target = target
        self.mode: Mode = mode
        self.delay = 0.2
        self.accepted = 0
        self.accepted_at: list[float] = []
        """The monotonic moment of each connection."""
        self.traps: list[Trap] = []
        self.weathers: list[Weather] = []
        self.rng = random.Random(seed)
        self._talks: set[_Talk] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(address, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @contextmanager
    def trap(self, trap: Trap) -> Iterator[Trap]:
        """Lay a trap for the length of a block; connections that it silenced end with the block."""
        self.traps.append(trap)
        try:
            yield trap
        finally:
            self.traps.remove(trap)
            self._tell(lambda: self._end(lambda talk: talk.trap is trap))

    @contextmanager
    def weather(self, weather: Weather) -> Iterator[None]:
        """Let it rain for the length of a block."""
        self.weathers.append(weather)
        try:
            yield
        finally:
            self.weathers.remove(weather)

    def cut(self, session: str = "") -> None:
        """Close every open connection of these sessions."""
        self._tell(lambda: self._end(lambda talk: talk.session.startswith(session)))

    def sessions(self) -> list[str]:
        """The names of the sessions that are open."""
        names: list[str] = self._tell(lambda: [talk.session for talk in self._talks])
        return names

    def _tell(self, do: Callable[[], Any]) -> Any:
        async def told() -> Any:
            return do()

        return asyncio.run_coroutine_threadsafe(told(), self._loop).result(10)

    def _end(self, those: Callable[[_Talk], bool]) -> None:
        for talk in [each for each in self._talks if those(each)]:
            talk.end()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        server.close()
        self._end(lambda _talk: True)
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.accepted_at.append(time.monotonic())
        talk = _Talk(self, reader, writer)
        self._talks.add(talk)
        try:
            # Cancelled only at the end of all, where asyncio of Python 3.11 takes it for a defect.
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await talk.run()
        finally:
            self._talks.discard(talk)
            talk.end()


class _Talk:
    """One connection: a client, the server, and what is said between them."""

    def __init__(self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._wire = wire
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._asked, self._answered = Splitter(), Splitter()
        self._armed: Trap | None = None
        self._held: list[Message] = []
        self._silent = False
        self.session = ""
        self.trap: Trap | None = None

    async def run(self) -> None:
        """Forward until one of the two has gone."""
        if self._wire.mode == "refuse":
            return self.end(reset=True)
        startup = await self._startup()
        if startup is None:
            return None
        if not startup.cancels and (caught := self._caught("connect")) and self._do(caught):
            return await self._stay()
        self._server = await asyncio.open_connection("127.0.0.1", self._wire.target)
        await self._hand_on(self._server[1], startup.raw)
        if not startup.cancels and (caught := self._caught("auth")) and self._do(caught):
            return await self._stay()
        pumps = [asyncio.ensure_future(self._pump_requests()), asyncio.ensure_future(self._pump_answers())]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        return await self._stay()

    async def _startup(self) -> Startup | None:
        data = b""
        while True:
            startup = self._asked.startup(data)
            if startup is not None and not startup.wants_encryption:
                self.session = startup.application_name
                return startup
            if startup is not None:
                self._client[1].write(b"N")
                data = b""
                continue
            data = await self._client[0].read(_CHUNK)
            if not data:
                return None

    async def _pump_requests(self) -> None:
        assert self._server is not None
        data = b""
        while True:
            for request in self._asked.requests(data):
                await self._ask(request, self._server[1])
            data = await self._client[0].read(_CHUNK)
            if not data:
                return

    async def _ask(self, request: Request, server: asyncio.StreamWriter) -> None:
        if self._silenced():
            return
        if request.messages[-1].kind in {b"Q", b"S"}:
            if (caught := self._caught("parse", request)) and self._do(caught):
                return
            if caught := self._caught("unsynced", request):
                await self._hand_on(server, request.unsynced)
                await asyncio.sleep(0.02)  # so that the server has begun
                self._do(caught)
                return
            self._armed = self._armed_by("fetch", request) or self._armed_by("commit", request)
        await self._hand_on(server, request.raw)

    async def _pump_answers(self) -> None:
        assert self._server is not None
        while data := await self._server[0].read(_CHUNK):
            if self._silenced():
                continue
            if self._armed is None:
                self._answered.messages(data)
                await self._hand_on(self._client[1], data)
                continue
            for message in self._answered.messages(data):
                await self._answer(message)

    async def _answer(self, message: Message) -> None:
        trap = self._armed
        if self._silenced():
            return
        if trap is None:
            await self._hand_on(self._client[1], message.raw)
        elif trap.at == "fetch":
            await self._hand_on(self._client[1], message.raw)
            self._armed = None
            self._spring(trap)
        else:
            self._held.append(message)
            if message.kind in {b"Z", b"E"}:  # CommandComplete alone says that it ran; ReadyForQuery, that it committed
                held, self._held, self._armed = self._held, [], None
                affected = [rows_affected(each) for each in held if each.kind == b"C"]
                if not (affected and (affected[-1] or not trap.marking) and self._spring(trap)):
                    await self._hand_on(self._client[1], b"".join(each.raw for each in held))

    def _caught(self, point: Point, request: Request | None = None) -> Trap | None:
        return next((trap for trap in self._wire.traps if trap.catches(point, self.session, request)), None)

    _armed_by = _caught

    def _spring(self, trap: Trap) -> bool:
        # Another connection may have sprung it between question and answer.
        return len(trap.victims) < trap.times and self._do(trap)

    def _do(self, trap: Trap) -> bool:
        trap.spring(self.session)
        self.trap = trap
        if trap.do == "black hole":
            self._silent = True
        else:
            if trap.do == "garbage":
                self._client[1].write(trap.garbage or self._wire.rng.choice(_GARBAGE))
            self.end(reset=trap.do == "reset", flush=trap.do == "garbage")
        return True

    def _silenced(self) -> bool:
        return self._silent or self._wire.mode == "black hole"

    async def _hand_on(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        delay = self._wire.delay if self._wire.mode == "delay" else 0.0
        for weather in [each for each in self._wire.weathers if self.session.startswith(each.session)]:
            if self._wire.rng.random() < weather.loss:
                self.end(reset=True)
                raise ConnectionResetError
            delay += max(0.0, weather.delay + self._wire.rng.uniform(-weather.jitter, weather.jitter))
            delay += 0.0 if weather.rate is None else len(data) / weather.rate
        if delay:
            await asyncio.sleep(delay)
        writer.write(data)
        await writer.drain()

    async def _stay(self) -> None:
        """A silenced connection stays open, whatever its client does, until the trap or the wire ends it."""
        while self._silent and not self._client[1].is_closing():
            await asyncio.sleep(0.05)

    def end(self, *, reset: bool = False, flush: bool = False) -> None:
        """Close both sides; the client's by an RST if *reset*, after what was written to it if *flush*."""
        self._silent = False
        client = self._client[1]
        if self._server is not None:
            self._server[1].transport.abort()
        if flush:
            client.close()
            return
        if reset:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.transport.abort()
