"""A small threaded HTTP server for one WSGI callable: bounded in connections, in time and in what it believes."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from socketserver import TCPServer, ThreadingMixIn
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from budgettune.errors import UsageError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

MOST_CONNECTIONS = 64
REQUEST_SECONDS = 15.0
"""For a request to arrive, from its first byte to its last: who drips bytes does not hold a thread."""
RESPONSE_SECONDS = 60.0
LINGER_SECONDS = 1.0
LARGEST_LINE_BYTES = 8_192

log = logging.getLogger(__name__)


@contextmanager
def listen(app: WSGIApplication, host: str, port: int) -> Iterator[tuple[WSGIServer, str]]:
    """Yield a bound server and its address; the caller runs serve_forever.

    Raises:
        UsageError: where the address cannot be had.
    """
    server_class = _server_class(_family(host))
    try:
        server = server_class((host, port), _Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(_why_not(error, host, port)) from None
    with server:
        server.set_app(app)
        shown = f"[{host}]" if ":" in host else host or "localhost"
        yield server, f"http://{shown}:{server.server_port}/"


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)[0][0]
    except OSError:
        return socket.AF_INET  # binding will say what is wrong


def _why_not(error: Exception, host: str, port: int) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: choose another with --port, or --port 0 for a free one"
    reason = error.strerror if isinstance(error, OSError) else "there is no such port"
    return f"cannot listen on {host}, port {port}: {reason}: choose another --host or --port"


def _server_class(family: socket.AddressFamily) -> type[WSGIServer]:
    return type("Server", (_Server,), {"address_family": family})


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open connection does not keep the program alive
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # the parent would look the host's name up, which can take seconds
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            log.warning("refused a connection from %s: %d are open", client_address[0], MOST_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Visitors who leave, or dawdle, are none of the operator's business."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "request of %s broke off", client_address[0], exc_info=error)


class _DeadlineReader(socket.SocketIO):
    """Reads a socket until a moment, however many bytes drip in before it."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        super().__init__(sock, "r")
        self._connection = sock
        self._deadline = time.monotonic() + seconds

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            return super().readinto(buffer)
        finally:
            self._connection.settimeout(RESPONSE_SECONDS)


class _Response(ServerHandler):
    server_software = "BudgetTune"

    def log_exception(self, exc_info: Any) -> None:
        log.error("a page failed", exc_info=exc_info)


class _Handler(WSGIRequestHandler):
    server_version = "BudgetTune"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_DeadlineReader(self.connection, REQUEST_SECONDS), LARGEST_LINE_BYTES)

    def handle(self) -> None:
        """Answer one request; the parent's way, with our limits and without its name in the headers."""
        self.raw_requestline = self.rfile.readline(LARGEST_LINE_BYTES + 1)
        if len(self.raw_requestline) > LARGEST_LINE_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            body, answer = cast(IO[bytes], self.rfile), cast(IO[bytes], self.wfile)
            response = _Response(body, answer, sys.stderr, self.get_environ(), multithread=True)
            response.request_handler = self  # type: ignore[attr-defined]
            response.run(self.server.get_app())  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Let the client read the answer: closing on a body that nobody read would reset the connection."""
        super().finish()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            leftover = _DeadlineReader(self.connection, LINGER_SECONDS)
            while leftover.readinto(bytearray(65_536)):
                pass

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Keep the access log for those who ask for it."""
        log.debug("%s %s", self.address_string(), _printable(format % arguments))

    def log_error(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Tell of requests that are none."""
        log.warning("refused a request from %s: %s", self.address_string(), _printable(format % arguments))


def _printable(text: str) -> str:
    return text[:300].encode("unicode_escape").decode()
