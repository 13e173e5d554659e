"""Which endpoints serve a service port, seen from one node: readiness, locality and hints, as pure functions.

Rule numbers (S11...) are those of the project's table of service semantics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pydatapath.kernel.layout import Family
from pydatapath.model import Algorithm, Endpoint, EndpointSlice, Protocol, Service, ServicePort

__all__ = [
    "Address",
    "Here",
    "Located",
    "cluster_set",
    "draining",
    "families_of",
    "known_endpoints",
    "local_set",
    "slices_of",
    "used_endpoints",
]


class Address(NamedTuple):
    """Where something is called or listens: an address as canonical text, port in host order."""

    address: str
    port: int
    protocol: Protocol

    @property
    def family(self) -> Family:
        """Its IP version."""
        return Family.IPV6 if ":" in self.address else Family.IPV4  # as Family.of, which is asked a million times here

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.family is Family.IPV6 else self.address
        return f"{host}:{self.port}/{self.protocol.lower()}"


@dataclass(frozen=True, slots=True)
class Here:
    """The node that is planned for: its name as EndpointSlices say it, the addresses where its node ports answer (S46),
    and its zone, "" where that is not known; how services that do not say share their new flows; and the families that
    are loaded.
    """

    name: str
    addresses: tuple[str, ...] = ()
    zone: str = ""
    algorithm: Algorithm = "random"
    families: tuple[Family, ...] = (Family.IPV4,)


# An endpoint, and the address that it has behind the service port in question
Located = tuple[Address, Endpoint]


def families_of(service: Service, here: Here) -> list[Family]:
    """The families in which a service is there: it has a ClusterIP of them (S7), and this node has them loaded."""
    return [family for family in here.families if family in map(Family.of, service.cluster_ips)]


def slices_of(slices: Iterable[EndpointSlice], family: Family) -> list[EndpointSlice]:
    """Those that count in a family: it has its own (S8)."""
    return [one for one in slices if one.proxied and one.family == family]


def known_endpoints(port: ServicePort, slices: Iterable[EndpointSlice]) -> list[Located]:
    """The endpoints behind a service port in the order of their addresses, whether they serve or not.

    Of one address and port in several slices a record that is not terminating wins, else the last one (S17).
    """
    # The slices' ports with the same name and protocol (S11), whatever their number (S12), if they have one (S15)
    wanted = (port.name, port.protocol)
    numbered = [(one, own.port) for one in slices for own in one.numbered_ports if (own.name, own.protocol) == wanted]
    known: dict[Address, Endpoint] = {}
    for one, number in numbered:
        for endpoint in one.endpoints:
            address = Address(endpoint.addresses[0], number or 0, port.protocol)
            if address not in known or known[address].terminating or not endpoint.terminating:
                known[address] = endpoint
    return [(address, known[address]) for address in sorted(known)]


def cluster_set(known: Iterable[Located], here: Here) -> list[Located]:
    """The ready endpoints (S20), all or those that hints mean for this node (S84); else those that serve while they
    terminate, hints or not (S21, S87). One that drains is as if it were not there (C12).
    """
    known = _taking(known)
    ready = [(address, endpoint) for address, endpoint in known if endpoint.ready]
    return _hinted(ready, here) if ready else _ending(known)


def local_set(known: Iterable[Located], here: Here) -> list[Located]:
    """The ready endpoints on this node (S23), else those on it that serve while they terminate (S24).

    Being here is the same nodeName, nothing else (S27). Hints do not count (S87), nor does one that drains (C12).
    """
    own = [(address, endpoint) for address, endpoint in _taking(known) if endpoint.node_name == here.name]
    return [(address, endpoint) for address, endpoint in own if endpoint.ready] or _ending(own)


def draining(known: Iterable[Located]) -> list[Located]:
    """The endpoints that could serve and take no new flows, because their weight is 0 (C12)."""
    found = [(address, endpoint) for address, endpoint in known if not endpoint.weight]
    return [(address, one) for address, one in found if one.ready or (one.serving and one.terminating)]


def resting(known: Iterable[Located], used: Collection[Address]) -> list[Address]:
    """The endpoints that serve but take no new flows: in none of the sets that are used, for their weight, a hint, a
    policy, or because they end while others are ready. They keep the flows that they have (S90, S94).
    """
    serving = [address for address, one in known if one.ready or (one.serving and one.terminating)]
    return [address for address in serving if address not in used]


def used_endpoints(service: Service, port: ServicePort, slices: Iterable[EndpointSlice], here: Here) -> list[Located]:
    """The endpoints that a port's policies may choose, by address: the Cluster set, and the Local one where it counts.

    The second may have more: one that is here and terminating, while others are ready elsewhere (S24). With them are
    those that drain. Each family is looked at alone (S8).
    """
    slices = list(slices)
    found: list[Located] = []
    for family in families_of(service, here):
        known = known_endpoints(port, slices_of(slices, family))
        used = dict(cluster_set(known, here)) | dict(draining(known))
        if "Local" in (service.internal_policy, service.external_policy):
            used |= dict(local_set(known, here))
        found += sorted(used.items(), key=lambda pair: pair[0])
    return found


def _taking(known: Iterable[Located]) -> list[Located]:
    return [(address, endpoint) for address, endpoint in known if endpoint.weight]


def _ending(known: Iterable[Located]) -> list[Located]:
    return [(address, endpoint) for address, endpoint in known if endpoint.serving and endpoint.terminating]


def _hinted(ready: list[Located], here: Here) -> list[Located]:
    """Those with a hint for this node, else for its zone: where every endpoint has such hints and one means it (S84).

    One without hints, or none that means this place, and all are used (S86).
    """
    if all(endpoint.for_nodes for _, endpoint in ready):
        near = [(address, endpoint) for address, endpoint in ready if here.name in endpoint.for_nodes]
        if near:
            return near
    if all(endpoint.for_zones for _, endpoint in ready):
        near = [(address, endpoint) for address, endpoint in ready if here.zone in endpoint.for_zones]
        if near:
            return near
    return ready
