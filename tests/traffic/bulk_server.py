"""A web server for large bodies, over IPv4 and IPv6, whose content its callers know.

    python -I -S bulk_server.py PORT

GET /SIZE is answered with that many bytes; to a PUT it says the SHA-256 of what it got. It prints `ready` when it is
open.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 20


def content(size: int) -> Iterator[bytes]:
    """Bytes by chance, the same ones for the same size; each block begins with its number, so that no two are equal."""
    block = random.Random(size).randbytes(BLOCK)
    for number in range(-(-size // BLOCK)):
        yield (number.to_bytes(8) + block[8:])[: size - number * BLOCK]


def digest(size: int) -> str:
    """The SHA-256 of that content."""
    made = hashlib.sha256()
    for block in content(size):
        made.update(block)
    return made.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        size = int(self.path.strip("/"))
        self._begin(size)
        for block in content(size):
            self.wfile.write(block)

    def do_PUT(self) -> None:
        made, rest = hashlib.sha256(), int(self.headers["Content-Length"])
        while rest and (data := self.rfile.read1(min(rest, BLOCK))):
            made.update(data)
            rest -= len(data)
        self._begin(64)
        self.wfile.write(made.hexdigest().encode())

    def _begin(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """Of both families."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    with Server(("::", int(sys.argv[1])), Handler) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()
