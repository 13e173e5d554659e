"""Where a flood of datagrams ends: `python sink.py PORT MUTE_PORT`.

Nobody reads them, so that neither a reader nor the wake-up of its core is the bottleneck: the kernel counts what has
arrived. At PORT a few a second are answered, so that a connection tracker sees a conversation; at MUTE_PORT none.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time

ANSWER_EVERY_S = 0.02
ANSWERS = 4


def sink(port: int) -> socket.socket:
    """A socket with the smallest buffer there is."""
    this = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    this.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    this.bind(("", port))
    this.setblocking(False)
    return this


def main() -> None:
    """Until a signal ends it."""
    answering, _mute = (sink(int(port)) for port in sys.argv[1:3])
    while True:
        time.sleep(ANSWER_EVERY_S)
        with contextlib.suppress(OSError):  # nothing is there, or an ICMP error of who is gone
            for _ in range(ANSWERS):
                answering.sendto(b"", answering.recvfrom(1)[1])


if __name__ == "__main__":
    main()
