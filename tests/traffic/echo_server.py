"""A server that says who it is, whom it sees and what it got, over TCP and UDP at once.

    python -I -S echo_server.py NAME PORT...

A line or a datagram MESSAGE is answered with `NAME PEER_ADDRESS PEER_PORT MESSAGE`. One process serves thousands of
connections; it prints `ready` when all ports are open.
"""

from __future__ import annotations

import asyncio
import sys

ANY = "0.0.0.0"  # noqa: S104 - a pod is all there is
BACKLOG = 4096
RECEIVE_BUFFER = 4 << 20  # bytes: a burst of datagrams waits, it is not lost


class Lines(asyncio.Protocol):
    """One TCP connection: every line is answered, until the peer ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.prefix = "{} {} {} ".format(self.name, *transport.get_extra_info("peername")).encode()

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if lines:
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

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto("{} {} {} ".format(self.name, *peer).encode() + data, peer)


async def serve(name: str, ports: list[int]) -> None:
    """Answer at all ports, for ever."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Lines(name), ANY, port, backlog=BACKLOG)
        transport, _ = await loop.create_datagram_endpoint(lambda: Datagrams(name), (ANY, port))
        transport.get_extra_info("socket").setsockopt(1, 33, RECEIVE_BUFFER)  # SOL_SOCKET, SO_RCVBUFFORCE
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
