"""What a host's network looks like: interfaces, addresses, the default routes, who is behind a bridge.

Everything here looks at the namespace that the calling thread is in.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface
from typing import Final

from pydatapath.errors import NotFound
from pydatapath.kernel import between, rtnetlink
from pydatapath.kernel.between import Between
from pydatapath.kernel.gateway import ROUTE_PROTOCOL, SERVICE_GATEWAY_MAC

__all__ = ["Host", "Interface", "Neighbour", "Trait", "service_gateways", "service_routes", "survey"]

AF_BRIDGE = 7
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x01, 0x08, 0x20  # include/uapi/linux/if_addr.h
ETH_ALEN = 6  # include/uapi/linux/if_ether.h
LOOPBACK_INDEX = 1  # in every namespace (net/core/dev.c)
RT_TABLE_MAIN = 254
NUD_PERMANENT = 0x80
NUD_VALID = 0xDE  # include/net/neighbour.h: permanent, noarp, reachable, probe, stale, delay
# include/uapi/linux/if_link.h
IFLA_BR_VLAN_FILTERING, IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES = 7, 36, 37
IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LOCKED = 33, 39
PAIRS: Final = ("veth", "netkit")  # what has another end, to which redirect_peer hands packets over


class Trait(Enum):
    """What of an interface matters to who would pass a bridge by."""

    PAIRED_OUTWARDS = auto()  # its other end is in another namespace
    VLAN_FILTERING = auto()  # a bridge that lets no frame pass between VLANs
    CALLS_NETFILTER = auto()  # a bridge that shows what crosses it to iptables, whatever the sysctls say
    ISOLATED = auto()  # a port that may not talk to other isolated ones
    LOCKED = auto()  # a port by which nobody may talk who is not known


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
    traits: frozenset[Trait] = frozenset()

    @property
    def has_ethernet(self) -> bool:
        """Whether its frames have an Ethernet header: wg, tun and ppp have no MAC, tunnels an IP address as theirs, and
        xfrm has one without such headers.
        """
        return len(self.mac.split(":")) == ETH_ALEN and self.kind != "xfrm"


@dataclass(frozen=True)
class Neighbour:
    """Who was seen behind a bridge: an address, its MAC, and the port's index."""

    address: IPv4Address | IPv6Address
    mac: str
    port: int


@dataclass(frozen=True)
class Host:
    """One look at a namespace. `between`: what may stand between pods; empty where it was not looked for."""

    interfaces: tuple[Interface, ...]
    default_interfaces: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    between: tuple[Between, ...] = ()

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


def survey(*, between_pods: bool = False) -> Host:
    """Looks around once, in some milliseconds; also for what stands between pods, where that matters."""
    addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
    for index, address in [*_addresses(), *_addresses6()]:
        addresses.setdefault(index, []).append(address)
    interfaces = tuple(
        Interface(one.index, one.name, one.kind, one.mac, one.master, tuple(addresses.get(one.index, ())), _traits(one))
        for one in rtnetlink.links()
    )
    names = {one.index: one.name for one in interfaces}
    defaults = [
        names[route.interface]
        for family in FAMILIES
        for route in rtnetlink.routes(family)
        if route.unicast and route.table == RT_TABLE_MAIN and not route.network.prefixlen and route.interface in names
    ]
    stands = between.between_pods() if between_pods else ()
    return Host(interfaces, tuple(dict.fromkeys(defaults)), tuple(_neighbours()), stands)


def _traits(link: rtnetlink.Link) -> frozenset[Trait]:
    def of(options: Mapping[int, bytes], *names: int) -> bool:
        return any(any(options.get(name, b"")) for name in names)

    bridge = link.options if link.kind == "bridge" else {}
    found = {
        Trait.PAIRED_OUTWARDS: link.kind in PAIRS and link.leads_out,
        Trait.VLAN_FILTERING: of(bridge, IFLA_BR_VLAN_FILTERING),
        Trait.CALLS_NETFILTER: of(bridge, IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES),
        Trait.ISOLATED: of(link.port_options, IFLA_BRPORT_ISOLATED),
        Trait.LOCKED: of(link.port_options, IFLA_BRPORT_LOCKED),
    }
    return frozenset(trait for trait, has in found.items() if has)


def service_routes() -> set[tuple[IPv4Network | IPv6Network, int]]:
    """The routes that are ours: where to, and over which interface (its index)."""
    found = (one for family in FAMILIES for one in rtnetlink.routes(family))
    return {(one.network, one.interface) for one in found if one.protocol == ROUTE_PROTOCOL}


def service_gateways() -> set[tuple[IPv4Address | IPv6Address, int]]:
    """The next hops of those that are permanent neighbours at the right MAC, and at which interface (its index)."""
    found = (one for family in FAMILIES for one in rtnetlink.neighbours(family))
    return {
        (one.address, one.interface)
        for one in found
        if one.address and one.mac == SERVICE_GATEWAY_MAC and one.state & NUD_PERMANENT
    }


def _addresses() -> list[tuple[int, IPv4Interface | IPv6Interface]]:
    """The IPv4 addresses, each with its interface's index."""
    return [(one.index, ip_interface((one.address, one.length))) for one in rtnetlink.addresses(socket.AF_INET)]


def _addresses6() -> list[tuple[int, IPv4Interface | IPv6Interface]]:
    """The IPv6 addresses but those of link scope, the lasting ones first, of these the oldest: the kernel lists the
    newest first (ipv6_link_dev_addr in net/ipv6/addrconf.c).
    """
    found = [
        (bool(one.flags & (IFA_F_TEMPORARY | IFA_F_DEPRECATED)), one.index, ip_interface((one.address, one.length)))
        for one in reversed(rtnetlink.addresses(socket.AF_INET6))
        if not one.address.is_link_local and not one.flags & IFA_F_DADFAILED
    ]
    return [(index, address) for _, index, address in sorted(found, key=lambda one: one[0])]


def _neighbours() -> list[Neighbour]:
    """The neighbour table says which MAC has an address, the bridge's own table behind which port the MAC is."""
    ports = {
        one.mac: one.interface
        for one in rtnetlink.neighbours(AF_BRIDGE)
        if one.master and not one.state & NUD_PERMANENT  # the ports' own MACs
    }
    return [
        Neighbour(one.address, one.mac, ports[one.mac])
        for family in FAMILIES
        for one in rtnetlink.neighbours(family)
        if one.address and one.mac in ports and one.state & NUD_VALID
    ]
