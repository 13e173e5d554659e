"""Datagram servers that say who they are: `python backends.py ADDRESS[,...] PORT`, one at each address of this host."""

from __future__ import annotations

import selectors
import socket
import sys


def main() -> None:
    """Until a signal ends it."""
    wanted = selectors.DefaultSelector()
    for address in sys.argv[1].split(","):
        this = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        this.bind((address, int(sys.argv[2])))
        wanted.register(this, selectors.EVENT_READ, address.encode())
    while True:
        for key, _ in wanted.select():
            own = key.fileobj
            assert isinstance(own, socket.socket)
            own.sendto(key.data, own.recvfrom(64)[1])


if __name__ == "__main__":
    main()
