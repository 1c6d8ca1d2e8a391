"""Requests byte by byte: which answer each gets, that it is one answer, and that the next client is served."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from curfew_daemon.http import BindFailed, bind, wants_openmetrics
from tests.faults.hostile_http import answer
from tests.unit.test_http import Daemon, raw, serving

HOST = b"Host: marker\r\n"
CLOSE = b"Connection: close\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
POST = b"POST /healthz HTTP/1.1\r\n" + HOST

REQUESTS: dict[str, tuple[bytes, int]] = {
    # The method
    "CONNECT": (b"CONNECT marker:5432 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "OPTIONS for the server": (b"OPTIONS * HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "a method of nobody": (b"M-ARKER /healthz HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 405),
    "no method": (b"/healthz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    # The path
    "upwards": (b"GET /../marker HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "encoded upwards": (b"GET /%2e%2e/marker HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "two slashes": (b"GET //marker HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "encoded NUL": (b"GET /%00 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "no UTF-8, encoded": (b"GET /%ff%fe HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    "raw bytes": (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 400),
    "another host's": (b"GET http://[::1/marker HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 404),
    # The version
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 400),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
    "HTTP/9.9": (b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n", 505),
    "HTTP/99": (b"GET /healthz HTTP/99\r\n" + HOST + b"\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", 400),
    # The headers
    "150 headers": (GET + CLOSE + b"X-A: marker\r\n" * 150 + b"\r\n", 200),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + HOST + b"\r\n", 400),
    "two lengths": (GET + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", 400),
    "a negative length": (GET + b"Content-Length: -1\r\n\r\n", 400),
    "an unknown coding": (GET + b"Transfer-Encoding: marker\r\n\r\n", 400),
    "a header without a name": (GET + b": marker\r\n\r\n", 400),
    "a header with a NUL": (GET + b"X: a\0b\r\n\r\n", 400),
    # The body
    "a body": (GET + b"Content-Length: 5\r\n\r\nhello", 200),
    "a body of a gigabyte": (GET + b"Content-Length: 1073741824\r\n\r\n" + b"x" * 1000, 200),
    "a POST that asks first": (
        GET.replace(b"GET", b"POST") + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        405,
    ),
    "no chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n", 400),
}
"""What is sent, and the status of the one answer that comes back before the server closes."""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The pages, served."""
    with serving(Daemon().app()) as url:
        yield url


def answers(text: bytes) -> list[int]:
    """The status of each answer in what came back."""
    return [int(each[:3]) for each in text.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("name", REQUESTS)
def test_each_request_has_one_answer(page: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The status says what was wrong, nothing of the request comes back, nothing is logged, the next is served."""
    request, status = REQUESTS[name]
    got = raw(page, request)
    assert answers(got) == [status]
    assert b"marker" not in got.lower()
    assert answer(page, "/healthz")[0] == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n",
        GET + b"X-Long: " + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\n " * 9000,
    ],
    ids=["path", "header", "lines"],
)
def test_an_endless_head_is_cut_off(page: str, request_line: bytes) -> None:
    """Beyond 64 KiB the answer is 400, or the connection is closed while the client still sends."""
    try:
        got = raw(page, request_line)
    except ConnectionError:
        got = b""
    assert answers(got) in ([], [400])
    assert answer(page, "/healthz")[0] == 200


def test_what_follows_a_body_is_no_request(page: str) -> None:
    """Two lengths that a proxy in front may read differently smuggle nothing in: one answer, then the end."""
    smuggled = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    lengths = b"Content-Length: %d\r\n\r\n" % len(smuggled), b"Content-Length: 000\r\nContent-Length: 000\r\n\r\n"
    both = b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    chunks = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert answers(raw(page, GET + lengths[0] + smuggled * 2)) == [200]
    assert answers(raw(page, GET + both + smuggled)) == [200]
    assert answers(raw(page, GET + chunks + smuggled)) == [200]
    assert len(answers(raw(page, GET + lengths[1] + smuggled.replace(HOST, HOST + CLOSE)))) == 2


def test_requests_behind_each_other_are_answered_in_order(page: str) -> None:
    """Fifty at once on one connection: as many answers, each to its own request."""
    paths = [b"/healthz", b"/nothing"] * 25
    requests = b"".join(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" for path in paths[:-1])
    last = b"GET /nothing HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    assert answers(raw(page, requests + last)) == [200, 404] * 25


def sent_until_refused(client: socket.socket, words: bytes) -> int:
    """How often *words* could be sent until the other side took no more for the client's timeout; at most 1,000."""
    for count in range(1000):
        try:
            client.sendall(words)
        except TimeoutError:
            return count
    return 1000


def test_a_client_that_asks_and_does_not_read(page: str) -> None:
    """Answers that nobody takes fill the buffers, then nothing more is read; others are served meanwhile."""
    where = urlsplit(page)
    requests = (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 1000
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((where.hostname, where.port))
        client.settimeout(0.3)
        assert sent_until_refused(client, requests) < 1000
        assert [answer(page, "/metrics")[0] for _ in range(3)] == [200] * 3


def test_a_storm_of_connections(page: str) -> None:
    """A thousand that come and go at once, some in the middle of a word: the next scrape is answered."""
    where = urlsplit(page)
    made: list[bytes] = []

    def storm(words: bytes) -> None:
        for _ in range(250):
            with socket.socket() as client:
                client.settimeout(10)
                client.connect((where.hostname, where.port))
                client.sendall(words)
                made.append(words)

    threads = [threading.Thread(target=storm, args=(words,)) for words in (b"", b"GET /metr", GET + b"\r\n", b"\x16")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1000
    assert answer(page, "/metrics")[0] == 200


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("application/openmetrics-text;q=NaN", False),
        ("application/openmetrics-text;q=-1", False),
        ("application/openmetrics-text;q=1e999", True),
        ("application/openmetrics-text;q=0.5;q=0", True),
        ("application/openmetrics-text;q", True),
        ("application/openmetrics-text;q=NaN,text/plain;q=NaN", False),
        ("\0;q=1,application/openmetrics-text, " + "text/plain;q=0.1," * 2000, True),
        ("*/*;q=NaN, gzip", False),
    ],
)
def test_what_is_no_quality(accept: str, openmetrics: bool) -> None:
    """A weight that is no number asks for nothing; garbage beside a good offer does not spoil it."""
    assert wants_openmetrics(accept) is openmetrics


def test_no_answer_is_encoded(page: str) -> None:
    """Whatever encodings a client takes, the text comes as it is."""
    got = raw(page, b"GET /metrics HTTP/1.1\r\n" + HOST + CLOSE + b"Accept-Encoding: gzip;q=NaN, br, marker\r\n\r\n")
    assert answers(got) == [200]
    assert b"content-encoding" not in got.lower()
    assert got.partition(b"\r\n\r\n")[2].startswith(b"text ")


@pytest.mark.parametrize("host", ["fe80::1", "fe80::1%lo", "fe80::1%nowhere", "ff02::1", "1.2.3.4.5"])
def test_addresses_that_cannot_be_served(host: str) -> None:
    """A link-local address without its interface or of none, a group, no address: an error that names the setting."""
    with pytest.raises(BindFailed, match="CURFEW_HTTP_HOST"):
        bind(host, 0)
