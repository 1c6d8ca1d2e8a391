"""The pages, over real sockets: fixed routes, bounded clients, and a death that nobody else dies of."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from curfew_daemon import http as module
from curfew_daemon.http import BindFailed, HttpServer, PortTaken, bind, create_app, url_of, wants_openmetrics
from curfew_daemon.metrics import Metrics
from curfew_daemon.snapshot import Snapshot
from tests.faults.hostile_http import NONSENSE, answer, slow_clients, speak
from tests.patience import PATIENCE

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class StatusOfNothing:
    """A status page with nothing on it."""

    policy = "default-src 'none'"

    def render(self, as_document: bool) -> bytes:
        """An empty page of either form."""
        return b"{}" if as_document else b"<title>curfewd</title>"


class Daemon:
    """What the pages ask, settable by a test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.age = 0.0
        self.ready = (True, "enforcing")
        self.renders: list[bool] = []
        self.broken = False

    def render(self, openmetrics: bool) -> bytes:
        if self.broken:
            raise RuntimeError("secret detail")
        self.renders.append(openmetrics)
        return b"openmetrics %d\n" % len(self.renders) if openmetrics else b"text %d\n" % len(self.renders)

    def app(self) -> Starlette:
        return create_app(
            render=self.render,
            beat_age=lambda: self.age,
            readiness=lambda: self.ready,
            status=StatusOfNothing(),
            clock=lambda: self.now,
        )


@contextmanager
def serving(app: Starlette, host: str = "127.0.0.1") -> Iterator[str]:
    deaths: list[BaseException] = []
    sock = bind(host, 0)
    url = url_of(sock)
    server = HttpServer(app, sock, deaths.append)
    server.start()
    try:
        yield url
    finally:
        assert server.stop(5)
        assert deaths == []


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[httpx.Client]:
    with serving(daemon.app()) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def raw(url: str, request: bytes) -> bytes:
    """Everything that the server answers to these bytes until it closes."""
    with connected(url) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


