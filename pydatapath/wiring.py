"""What a node's datapath needs of its host, beside the programs themselves; and what programs are made for: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from typing import TYPE_CHECKING, Final

from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.kernel.layout import MAPS, Family, program_places
from pydatapath.kernel.nattable import is_there
from pydatapath.records import HostChange

if TYPE_CHECKING:
    from pydatapath.kernel.host import Interface
    from pydatapath.node import Network, Node

__all__ = [
    "ACCEPT_LOCAL",
    "accept_local",
    "facts_of",
    "gateway_of",
    "maps_of",
    "needed",
    "place_of",
    "places_of",
    "routes_of",
]

# The value of net.ipv4.conf.lo.accept_local that we need: answers for the node's own calls of its node ports come in by
# the loopback from an address of the node's own, which the kernel takes for forged otherwise (fib_validate_source)
ACCEPT_LOCAL: Final = "1"


def routes_of(node: Node) -> Iterator[tuple[Network, Interface]]:
    """The networks that the node reaches by the datapath, each with the bridge that the way leads over."""
    for bridge in node.bridges[:1]:
        for family, scope in node.scopes.items():
            if scope.service_networks:
                # The next hop is a source, too, where the node calls itself by a service: its answers go there
                for network in (*scope.service_networks, ip_network(SERVICE_GATEWAYS[family])):
                    yield network, bridge


def gateway_of(network: Network) -> IPv4Address | IPv6Address:
    """The next hop of a route to a network."""
    return SERVICE_GATEWAYS[Family(network.version)]


def accept_local(node: Node) -> str | None:
    """The sysctl that lets the answers for the node's own calls of its IPv4 node ports in; None where it has none."""
    if node.loopback is None or not node.scopes[Family.IPV4].node_port_addresses:
        return None
    return f"net/ipv4/conf/{node.loopback.name}/accept_local"


def needed(node: Node) -> dict[HostChange, Callable[[str], bool]]:
    """Whether a node needs what was done to the host, by kind and subject."""
    routes = list(routes_of(node))
    sysctl = accept_local(node)
    neighbours = {f"{bridge.name} {gateway_of(network)}" for network, bridge in routes}
    # Records of an earlier version, which knew IPv4 only, name the bridge alone
    neighbours |= {bridge.name for network, bridge in routes if isinstance(network, IPv4Network)}
    return {
        HostChange.CLSACT: {f"{one.interface.name} {one.interface.index}" for one in node.attachments}.__contains__,
        HostChange.ROUTE: {f"{network} {bridge.name}" for network, bridge in routes}.__contains__,
        HostChange.NEIGHBOUR: neighbours.__contains__,
        HostChange.SYSCTL: lambda subject: sysctl is not None and subject.startswith(f"{sysctl}="),
    }


def maps_of(node: Node) -> list[str]:
    """The names of the maps that there are."""
    return [name for name, contract in MAPS.items() if is_there(contract, node.families, node.masqueraded)]


def places_of(node: Node) -> dict[str, int]:
    """The programs that are reached by tail calls, each with its place in their array."""
    places = program_places(node.families, [one.hook for one in node.attachments])
    without = {f"nat{family.suffix}" for family in node.families if family not in node.masqueraded}
    return {name: place for name, place in places.items() if name not in without}


def facts_of(node: Node) -> dict[str, str]:
    """What of the host stands in the programs and in the plan, each fact by its name: where one is another, a load is
    due. What only options say is not among them.
    """
    hooks, path = dict.fromkeys(one.hook.program for one in node.attachments), node.fast_path
    return {
        "name": node.name,
        "first uplink": next((f"{one.name} ({one.index}, {one.mac})" for one in node.uplinks), "none"),
        "hooks": ", ".join(sorted(hooks)),
        **({} if path.asked == "never" else {"pod fast path": "on" if path.is_used else "off"}),
    } | {
        f"IPv{int(family)} {one.name.replace('_', ' ')}": _listed(getattr(scope, one.name))
        for family, scope in node.scopes.items()
        for one in fields(scope)
    }


def place_of(node: Node, algorithm: str) -> dict[str, object]:
    """What plans are made for, each fact by its name, as JSON has it (applying.here)."""
    return {
        "node_name": node.name,
        "node_port_addresses": [str(address) for address in node.node_port_addresses],
        "zone": node.zone,
        "algorithm": algorithm,
        "families": [int(family) for family in node.families],
        "masqueraded": [int(family) for family in node.masqueraded],
    }


def _listed(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
