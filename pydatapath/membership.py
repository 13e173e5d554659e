"""Which networks and addresses are the cluster's, as its Node objects tell: pure.

What this node's own configuration says of that (--pod-cidr, --cluster-cidr) is compiled into the programs; this
comes and goes with objects, and stands in the maps `networks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, TypeAlias

from pydatapath.errors import ManifestError
from pydatapath.kernel.layout import Family, MemberKind
from pydatapath.model import Node

__all__ = ["MemberChange", "Members", "check", "claims", "kind_of", "member_change", "members_of", "shown"]

# Networks in their canonical form, an address being one of its whole length, each with what it is
Members: TypeAlias = Mapping[str, MemberKind]
_WHOLE: Final = {Family.IPV4: 32, Family.IPV6: 128}


@dataclass(frozen=True, slots=True)
class MemberChange:
    """What is written, then what is removed: a node that gets another address is in the cluster all the time."""

    written: Members = field(default_factory=dict)
    removed: frozenset[str] = frozenset()


def members_of(node: Node) -> dict[str, MemberKind]:
    """What one node brings: the networks of its pods, and its own addresses."""
    own = (f"{address}/{_WHOLE[Family.of(address)]}" for address in (*node.internal_ips, *node.external_ips))
    return dict.fromkeys(node.pod_cidrs, MemberKind.PODS) | dict.fromkeys(own, MemberKind.NODE)


def check(node: Node, service_networks: Iterable[str]) -> None:
    """Raises ManifestError where a node is in a service network: `load` refuses that of this node, too."""
    for service in map(ip_network, service_networks):
        for member in members_of(node):
            if ip_network(member).overlaps(service):
                error = ManifestError(
                    f"Node {node.name}: {shown(member)} overlaps the service network {service}",
                    hint="`pydatapath load --service-cidr` names another one",
                )
                error.key = ("Node", "", node.name)
                raise error


def claims(node: Node, member: str) -> bool:
    """Whether a node says that this is its own alone. Several may have one ExternalIP, behind which all are."""
    return member in node.pod_cidrs or shown(member) in node.internal_ips


def shown(member: str) -> str:
    """A network, or the address that it is."""
    address, _, length = member.partition("/")
    return address if int(length) == _WHOLE[Family.of(address)] else member


def kind_of(kinds: Iterable[MemberKind]) -> MemberKind:
    """What a network is that several nodes have: where one of them says that it is an address of its own, that."""
    return max(kinds)


def member_change(before: Members, after: Members) -> MemberChange:
    """From what there is to what there shall be."""
    written = {network: kind for network, kind in after.items() if before.get(network) != kind}
    return MemberChange(written, frozenset(before.keys() - after.keys()))
