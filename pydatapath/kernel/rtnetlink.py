"""What rtnetlink tells, read without pyroute2: its import (150 ms) would cost `status` its speed. And `change`, for
several changes at once.

Everything here looks at the namespace that the calling thread is in. Numbers are those of include/uapi/linux:
netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from pydatapath.errors import KernelError

__all__ = [
    "Address",
    "Link",
    "Neighbour",
    "Route",
    "addresses",
    "attributes",
    "change",
    "dump",
    "links",
    "neighbours",
    "routes",
]

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR = 1, 4, 0x300, 0x10
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # include/uapi/asm-generic/socket.h; Python has no names for them
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
ANSWER_ROOM: Final = 2048  # bytes, as the kernel counts what it keeps for a receiver
DUMPS: Final = 50  # at most, one after the other
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 18, 22, 26, 30
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_LINK_NETNSID = 1, 3, 10, 18, 37
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA = 1, 2, 5
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
RTN_UNICAST = 1
ANYWHERE: Final[Mapping[int, IPv4Network | IPv6Network]] = {
    socket.AF_INET: ip_network("0.0.0.0/0"),
    socket.AF_INET6: ip_network("::/0"),
}

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxHiHBB")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `master` is the index of the bridge that it is a port of, 0 for none. `leads_out`: its other end is
    in another namespace. `options` are of its kind, `port_options` of a port of its master's kind, by their numbers.
    """

    index: int
    name: str
    kind: str
    mac: str
    master: int
    leads_out: bool = False
    options: Mapping[int, bytes] = field(default_factory=dict)
    port_options: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """An address that an interface has (its own, not its peer's), its prefix length, and IFA_F_ flags."""

    index: int
    address: IPv4Address | IPv6Address
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route with one way; `interface` is an index, 0 for none or several, `protocol` who made it."""

    network: IPv4Network | IPv6Network
    interface: int
    gateway: IPv4Address | IPv6Address | None
    table: int
    protocol: int
    unicast: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour entry, or (`address` None) one of a bridge's forwarding table; `state` is of NUD_ flags."""

    interface: int
    address: IPv4Address | IPv6Address | None
    mac: str
    master: int
    state: int


def links() -> list[Link]:
    """Every interface."""
    found = []
    for body, given in _messages(RTM_GETLINK, _IFINFO, socket.AF_UNSPEC):
        info = dict(attributes(given.get(IFLA_LINKINFO, b"")))
        found.append(
            Link(
                _IFINFO.unpack_from(body)[2],
                _text(given.get(IFLA_IFNAME, b"")),
                _text(info.get(IFLA_INFO_KIND, b"")),
                _mac(given.get(IFLA_ADDRESS, b"")),
                _number(given.get(IFLA_MASTER, b"")),
                IFLA_LINK_NETNSID in given,
                dict(attributes(info.get(IFLA_INFO_DATA, b""))),
                dict(attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))),
            )
        )
    return found


def addresses(family: int) -> list[Address]:
    """Every address of a family (socket.AF_INET or AF_INET6), as the kernel lists them."""
    found = []
    for body, given in _messages(RTM_GETADDR, _IFADDR, family):
        _, length, flags, _, index = _IFADDR.unpack_from(body)
        own = given.get(IFA_LOCAL) or given.get(IFA_ADDRESS)  # the latter is the other end's on a point-to-point link
        if own:
            found.append(Address(index, ip_address(own), length, _number(given.get(IFA_FLAGS, b"")) or flags))
    return found


def routes(family: int) -> list[Route]:
    """Every route of a family."""
    found = []
    for body, given in _messages(RTM_GETROUTE, _RTMSG, family):
        _, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
        to, by = given.get(RTA_DST), given.get(RTA_GATEWAY)
        found.append(
            Route(
                ip_network((to, length)) if to else ANYWHERE[family],
                _number(given.get(RTA_OIF, b"")),
                ip_address(by) if by else None,
                _number(given.get(RTA_TABLE, b"")) or table,
                protocol,
                kind == RTN_UNICAST,
            )
        )
    return found


