"""A server that says who it is, whom it sees and what it got, over TCP and UDP at once.

    python -I -S echo_server.py NAME PORT...

A line or a datagram MESSAGE is answered with `NAME PEER_ADDRESS PEER_PORT MESSAGE`; a line that begins with `wait` a
second later. One process serves thousands of
connections; it prints `ready` when all ports are open. Each port is open for IPv4 and, where there is such, for IPv6.
"""

from __future__ import annotations

import asyncio
import socket
import sys

ANY = ("0.0.0.0", "::")  # noqa: S104 - a pod is all there is
BACKLOG = 4096
WAIT = 1.0  # seconds
RECEIVE_BUFFER = 4 << 20  # bytes: a burst of datagrams waits, it is not lost


class Lines(asyncio.Protocol):
    """One TCP connection: every line is answered, until the peer ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.prefix = said(self.name, transport.get_extra_info("peername"))

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if lines and lines[0].startswith(b"wait "):
            asyncio.get_running_loop().call_later(WAIT, self.transport.write, self.prefix + lines[0] + b"\n")
        elif lines:
            self.transport.write(b"".join(self.prefix + line + b"\n" for line in lines))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Datagrams(asyncio.DatagramProtocol):
    """One UDP port."""

    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[object, ...]) -> None:
        self.transport.sendto(said(self.name, peer) + data, peer)


def said(name: str, peer: tuple[object, ...]) -> bytes:
    """What stands before the message; an IPv6 peer has a flow label and a scope too."""
    return f"{name} {peer[0]} {peer[1]} ".encode()


def datagrams_at(address: str, port: int) -> socket.socket:
    """A UDP socket of the address's family, and of no other."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
    made.bind((address, port))
    return made


async def serve(name: str, ports: list[int]) -> None:
    """Answer at all ports, for ever."""
    loop = asyncio.get_running_loop()
    for port in ports:
        for address in ANY if socket.has_dualstack_ipv6() else ANY[:1]:
            await loop.create_server(lambda: Lines(name), address, port, backlog=BACKLOG)
            await loop.create_datagram_endpoint(lambda: Datagrams(name), sock=datagrams_at(address, port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
