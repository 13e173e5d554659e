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
    "choose",
    "is_wanted",
    "port_range",
    "read_addresses",
]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

NAT_TYPES: Final = {one.name.lower().replace("_", "-"): one for one in NatType}
UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
MOST: Final = 65_535


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


@dataclass(frozen=True)
class Masquerade:
    """How what leaves the cluster is hidden: the behaviour, the ports, and those that node ports keep (N19)."""

    type: NatType
    ports: tuple[int, int]
    node_ports: tuple[int, int]


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
    if not (dash and all(part.isascii() and part.isdecimal() for part in (first, last))):
        raise DatapathError(f"{option} {text!r} is no range of ports", hint="such as 1024-65535")
    ends = int(first), int(last)
    if not 1 <= ends[0] < ends[1] <= MOST:
        raise DatapathError(
            f"{option} {text!r} is no range of ports", hint=f"the first is less than the last, both from 1 to {MOST}"
        )
    return ends


def is_wanted(said: bool | None, named: Sequence[EgressAddress]) -> bool:
    """Whether a family's pods are hidden: as said, or where an address is named for it.

    Not by itself while other nodes are not known: they, and without --cluster-cidr pods there, would see the node.
    """
    if said is not None:
        if named and not said:
            raise DatapathError(
                f"--snat-address {named[0]} says behind what pods leave, and --no-masquerade that they do not",
                hint="leave one of them out",
            )
        return said
    return bool(named)


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
