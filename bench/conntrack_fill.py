"""Fill this network namespace's table of connections by netlink: `python conntrack_fill.py COUNT`.

By packets it would take minutes; so it takes about two seconds for 100,000. They are UDP, answered, between addresses
that nobody has, and live for an hour. The layout: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

NETLINK_NETFILTER = 12
CT_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400 | 0x200
SECONDS = 3600
STATUS = 2 | 4 | 8  # SEEN_REPLY, ASSURED, CONFIRMED
AT_ONCE = 100
PORTS = 60_000


def attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    """struct nlattr, padded."""
    return struct.pack("=HH", 4 + len(value), kind | (0x8000 if nested else 0)) + value + bytes(-len(value) % 4)


def connection(source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    """CTA_TUPLE_IP and CTA_TUPLE_PROTO of UDP."""
    addresses = attribute(1, source) + attribute(2, destination)
    ports = attribute(1, b"\x11") + attribute(2, struct.pack("!H", sport)) + attribute(3, struct.pack("!H", dport))
    return attribute(1, addresses, nested=True) + attribute(2, ports, nested=True)


def message(number: int, flags: int) -> bytes:
    """One new connection: another one for each number."""
    client, server = (socket.inet_aton(f"172.16.{host}.{number // PORTS}") for host in (1, 2))
    sport = 1024 + number % PORTS
    body = struct.pack("!BBH", socket.AF_INET, 0, 0)
    body += attribute(1, connection(client, server, sport, 53), nested=True)
    body += attribute(2, connection(server, client, 53, sport), nested=True)
    body += attribute(3, struct.pack("!I", STATUS)) + attribute(7, struct.pack("!I", SECONDS))
    return struct.pack("=IHHII", 16 + len(body), CT_NEW, flags, number, 0) + body


def main() -> None:
    """Ends with a message of the kernel's error, where there is one."""
    count = int(sys.argv[1])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
        link.settimeout(10)
        for start in range(0, count, AT_ONCE):
            end = min(count, start + AT_ONCE)
            link.send(
                b"".join(message(one, REQUEST | CREATE | (ACK if one == end - 1 else 0)) for one in range(start, end))
            )
            code = -struct.unpack_from("=i", link.recv(65536), 16)[0]
            if code:
                sys.exit(f"the kernel refuses a connection: {os.strerror(code)}")


if __name__ == "__main__":
    main()
