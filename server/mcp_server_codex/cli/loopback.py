"""HTTP servers on loopback that say nothing: the far ends of the demo, the doctor and the tests."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """Answers requests, and keeps the terminal clean."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Say nothing."""


class Loopback(ThreadingHTTPServer):
    """A server on a free port of loopback, which serves from the start until it is closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[QuietHandler], **attributes: object) -> None:
        """Serve by *handler*, whose instances have *attributes*."""
        super().__init__(("127.0.0.1", 0), type("Handler", (handler,), attributes))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is to be found."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop to serve and free the port."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that is killed in mid-stream is no fault here."""
