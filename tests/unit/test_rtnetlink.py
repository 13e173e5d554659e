"""What the kernel tells in several parts, read from a socket that says what a kernel would."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import pytest

from pydatapath.errors import KernelError
from pydatapath.kernel import rtnetlink

HEADER = struct.Struct("=IHHII")
LINK, INTERRUPTED = 16, 0x10  # RTM_NEWLINK, NLM_F_DUMP_INTR


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A netlink message."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body


def asked(parts: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """What is read of these parts, each as the kernel would send it."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernels:
        for part in parts:
            kernels.send(part)
        kernels.shutdown(socket.SHUT_WR)
        return rtnetlink._ask(ours, rtnetlink.RTM_GETLINK, bytes(16))


DONE = message(rtnetlink.NLMSG_DONE, bytes(4))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first part", "second part", "end"])
def test_what_was_interrupted_is_asked_for_anew(place: int):
    """One interface was skipped where another went away: the answer without a mark counts."""
    flags = [INTERRUPTED * (place == number) for number in range(3)]
    broken = [
        message(LINK, b"lo--", flags[0]),
        message(LINK, b"eth1", flags[1]),
        message(rtnetlink.NLMSG_DONE, bytes(4), flags[2]),
    ]
    whole = [message(LINK, b"lo--") + message(LINK, b"eth0") + message(LINK, b"eth1"), DONE]
    assert asked([*broken, *whole]) == [(LINK, b"lo--"), (LINK, b"eth0"), (LINK, b"eth1")]


def test_what_never_comes_whole_is_an_error():
    """Better none than one that takes a pod for gone."""
    with pytest.raises(KernelError, match="the network changes faster than it can be read"):
        asked([message(LINK, b"eth0", INTERRUPTED) + DONE] * rtnetlink.DUMPS)