# The pages


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/", "text/html; charset=utf-8", "<title>curfewd</title>"),
        ("/status.json", "application/json", "{}"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "text 1\n"),
        ("/healthz", "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", "text/plain; charset=utf-8", "enforcing\n"),
    ],
)
def test_pages_answer_get_and_head(client: httpx.Client, path: str, content_type: str, body: str) -> None:
    """Each page answers GET with its content and HEAD with the same headers and none of it."""
    got = client.get(path)
    head = client.head(path)

    assert got.status_code == head.status_code == 200
    assert got.headers["content-type"] == head.headers["content-type"] == content_type
    assert body in got.text
    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing", "/healthz"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_answer_is_marked(client: httpx.Client, path: str, method: str) -> None:
    """Every answer, errors included, forbids sniffing and storing and names no software or version."""
    headers = client.request(method, path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert headers.keys() <= {
        "date", "x-content-type-options", "cache-control", "content-length", "content-type", "allow",
        "content-security-policy",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/healthz", "/readyz"])
def test_other_methods_are_refused(client: httpx.Client, method: str, path: str) -> None:
    """Anything but GET and HEAD is 405 and names the two."""
    answer = client.request(method, path, content=b"x")

    assert answer.status_code == 405
    assert {each.strip() for each in answer.headers["allow"].split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "target",
    ["/marker", "/metrics/", "/metrics/marker", "//marker", "/../etc/passwd", "/%00marker", "/?x=marker", "/METRICS"],
)
def test_nothing_of_a_request_comes_back(daemon: Daemon, target: str) -> None:
    """Unknown paths are a plain 404, with no redirect; no part of path, query or headers is in any answer."""
    with serving(daemon.app()) as url:
        answer = raw(url, f"GET {target} HTTP/1.1\r\nHost: marker\r\nX-A: marker\r\nConnection: close\r\n\r\n".encode())

    status = 200 if target.startswith("/?") else 404
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"marker" not in answer.lower()
    assert b"location" not in answer.lower()
    if status == 404:
        assert answer.endswith(b"\r\n\r\nNot Found\n")


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET /\r\n\r\n", b"A" * 100_000])
def test_nonsense_is_refused_in_silence(daemon: Daemon, nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A TLS hello, HTTP/0.9 or an endless header gets 400 or a closed connection, and writes no log line."""
    with serving(daemon.app()) as url:
        try:
            answer = raw(url, nonsense)
        except ConnectionError:
            answer = b""
        assert httpx.get(url + "/healthz", trust_env=False).status_code == 200

    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert caplog.records == []


def test_an_error_shows_no_detail(daemon: Daemon) -> None:
    """A page that fails is a plain 500, and the others go on."""
    daemon.broken = True
    with serving(daemon.app()) as url:
        for _ in range(2):
            answer = httpx.get(url + "/metrics", trust_env=False)
            assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")
        assert httpx.get(url + "/healthz", trust_env=False).status_code == 200
        daemon.broken = False
        assert httpx.get(url + "/metrics", trust_env=False).status_code == 200


# Metrics


def test_metrics_are_rendered_at_most_once_a_second(client: httpx.Client, daemon: Daemon) -> None:
    """Fifty requests within a second render once per format; a second later, once more."""
    answers = {client.get("/metrics").text for _ in range(50)}
    assert answers == {"text 1\n"}
    assert daemon.renders == [False]

    daemon.now += 0.999
    assert client.get("/metrics").text == "text 1\n"
    daemon.now += 0.001
    assert client.get("/metrics").text == "text 2\n"
    assert client.get("/metrics", headers={"Accept": PROMETHEUS_ACCEPT}).text == "openmetrics 3\n"
    assert daemon.renders == [False, False, True]


def test_one_thread_renders() -> None:
    """Threads that ask at the same time share one rendering."""
    rendering = threading.Event()
    finish = threading.Event()
    renders: list[bool] = []

    def render(openmetrics: bool) -> bytes:
        renders.append(openmetrics)
        rendering.set()
        assert finish.wait(10)
        return b"x"

    snapshot = Snapshot(render, clock=lambda: 0.0)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(snapshot.get(False))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert rendering.wait(10)
    finish.set()
    for thread in threads:
        thread.join(10)

    assert got == [b"x"] * 8
    assert renders == [False]


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (PROMETHEUS_ACCEPT, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; version=1.0.0", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=x", False),
        (",;,;q=", False),
    ],
)
def test_format_follows_accept(accept: str, openmetrics: bool) -> None:
    """OpenMetrics is for those who ask for it, and do not prefer plain text."""
    assert wants_openmetrics(accept) is openmetrics


def test_real_metrics_are_served_in_both_formats(daemon: Daemon) -> None:
    """The daemon's own metrics come out under the content type of their format."""
    app = create_app(
        render=Metrics().render, beat_age=lambda: 0.0, readiness=lambda: (True, "x"), status=StatusOfNothing()
    )
    with serving(app) as url:
        text = httpx.get(url + "/metrics", trust_env=False)
        openmetrics = httpx.get(url + "/metrics", headers={"Accept": PROMETHEUS_ACCEPT}, trust_env=False)

    assert "curfew_runs_timed_out_total 0.0" in text.text
    assert openmetrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert openmetrics.text.endswith("# EOF\n")


# Health


def test_health_follows_the_beat_alone(client: httpx.Client, daemon: Daemon) -> None:
    """Healthy while the last beat is younger than 30 s, also when not ready; 503 from then on."""
    daemon.ready = (False, "database unreachable")
    daemon.age = 29.9
    assert client.get("/healthz").status_code == 200

    daemon.age = 30.0
    answer = client.get("/healthz")
    assert (answer.status_code, answer.text) == (503, "the loop has not shown itself for 30 s\n")
    assert client.head("/healthz").status_code == 503


def test_readiness_says_why_not(client: httpx.Client, daemon: Daemon) -> None:
    """Not ready is 503 with the reason; ready again is 200."""
    daemon.ready = (False, "schema missing: run curfewd migrate")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "schema missing: run curfewd migrate\n")

    daemon.ready = (True, "enforcing")
    assert client.get("/readyz").status_code == 200


# The socket


def test_a_taken_port_is_known_before_the_start() -> None:
    """A second listener on a port raises PortTaken, which names the address and the setting."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port}.*CURFEW_HTTP_PORT") as caught:
            bind("127.0.0.1", port)

    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("no-such-host.invalid", 0, "not known.*CURFEW_HTTP_HOST"),
        ("x" * 300, 0, "not known"),
        ("a\0b", 0, "not known"),
        ("192.0.2.1", 0, "not this machine's.*CURFEW_HTTP_HOST"),
        ("127.0.0.1", 70_000, "CURFEW_HTTP_PORT"),
        ("127.0.0.1", -1, "CURFEW_HTTP_PORT"),
    ],
)
def test_an_impossible_address_is_explained(host: str, port: int, message: str) -> None:
    """An unknown host, a foreign address or an impossible port is an error that names the setting."""
    with pytest.raises(BindFailed, match=message) as caught:
        bind(host, port)

    assert not isinstance(caught.value, PortTaken)


@pytest.mark.parametrize(("number", "message"), [(13, "not permitted.*1024"), (99, "machine's"), (5, "Input/output")])
def test_a_refusal_by_the_system_is_explained(monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    """What the operating system refuses, a port below 1024 for one, is said in words."""

    def refuse(_self: socket.socket, _address: object) -> None:
        import os

        raise OSError(number, os.strerror(number))

    class Refusing(socket.socket):
        bind = refuse

    monkeypatch.setattr("curfew_daemon.listening.socket.socket", Refusing)
    with pytest.raises(BindFailed, match=message):
        bind("127.0.0.1", 80)


def test_ipv6_is_served(daemon: Daemon) -> None:
    """An IPv6 address is served and shown in brackets; `::` serves IPv4 as well."""
    with serving(daemon.app(), "::1") as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(url + "/healthz", trust_env=False).text == "ok\n"
    with serving(daemon.app(), "::") as url:
        port = url.rsplit(":", 1)[1]
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).text == "ok\n"


# The thread


def test_stopping_is_quick_and_may_be_repeated(daemon: Daemon) -> None:
    """A stop with an idle client ends within its bound, frees the port and reports no death."""
    deaths: list[BaseException] = []
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    server = HttpServer(daemon.app(), sock, deaths.append)
    assert not server.alive
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        client.get("/healthz")
        assert server.alive
        assert server.stop(2)
    assert server.stop(2)

    assert not server.alive
    assert deaths == []
    bind("127.0.0.1", port).close()


def test_a_server_that_never_started_gives_its_port_back(daemon: Daemon) -> None:
    """Stopping before the start closes the socket."""
    sock = bind("127.0.0.1", 0)
    server = HttpServer(daemon.app(), sock, lambda _error: None)

    assert server.stop()
    assert sock.fileno() == -1


@pytest.mark.parametrize("how", ["error", "exit", "return"])
def test_a_death_is_reported_and_goes_no_further(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A server that ends by itself, by an error, uvicorn's sys.exit or a plain return, is reported once."""
    ends: dict[str, Callable[[], None]] = {
        "error": lambda: (_ for _ in ()).throw(OSError("no file descriptors")),
        "exit": lambda: (_ for _ in ()).throw(SystemExit(3)),
        "return": lambda: None,
    }
    deaths: list[BaseException] = []
    reported = threading.Event()

    def on_death(error: BaseException) -> None:
        deaths.append(error)
        reported.set()

    monkeypatch.setattr(uvicorn.Server, "run", lambda _self, sockets: ends[how]())
    sock = bind("127.0.0.1", 0)
    server = HttpServer(daemon.app(), sock, on_death)
    server.start()

    assert reported.wait(10)
    assert server.stop(5)
    assert [type(death) for death in deaths] == [{"error": OSError, "exit": SystemExit, "return": RuntimeError}[how]]
    assert sock.fileno() == -1


def test_clients_that_send_nothing_are_let_go(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent and slow connections are closed after a while, and keep no scrape out meanwhile."""
    monkeypatch.setattr(module, "_REQUEST_TIMEOUT", 0.3)
    with serving(daemon.app()) as url:
        port = int(url.rsplit(":", 1)[1])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(module._CONNECTIONS)]
        for connection in silent[:5]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        answered = httpx.get(url + "/healthz", trust_env=False)
        for connection in silent:
            with connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""

    assert answered.status_code == 200


def test_hundreds_of_slow_clients_keep_no_scrape_out(daemon: Daemon) -> None:
    """Whoever is slow loses its place to the next, and one that asks in one piece is served among them."""
    with serving(daemon.app()) as url, slow_clients(url, 500):
        statuses = [answer(url, "/metrics")[0] for _ in range(5)]
        threads = threading.active_count()

    assert statuses == [200] * 5
    assert threads < 50


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_the_oldest_client_that_waits_makes_room(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many takes the place of the first that came and said nothing; the others are answered."""
    monkeypatch.setattr(module, "_CONNECTIONS", 3)
    with serving(daemon.app()) as url, contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(connected(url)) for _ in range(4)]
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(100) == b""
        for client in others:
            client.sendall(WHOLE)
            assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_no_client_that_is_being_answered_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of all keeps its place while its answer is made; the next that waits loses its own."""
    monkeypatch.setattr(module, "_CONNECTIONS", 3)
    asked, release = threading.Event(), threading.Event()

    async def healthz(_request: Request) -> PlainTextResponse:
        asked.set()
        while not release.is_set():
            await asyncio.sleep(0.01)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/healthz", healthz)])
    with serving(app) as url, contextlib.ExitStack() as stack:
        stack.callback(release.set)
        answering = stack.enter_context(connected(url))
        answering.sendall(WHOLE)
        assert asked.wait(PATIENCE)
        first, *_ = [stack.enter_context(connected(url)) for _ in range(3)]
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(100) == b""
        release.set()
        assert answering.recv(100).startswith(b"HTTP/1.1 200")


def test_nonsense_is_answered_or_dropped_and_logs_nothing(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a client says, also after the head of a good request: no line in the log, and the next is served."""
    with serving(daemon.app()) as url:
        for words in NONSENSE:
            speak(url, words, 0.05)
            assert answer(url, "/healthz")[0] == 200, words[:80]

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
