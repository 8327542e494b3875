"""HTTP servers on loopback without log output, for the demo, the doctor and the tests."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """A request handler that writes no log."""

    protocol_version = "HTTP/1.1"

    # A002 forbids the name `format`, but the base class calls its parameter so.
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write no log line."""


class Loopback(ThreadingHTTPServer):
    """A server on a free loopback port. It serves from its creation until `close`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[QuietHandler], **attributes: object) -> None:
        """Start to serve with *handler*; set *attributes* on its class."""
        super().__init__(("127.0.0.1", 0), type("Handler", (handler,), attributes))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report nothing: a client that is killed during a stream is expected here."""
