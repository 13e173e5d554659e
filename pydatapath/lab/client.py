"""Asks pydatapath.lab.server, and keeps what each side saw of the other.

    python -m pydatapath.lab.client [--json] ADDRESS [PORT]

A file of its own without any import of ours, as server.py is.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

__all__ = ["SECONDS", "Exchange", "Place", "ask"]

Place: TypeAlias = tuple[str, int]  # address and port

SECONDS = 2.0  # how long an answer may take
LONGEST = 2048


@dataclass(frozen=True)
class Exchange:
    """One question and its answer: both ends' addresses and ports, as the client and as the server see them."""

    name: str
    client_local: Place
    client_remote: Place
    server_local: Place
    server_peer: Place

    @staticmethod
    def from_json(values: dict[str, Any]) -> Exchange:
        """What `--json` printed."""
        name = str(values.pop("name"))
        return Exchange(name, **{end: _place(value) for end, value in values.items()})

    @property
    def unchanged(self) -> bool:
        """Whether both sides see the same two ends: nothing was translated on the way."""
        return (self.client_local, self.client_remote) == (self.server_peer, self.server_local)


def ask(connected: socket.socket, message: str = "hello") -> Exchange:
    """Send `message` on a connected socket, TCP or UDP, and read the answer; the socket stays open.

    Raises OSError when there is none, or when it answers to something else.
    """
    connected.sendall(f"{message}\n".encode())
    line = b""
    while not line.endswith(b"\n"):
        part = connected.recv(LONGEST)
        if not part:
            raise ConnectionError("the connection ended before the answer did")
        line += part
    answer = json.loads(line)
    if answer["message"] != message:
        raise ConnectionError(f"asked {message!r}, but was answered to {answer['message']!r}")
    return Exchange(
        answer["name"],
        _place(connected.getsockname()),
        _place(connected.getpeername()),
        _place(answer["local"]),
        _place(answer["peer"]),
    )


def _place(pair: Iterable[Any]) -> Place:
    address, port, *_ = pair  # of IPv6 it has a flow label and a scope too
    return str(address), int(port)


def _text(place: Place) -> str:
    address, port = place
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _main(arguments: list[str]) -> None:
    as_json = arguments[:1] == ["--json"]
    address, port = (*arguments[as_json:], "80")[:2]
    with socket.create_connection((address, int(port)), timeout=SECONDS) as connected:
        found = ask(connected)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return
    at, seen = _text(found.server_local), _text(found.server_peer)
    sys.stdout.write(f"{found.name} answered at {at} and saw {seen} call\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit("Error: whom to ask? ADDRESS [PORT]")
    try:
        _main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"Error: no answer from {' '.join(sys.argv[1:])}: {error}")
