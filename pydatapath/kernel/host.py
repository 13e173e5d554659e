"""What a host's network looks like: interfaces, addresses, the default routes, who is behind a bridge.

Everything here looks at the namespace that the calling thread is in.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any, Final

from pydatapath.errors import NotFound

__all__ = ["Host", "Interface", "Neighbour", "survey"]

AF_BRIDGE = 7
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x01, 0x08, 0x20  # include/uapi/linux/if_addr.h
LOOPBACK_INDEX = 1  # in every namespace (net/core/dev.c)
RTN_UNICAST = 1
NUD_VALID = 0xDE  # include/net/neighbour.h: permanent, noarp, reachable, probe, stale, delay


@dataclass(frozen=True)
class Interface:
    """One interface. `master` is the index of the bridge that it is a port of, 0 for none. `addresses` are of both
    families; those of link scope, which IPv6 gives to every interface, are not among them.
    """

    index: int
    name: str
    kind: str
    mac: str
    master: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


@dataclass(frozen=True)
class Neighbour:
    """Who was seen behind a bridge: an address, its MAC, and the port's index."""

    address: IPv4Address | IPv6Address
    mac: str
    port: int


@dataclass(frozen=True)
class Host:
    """One look at a namespace."""

    interfaces: tuple[Interface, ...]
    default_interfaces: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]

    def interface(self, name: str) -> Interface:
        """By name. Raises NotFound, naming those that there are."""
        for one in self.interfaces:
            if one.name == name:
                return one
        names = ", ".join(sorted(one.name for one in self.interfaces))
        raise NotFound(f"interface {name!r} does not exist", hint=f"there are: {names}")

    def ports(self, bridge: Interface) -> list[Interface]:
        """The ports of a bridge."""
        return [one for one in self.interfaces if one.master == bridge.index]

    @property
    def loopback(self) -> Interface | None:
        """`lo`, whatever it is called."""
        return next((one for one in self.interfaces if one.index == LOOPBACK_INDEX), None)

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        """All of the host's own addresses but loopback's."""
        return [address.ip for one in self.interfaces for address in one.addresses if not address.ip.is_loopback]


def survey() -> Host:
    """Looks around once."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
        found: list[tuple[int, IPv4Interface | IPv6Interface]] = [*_addresses(ipr), *_addresses6(ipr)]
        for index, address in found:
            addresses.setdefault(index, []).append(address)
        interfaces = tuple(_interface(message, addresses) for message in ipr.get_links())
        names = {one.index: one.name for one in interfaces}
        defaults = [
            names[message.get("RTA_OIF")]
            for family in FAMILIES
            for message in _of(family, ipr.get_default_routes(family=family))
            if message.get("RTA_OIF") in names and message["type"] == RTN_UNICAST
        ]
        return Host(interfaces, tuple(dict.fromkeys(defaults)), tuple(_neighbours(ipr)))


def _of(family: int, messages: Iterable[Any]) -> Iterator[Any]:
    """Those of a family: a kernel without IPv6 answers with IPv4's where it is asked for them."""
    return (message for message in messages if message["family"] == family)


def _addresses(ipr: Any) -> list[tuple[int, IPv4Interface]]:
    """The IPv4 addresses, each with its interface's index."""
    messages = _of(socket.AF_INET, ipr.get_addr(family=socket.AF_INET))
    return [(one["index"], IPv4Interface(f"{_local(one)}/{one['prefixlen']}")) for one in messages]


def _addresses6(ipr: Any) -> list[tuple[int, IPv6Interface]]:
    """The IPv6 addresses but those of link scope, the lasting ones first, of these the oldest: the kernel lists the
    newest first (ipv6_link_dev_addr in net/ipv6/addrconf.c).
    """
    found = []
    for message in reversed(list(_of(socket.AF_INET6, ipr.get_addr(family=socket.AF_INET6)))):
        address = IPv6Interface(f"{_local(message)}/{message['prefixlen']}")
        flags = message.get("IFA_FLAGS") or message["flags"]
        if not address.ip.is_link_local and not flags & IFA_F_DADFAILED:
            found.append((bool(flags & (IFA_F_TEMPORARY | IFA_F_DEPRECATED)), message["index"], address))
    return [(index, address) for _, index, address in sorted(found, key=lambda one: one[0])]


def _local(message: Any) -> str:
    """The address itself: IFA_ADDRESS is the other end's on a point-to-point link."""
    return str(message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))


def _interface(message: Any, addresses: dict[int, list[IPv4Interface | IPv6Interface]]) -> Interface:
    index = message["index"]
    info = message.get("IFLA_LINKINFO")
    return Interface(
        index=index,
        name=message.get("IFLA_IFNAME"),
        kind=(info.get("IFLA_INFO_KIND") if info else None) or "",
        mac=message.get("IFLA_ADDRESS") or "",
        master=message.get("IFLA_MASTER") or 0,
        addresses=tuple(addresses.get(index, ())),
    )


def _neighbours(ipr: Any) -> list[Neighbour]:
    """The neighbour table says which MAC has an address, the bridge's own table behind which port the MAC is."""
    ports = {
        message.get("NDA_LLADDR"): message["ifindex"]
        for message in ipr.get_neighbours(family=AF_BRIDGE)
        if message.get("NDA_MASTER") and not message["state"] & 0x80  # permanent: the ports' own MACs
    }
    found = []
    for message in [one for family in FAMILIES for one in _of(family, ipr.get_neighbours(family=family))]:
        mac = message.get("NDA_LLADDR")
        if mac in ports and message["state"] & NUD_VALID:
            found.append(Neighbour(ip_address(message.get("NDA_DST")), mac, ports[mac]))
    return found
