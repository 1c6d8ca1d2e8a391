"""The pages of the daemon: status, metrics, health, readiness. Served from a thread of their own, on fixed routes.

Nothing here touches the database, and nothing of a request comes back in a response. Python threads that render
pages delay the sweep, so metrics and status are rendered at most once a second and served as bytes, and what a client
can hold open is bounded in number and in time.
"""

import asyncio
import operator
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from curfew_daemon.listening import BindFailed, PortTaken, bind, url_of
from curfew_daemon.request_rules import RequestRules
from curfew_daemon.snapshot import Snapshot
from curfew_daemon.wait_bounds import HEALTHZ_STALENESS

__all__ = ["BindFailed", "HttpServer", "PortTaken", "bind", "create_app", "url_of"]

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_CONNECTIONS = 64
_REQUEST_TIMEOUT = 10.0
_SINCE: Final = operator.attrgetter("since")


class Status(Protocol):
    """What is served at ``/`` and ``/status.json``."""

    @property
    def policy(self) -> str:
        """The content security policy of the page."""

    def render(self, as_document: bool) -> bytes:
        """The page, or the same facts as JSON."""


class _Pages:
    """What answers the five pages; the parameters are those of `create_app`."""

    def __init__(
        self,
        render: Callable[[bool], bytes],
        beat_age: Callable[[], float],
        readiness: Callable[[], tuple[bool, str]],
        status: Status,
        clock: Callable[[], float],
    ) -> None:
        self._metrics = Snapshot(render, clock=clock)
        self._beat_age = beat_age
        self._readiness = readiness
        self._status = status
        self._status_snapshot = Snapshot(status.render, clock=clock)

    async def index(self, _request: Request) -> Response:
        return HTMLResponse(self._status_snapshot.get(False), headers={"Content-Security-Policy": self._status.policy})

    async def status_json(self, _request: Request) -> Response:
        return Response(self._status_snapshot.get(True), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        return Response(self._metrics.get(openmetrics), media_type=_OPENMETRICS if openmetrics else _TEXT)

    async def healthz(self, _request: Request) -> Response:
        age = self._beat_age()
        if age < HEALTHZ_STALENESS:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"the loop has not shown itself for {age:.0f} s\n", 503)

    async def readyz(self, _request: Request) -> Response:
        ready, word = self._readiness()
        return PlainTextResponse(f"{word}\n", 200 if ready else 503)


async def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return PlainTextResponse("Internal Server Error\n", 500)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


def create_app(
    *,
    render: Callable[[bool], bytes],
    beat_age: Callable[[], float],
    readiness: Callable[[], tuple[bool, str]],
    status: Status,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The five pages, for GET and HEAD.

    `render(openmetrics)` gives the metrics, `beat_age()` the seconds since the loop's last beat, `readiness()`
    whether deadlines can be enforced now and a word on it; `status` is the page that people look at. All are called
    in the server's thread and must not wait.
    """
    pages = _Pages(render, beat_age, readiness, status, clock)
    answers = {
        "/": pages.index,
        "/status.json": pages.status_json,
        "/metrics": pages.metrics,
        "/healthz": pages.healthz,
        "/readyz": pages.readyz,
    }
    app = Starlette(
        routes=[Route(path, answer, methods=["GET"]) for path, answer in answers.items()],
        middleware=[Middleware(RequestRules)],
        exception_handlers={HTTPException: _refuse, Exception: _refuse},
    )
    app.router.redirect_slashes = False  # its Location header would give the request's Host back
    return app


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics to the plain text format."""
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for offer in accept.split(","):
        name, *parameters = (part.strip().lower() for part in offer.split(";"))
        if name in quality:
            weights = [each[2:] for each in parameters if each.startswith("q=")]
            try:
                weight = float(weights[0]) if weights else 1.0
            except ValueError:
                continue
            quality[name] = max(quality[name], weight)
    return quality["application/openmetrics-text"] > 0 and (
        quality["application/openmetrics-text"] >= quality["text/plain"]
    )


class _BoundedProtocol(H11Protocol):
    """A connection that ends: uvicorn bounds the idle time after a response, but not a request that never comes.

    Where there are too many, the oldest that waits for its client makes room: slow clients, however many, then cost
    each other their places, and never a scrape that is asked for in one piece.
    """

    _end: asyncio.TimerHandle | None = None
    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its parent
        self.since = self.loop.time()
        if len(self.connections) >= _CONNECTIONS:
            self._make_room()
        super().connection_made(transport)
        self._end = self.loop.call_later(_REQUEST_TIMEOUT, transport.abort)

    def _make_room(self) -> None:
        others = cast("set[_BoundedProtocol]", self.connections)
        waiting = [each for each in others if each.cycle is None or each.cycle.response_complete]
        oldest = min(waiting or others, key=_SINCE)  # hundreds a second where somebody means harm
        oldest.transport.abort()
        self.connections.discard(oldest)  # at once: its own farewell comes with the next turn of the loop

    def send_400_response(self, msg: str) -> None:
        """Refuse nonsense once, also where it follows the head of a request that is being answered."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # nothing more from the application, and no complaint about it
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


class HttpServer:
    """uvicorn in a daemon thread. Its end never reaches the loop as an exception.

    `on_death(error)` is called once, in the server's thread, if it ends without `stop` having been called.
    """

    def __init__(self, app: Starlette, sock: socket.socket, on_death: Callable[[BaseException], object]) -> None:
        self._socket = sock
        self._on_death = on_death
        self._stopping = False
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_BoundedProtocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",  # below it, any client could write log lines by sending nonsense
                access_log=False,
                server_header=False,
                proxy_headers=False,
                headers=[("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")],
                limit_concurrency=2 * _CONNECTIONS,  # never reached: `_BoundedProtocol` keeps below
                timeout_keep_alive=2,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="curfewd-http", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread serves."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Serves from now on; connections made since `bind` are answered."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """Ends the server, waits at most `timeout` seconds, and says whether it has ended. May be repeated."""
        self._stopping = True
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(timeout)
        else:
            self._socket.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        error: BaseException = RuntimeError("the HTTP server ended by itself")
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as raised:  # noqa: BLE001  also uvicorn's own SystemExit must not leave the thread
            error = raised
        finally:
            self._socket.close()
        if not self._stopping:
            self._on_death(error)
