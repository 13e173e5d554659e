"""A server that says who it is and whom it sees: over TCP, also as HTTP, and over UDP.

    python -m pydatapath.lab.server [NAME [ADDRESS [PORT]]]

Without ADDRESS it serves at all addresses, of IPv4 and of IPv6. It answers every line or datagram with one line of
JSON, which pydatapath.lab.client reads: {"name": "node1-pod2", "local": ["10.244.1.12", 8080], "peer": ["10.244.1.11",
40000], "message": "hello"}. A file of its own without any import of ours, so that it starts in 20 ms as
`python -I -S server.py`, also in a container of a lab.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import threading
from typing import Any

__all__ = ["READY", "serve"]

READY = "ready"  # the line on standard output when all ports are open
EVERYWHERE = "*"
ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - in a pod that is its own ones, and localhost
BACKLOG = 512
LONGEST = 2048  # bytes of a line or datagram


def serve(name: str = "", address: str = EVERYWHERE, port: int = 8080) -> None:
    """Answer for ever. `name` "" is the address that was called. Raises OSError when a port is taken."""
    with contextlib.ExitStack() as opened:
        listening = [opened.enter_context(_listening(one, port)) for one in _addresses(address)]
        for one in _addresses(address):
            datagrams = opened.enter_context(_datagrams(one, port))
            threading.Thread(target=_answer_datagrams, args=(name, datagrams), daemon=True).start()
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        while True:
            for ready in select.select(listening, [], [])[0]:
                connection, _ = ready.accept()
                threading.Thread(target=_answer_connection, args=(name, connection), daemon=True).start()


def _addresses(address: str) -> tuple[str, ...]:
    """What to bind to for `address`; a kernel may be without IPv6."""
    if address != EVERYWHERE:
        return (address,)
    return ALL_ADDRESSES if socket.has_dualstack_ipv6() else ALL_ADDRESSES[:1]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listening(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), family=_family(address), backlog=BACKLOG)  # `::` is IPv6 alone


def _datagrams(address: str, port: int) -> socket.socket:
    made = socket.socket(_family(address), socket.SOCK_DGRAM)
    try:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made


def _answer_datagrams(name: str, datagrams: socket.socket) -> None:
    while True:
        data, peer = datagrams.recvfrom(LONGEST)
        with contextlib.suppress(OSError):  # who asked may be unreachable by now
            datagrams.sendto(_answer(name, datagrams.getsockname(), peer, data), peer)


def _answer_connection(name: str, connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
        local, peer = connection.getsockname(), connection.getpeername()
        while line := lines.readline(LONGEST):
            answer = _answer(name, local, peer, line)
            if line.startswith(b"GET "):
                while lines.readline(LONGEST).strip():
                    pass  # the request's headers
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + answer)
                return
            connection.sendall(answer)


def _answer(name: str, local: tuple[Any, ...], peer: tuple[Any, ...], data: bytes) -> bytes:
    """The line that answers `data`; of IPv6, places have a flow label and a scope too."""
    message = data.decode(errors="replace").strip()
    text = json.dumps({"name": name or local[0], "local": local[:2], "peer": peer[:2], "message": message})
    return f"{text}\n".encode()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal's Ctrl-C ends it without a traceback
    name, address, port = (sys.argv[1:] + ["", EVERYWHERE, "8080"][len(sys.argv) - 1 :])[:3]
    try:
        serve(name, address, int(port))
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(f"Error: cannot serve at {address}:{port}: {error}")
