"""Behind which of the node's addresses its pods leave the cluster, and how: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from pydatapath.errors import DatapathError
from pydatapath.kernel.host import Interface
from pydatapath.kernel.layout import Family, NatType

__all__ = [
    "NAT_TYPES",
    "Egress",
    "EgressAddress",
    "Masquerade",
    "check_ports",
    "choose",
    "few_ports",
    "flow_rate",
    "is_wanted",
    "port_range",
    "read_addresses",
    "usable_ports",
]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

NAT_TYPES: Final = {one.name.lower().replace("_", "-"): one for one in NatType}
UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
MOST: Final = 65_535
# As nat.h has them (N19): VXLAN's two, Geneve's, WireGuard's; and those of DHCP's clients
RESERVED: Final = frozenset({4789, 8472, 6081, 51_820, 68, 546})
MOST_FLOWS, MOST_SECONDS = 100_000, 3_600  # as fine as nat.h's stamps are: a flow may cost 1/100 of a jiffy


@dataclass(frozen=True)
class EgressAddress:
    """An address that was named for pods to leave behind: those of one network, or (None) all of its family."""

    address: Address
    network: Network | None = None

    @property
    def version(self) -> int:
        """The number of its family."""
        return self.address.version

    def __str__(self) -> str:
        return f"{self.network}={self.address}" if self.network else str(self.address)


@dataclass(frozen=True)
class Egress:
    """The address behind which pods leave by an uplink (its interface's index); `network`: those pods only."""

    uplink: int
    address: Address
    network: Network | None = None

    def __str__(self) -> str:
        return f"{self.network or 'all'} by interface {self.uplink} as {self.address}"


@dataclass(frozen=True)
class Masquerade:
    """How what leaves the cluster is hidden: the behaviour, the ports, and those that node ports keep (N19).

    `pod_flows`: how many flows one pod may begin at once, and again in how many seconds (N24); None: any number.
    """

    type: NatType
    ports: tuple[int, int]
    node_ports: tuple[int, int]
    pod_flows: tuple[int, int] | None = None


def read_addresses(
    texts: Iterable[str],
    option: str,
    addresses: Callable[[tuple[str, ...], str], tuple[Address, ...]],
    networks: Callable[[tuple[str, ...], str], tuple[Network, ...]],
) -> tuple[EgressAddress, ...]:
    """Of the texts `[NETWORK=]ADDRESS`, by what reads either. Raises DatapathError."""
    found: list[EgressAddress] = []
    for text in texts:
        before, equals, after = text.rpartition("=")
        network = networks((before.strip(),), option)[0] if equals else None
        one = EgressAddress(addresses((after.strip(),), option)[0], network)
        if one.network and one.network.version != one.version:
            raise DatapathError(f"{option} {text!r} names pods of one family and an address of the other")
        for other in found:
            if (other.version, other.network) == (one.version, one.network):
                pods = f"the pods of {one.network}" if one.network else f"all pods of IPv{one.version}"
                raise DatapathError(
                    f"{option} names two addresses for {pods}: {other.address} and {one.address}",
                    hint="an uplink has one of them; POD-CIDR=ADDRESS gives some pods one of their own",
                )
        found.append(one)
    return tuple(found)


def port_range(text: str, option: str) -> tuple[int, int]:
    """The ends of `A-B`. Raises DatapathError."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not (dash and all(part.isascii() and part.isdecimal() and len(part) < 12 for part in (first, last))):
        raise DatapathError(f"{option} {text!r} is no range of ports", hint="such as 1024-65535")
    ends = int(first), int(last)
    if not 1 <= ends[0] < ends[1] <= MOST:
        raise DatapathError(
            f"{option} {text!r} is no range of ports", hint=f"the first is less than the last, both from 1 to {MOST}"
        )
    return ends


def usable_ports(ports: tuple[int, int], node_ports: tuple[int, int]) -> set[int]:
    """Those of a range that a pod's call may be given: no node port, tunnel's or DHCP's (N19)."""
    return {*range(ports[0], ports[1] + 1)} - {*range(node_ports[0], node_ports[1] + 1)} - RESERVED


def check_ports(how: Masquerade) -> None:
    """Raises DatapathError where no call could ever be given a port."""
    if not usable_ports(how.ports, how.node_ports):
        raise DatapathError(
            f"--snat-ports {_range(how.ports)}: all of these are node ports ({_range(how.node_ports)}) or tunnels'",
            hint="another range; --nodeport-range says what the API server gives to services",
        )


def few_ports(how: Masquerade) -> list[str]:
    """A sentence where most of a range may not be used: who asked for so many ports has far fewer."""
    asked, left = how.ports[1] - how.ports[0] + 1, len(usable_ports(how.ports, how.node_ports))
    if left * 2 >= asked:
        return []
    ports, node_ports = _range(how.ports), _range(how.node_ports)
    return [f"of the {asked:,} ports of --snat-ports {ports} only {left:,} may be used: node ports are {node_ports}"]


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}-{ends[1]}"


