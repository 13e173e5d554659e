"""What a host's network looks like: interfaces, addresses, the default route, who is behind a bridge.

Everything here looks at the namespace that the calling thread is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pydatapath.errors import NotFound

__all__ = ["Host", "Interface", "Neighbour", "survey"]

AF_BRIDGE = 7
AF_INET = 2
NUD_VALID = 0xDE  # include/net/neighbour.h: permanent, noarp, reachable, probe, stale, delay


@dataclass(frozen=True)
class Interface:
    """One interface. `master` is the index of the bridge that it is a port of, 0 for none."""

    index: int
    name: str
    kind: str
    mac: str
    master: int
    addresses: tuple[IPv4Interface, ...]


@dataclass(frozen=True)
class Neighbour:
    """Who was seen behind a bridge: an address, its MAC, and the port's index."""

    address: IPv4Address
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
    def addresses(self) -> list[IPv4Address]:
        """All of the host's own addresses but loopback's."""
        return [address.ip for one in self.interfaces for address in one.addresses if not address.ip.is_loopback]


def survey() -> Host:
    """Looks around once."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        addresses: dict[int, list[IPv4Interface]] = {}
        for message in ipr.get_addr(family=AF_INET):
            local = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            addresses.setdefault(message["index"], []).append(IPv4Interface(f"{local}/{message['prefixlen']}"))
        interfaces = tuple(_interface(message, addresses) for message in ipr.get_links())
        names = {one.index: one.name for one in interfaces}
        defaults = [
            names[message.get("RTA_OIF")]
            for message in ipr.get_default_routes(family=AF_INET)
            if message.get("RTA_OIF") in names
        ]
        return Host(interfaces, tuple(dict.fromkeys(defaults)), tuple(_neighbours(ipr)))


def _interface(message: Any, addresses: dict[int, list[IPv4Interface]]) -> Interface:
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
    for message in ipr.get_neighbours(family=AF_INET):
        mac = message.get("NDA_LLADDR")
        if mac in ports and message["state"] & NUD_VALID:
            found.append(Neighbour(IPv4Address(message.get("NDA_DST")), mac, ports[mac]))
    return found