def neighbours(family: int) -> list[Neighbour]:
    """The neighbour table of a family, or (AF_BRIDGE) the forwarding tables of bridges."""
    found = []
    for body, given in _messages(RTM_GETNEIGH, _NDMSG, family):
        _, _, index, state, _, _ = _NDMSG.unpack_from(body)
        at = given.get(NDA_DST) if family in ANYWHERE else None
        mac, master = _mac(given.get(NDA_LLADDR, b"")), _number(given.get(NDA_MASTER, b""))
        found.append(Neighbour(index, ip_address(at) if at else None, mac, master, state))
    return found


def _messages(request: int, head: struct.Struct, family: int) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """The messages of one dump, with their attributes, but for IPv4's with which a kernel without IPv6 answers."""
    for kind, body in dump(request, bytes([family]).ljust(head.size, b"\0")):
        if kind == request - 2 and (family == socket.AF_UNSPEC or body[0] == family):  # RTM_NEW... answers RTM_GET...
            yield body, dict(attributes(body[head.size :]))


def _number(raw: bytes) -> int:
    return struct.unpack("=I", raw)[0] if len(raw) == 4 else 0


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _mac(raw: bytes) -> str:
    return raw.hex(":") if raw else ""


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message, or of a nested one, each with its type."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def dump(request: int, body: bytes, *, protocol: int = socket.NETLINK_ROUTE) -> list[tuple[int, bytes]]:
    """The messages of one dump request, each with its type; `protocol`: another netlink's. Raises KernelError.

    It is asked for anew where something has changed while the kernel told it: what is there may be missing then.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as channel:
        return _ask(channel, request, body)


def _ask(channel: socket.socket, request: int, body: bytes) -> list[tuple[int, bytes]]:
    header = _HEADER.pack(_HEADER.size + len(body), request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    for _ in range(DUMPS):
        channel.send(header + body)
        found, interrupted = _answer(channel)
        if not interrupted:
            return found
    raise KernelError("the network changes faster than it can be read", errno=errno.EINTR, hint="try again")


def _answer(channel: socket.socket) -> tuple[list[tuple[int, bytes]], bool]:
    """One dump to its end, and whether a change has interrupted it."""
    found: list[tuple[int, bytes]] = []
    interrupted = False
    while True:
        data = channel.recv(1 << 17)
        while data:
            length, kind, flags, _, _ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            interrupted |= bool(flags & NLM_F_DUMP_INTR)
            if kind == NLMSG_DONE:
                return found, interrupted
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", message)[0]
                raise KernelError(f"reading the network failed: {os.strerror(code)}", errno=code)
            found.append((kind, message))


def change(messages: Sequence[bytes]) -> dict[int, int]:
    """Sends whole rtnetlink messages as one: the kernel has looked at all of them when this returns, also where the
    process is killed meanwhile. The errno of each that failed, by its number. Raises KernelError.

    No message is acknowledged but by its error, and that without the message: hundreds of whole answers would not fit
    where they are waited for.
    """
    if not messages:
        return {}  # the kernel would say ENODATA
    made = b"".join(_numbered(message, number) for number, message in enumerate(messages))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        try:
            channel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, max(2 * len(made), 1 << 18))
            channel.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, max(ANSWER_ROOM * len(messages), 1 << 18))
            channel.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            channel.send(made)
            return dict(_errors(channel))
        except OSError as error:
            code = error.errno or 0
            raise KernelError(f"changing the network failed: {os.strerror(code)}", errno=code) from error


def _numbered(message: bytes, number: int) -> bytes:
    """A message that can be told by its sequence number, and asks for no acknowledgement."""
    length, kind, flags, _, _ = _HEADER.unpack_from(message)
    body = message[_HEADER.size : length]
    return _HEADER.pack(length, kind, flags & ~NLM_F_ACK, number, 0) + body.ljust((len(body) + 3) & ~3, b"\0")


def _errors(channel: socket.socket) -> Iterator[tuple[int, int]]:
    """What has failed, each by its number, with its errno; rtnetlink answers before `send` returns."""
    with contextlib.suppress(BlockingIOError):
        while data := channel.recv(1 << 17, socket.MSG_DONTWAIT):
            while data:
                length, kind, _, number, _ = _HEADER.unpack_from(data)
                if kind == NLMSG_ERROR:
                    yield number, -struct.unpack_from("=i", data, _HEADER.size)[0]
                data = data[(length + 3) & ~3 :]