def flow_rate(text: str, option: str) -> tuple[int, int] | None:
    """The numbers of `FLOWS/SECONDS`; None of nothing. Raises DatapathError."""
    if not text:
        return None
    flows, slash, seconds = (part.strip() for part in text.partition("/"))
    if not (slash and all(part.isascii() and part.isdecimal() for part in (flows, seconds))):
        raise DatapathError(f"{option} {text!r} is no rate of flows", hint="FLOWS/SECONDS, such as 20000/120")
    found = int(flows), int(seconds)
    if not (1 <= found[0] <= MOST_FLOWS and 1 <= found[1] <= MOST_SECONDS):
        raise DatapathError(
            f"{option} {text!r} is no rate of flows",
            hint=f"from 1 to {MOST_FLOWS:,} flows in 1 to {MOST_SECONDS:,} seconds, such as 20000/120",
        )
    return found


def is_wanted(said: bool | None, named: Sequence[EgressAddress], cluster_cidr: Sequence[Network]) -> bool:
    """Whether a family's pods are hidden: as said, or where an address or the cluster's networks are named for it.

    Not by itself otherwise: it would not be known where other nodes' pods are, and these would see the node.
    """
    if said is not None:
        if named and not said:
            raise DatapathError(
                f"--snat-address {named[0]} says behind what pods leave, and --no-masquerade that they do not",
                hint="leave one of them out",
            )
        return said
    return bool(named or cluster_cidr)


def choose(
    uplinks: Sequence[Interface],
    pod_networks: Sequence[Network],
    node_addresses: Sequence[Address],
    named: Sequence[EgressAddress],
    host_addresses: Sequence[Address],
    family: Family,
) -> tuple[Egress, ...]:
    """One family's addresses, in the order in which they are to be looked at. Nothing without pods of the family.

    Raises DatapathError where a named one is not the host's, or its network has no pods of this node.
    """
    for one in named:
        _check(one, pod_networks, host_addresses)
    if not pod_networks:
        return ()
    return tuple(egress for uplink in uplinks for egress in _at(uplink, node_addresses, named, host_addresses, family))


def _check(one: EgressAddress, pod_networks: Sequence[Network], host_addresses: Sequence[Address]) -> None:
    if one.address not in host_addresses:
        raise DatapathError(
            f"--snat-address {one}: {one.address} is none of this host's addresses",
            hint="an answer to it would never come here; `ip address` lists those that it has",
        )
    if one.network and not any(_overlap(one.network, own) for own in pod_networks):
        raise DatapathError(
            f"--snat-address {one}: none of this node's pods is in {one.network}",
            hint=f"they are in {', '.join(map(str, pod_networks)) or 'no network of this family'}",
        )


def _at(
    uplink: Interface,
    node_addresses: Sequence[Address],
    named: Sequence[EgressAddress],
    host_addresses: Sequence[Address],
    family: Family,
) -> Iterator[Egress]:
    """What is named for some pods, the smallest network first, then for all, then the uplink's own."""
    narrow = sorted((one for one in named if one.network), key=lambda one: -_length(one))
    for one in narrow:
        yield Egress(uplink.index, one.address, one.network)
    wide = [one.address for one in named if one.network is None] or _own(uplink, node_addresses, host_addresses, family)
    for address in wide[:1]:
        yield Egress(uplink.index, address)


def _own(
    uplink: Interface, node_addresses: Sequence[Address], host_addresses: Sequence[Address], family: Family
) -> list[Address]:
    """The addresses of an uplink: the node's before others, global ones first; without any, the node's elsewhere."""
    there = [at.ip for at in uplink.addresses if at.version == family]
    found = [one for one in node_addresses if one in there] or there
    found = found or [one for one in node_addresses if one in host_addresses]
    return sorted(found, key=_is_unique_local)


def _length(one: EgressAddress) -> int:
    return one.network.prefixlen if one.network else 0


def _is_unique_local(one: Address | Network) -> bool:
    if isinstance(one, IPv6Network):
        return one.subnet_of(UNIQUE_LOCAL)
    return isinstance(one, IPv6Address) and one in UNIQUE_LOCAL


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (one.network_address in other or other.network_address in one)
