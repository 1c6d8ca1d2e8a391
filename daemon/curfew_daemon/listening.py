"""Taking the address of the HTTP server before anything else starts, with errors that say what to do."""

import errno
import socket


class BindFailed(Exception):
    """The address cannot be used; `host` and `port` hold it, and the message says what to do."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot serve HTTP at {_address(host, port)}: {why}")
        self.host = host
        self.port = port


class PortTaken(BindFailed):
    """Another process listens there."""


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one. Connections queue up until a server accepts them.

    A name is tried at each of its addresses in turn, except that a taken port ends the attempt: with two
    daemons on `localhost`, one on IPv4 and one on IPv6 would look like one that answers at random.
    Raises `PortTaken`, or `BindFailed` for an address that is unknown, not this machine's, or not permitted.
    """
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65536
        raise BindFailed(host, port, "there is no such port; set CURFEW_HTTP_PORT to 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # UnicodeError is a ValueError
        raise BindFailed(host, port, f"the host is not known ({error}); set CURFEW_HTTP_HOST") from error
    failed: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            return _listen(socket.socket(family, kind, protocol), address)
        except OSError as error:
            failed = error
            if error.errno == errno.EADDRINUSE:
                break
    assert failed is not None
    raise _explained(host, port, failed) from failed


def url_of(sock: socket.socket) -> str:
    """The address of a bound socket as a URL, with the port that was really taken."""
    host, port, *_ = sock.getsockname()
    return f"http://{_address(host, port)}"


def _listen(sock: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        # A restart must not wait for the old connections' TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            # `::` serves IPv4 as well, whatever the system's default is.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        # With SO_REUSEADDR two sockets may be bound to one port; only listening finds the other one.
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def _explained(host: str, port: int, error: OSError) -> BindFailed:
    match error.errno:
        case errno.EADDRINUSE:
            return PortTaken(
                host,
                port,
                "another process listens there (`ss -ltnp` shows which); stop it, or set CURFEW_HTTP_PORT to"
                " another port, or to 0 for any free one",
            )
        case errno.EACCES:
            return BindFailed(host, port, "not permitted; set CURFEW_HTTP_PORT to a port from 1024 on")
        case errno.EADDRNOTAVAIL:
            return BindFailed(host, port, "the address is not this machine's; set CURFEW_HTTP_HOST")
        case _:
            return BindFailed(host, port, f"{error.strerror}; set CURFEW_HTTP_HOST or CURFEW_HTTP_PORT")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
