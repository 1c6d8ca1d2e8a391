"""What no client may ask of the pages, whatever the path: another HTTP, or a further request behind a body."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestRules"]


class RequestRules:
    """Refuses every HTTP but 1.x, and makes a request that brings a body the last one on its connection.

    No page reads a body. Where one ends is what a proxy in front and the server here may read differently (two
    lengths, or a length and chunks), so what comes behind it is not taken for a request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        if not scope["http_version"].startswith("1."):
            await PlainTextResponse("HTTP Version Not Supported\n", 505)(scope, receive, send_last)
        else:
            await self._app(scope, receive, send_last if _brings_a_body(scope) else send)


def _brings_a_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    )
