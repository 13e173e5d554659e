"""What Kubernetes means by a Service and its endpoints, as plain data: no files, no kernel, no decisions.

`pydatapath.schema` makes these objects from manifests, `plan` turns them into what the kernel is told. The words are
Kubernetes' own; the rule numbers (S1, S15...) are those of the project's table of service semantics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = [
    "AddressType",
    "AffinityScope",
    "Algorithm",
    "Backend",
    "BackendState",
    "Endpoint",
    "EndpointPort",
    "EndpointSlice",
    "Manifested",
    "Node",
    "Policy",
    "Protocol",
    "Service",
    "ServicePort",
    "ServiceType",
]

Protocol = Literal["TCP", "UDP", "SCTP"]
ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]
AddressType = Literal["IPv4", "IPv6", "FQDN"]
Policy = Literal["Cluster", "Local"]
Algorithm = Literal["random", "maglev"]
AffinityScope = Literal["port", "service"]
BackendState = Literal["active", "draining", "terminating", "gone"]


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of Service.spec.ports: a port that clients call. Ports are independent of each other (S13, S14).

    `name` is "" for the only port of a service. `target_port` is shown to people and never read by the datapath,
    which takes the number of the slice (S11); None means the same number as `port`. Numbers are in host order.
    """

    name: str
    protocol: Protocol
    port: int
    target_port: int | str | None = None
    node_port: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A v1 Service. Addresses are in their canonical form, so equal addresses are equal strings.

    `cluster_ips` is empty for a headless service, `load_balancer_ips` are the ingress addresses of mode VIP (S59, S60).
    `proxied` says whether there is anything to do for it: it has a ClusterIP, is not headless, not an ExternalName and
    not handed to another proxy by label (S1 to S4). `external_policy` and `internal_policy` say whose endpoints serve:
    all nodes' or only this one's; the first is Cluster where it does not count (S71). `affinity` is how many seconds a
    client keeps its backend, 0 for no affinity (S73); `affinity_scope` says whether for each port or for all of them
    together (C11). `source_ranges` are the networks that may call the load
    balancer's addresses (S62), canonical; without any all may. `health_check_node_port` is None where nobody listens
    there (S80, S82). `algorithm` is how new flows are shared among the backends, None where the service does not say.
    `manifest` is the document it came from, without what only the API server writes; two services are unchanged when
    their manifests are equal.
    """

    namespace: str
    name: str
    type: ServiceType = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    proxied: bool = True
    external_policy: Policy = "Cluster"
    internal_policy: Policy = "Cluster"
    affinity: int = 0
    affinity_scope: AffinityScope = "port"
    source_ranges: tuple[str, ...] = ()
    health_check_node_port: int | None = None
    algorithm: Algorithm | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """`namespace/name`, what a service is called everywhere."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """One entry of EndpointSlice.ports; `port` is None where the slice has no number, or 0 (S15)."""

    name: str
    protocol: Protocol
    port: int | None


class Endpoint(NamedTuple):
    """One entry of EndpointSlice.endpoints, with the conditions that a missing field means (S19).

    `node_name` is None where the slice does not say: such an endpoint is remote (S27). `target_name` is the name of
    the pod behind it, for people. `zone` is where it is, None where the slice does not say; `for_zones` and
    `for_nodes` are the hints: who is advised to call it (S84). `weight` is its share of the new flows beside others';
    with 0 it drains: it gets none and keeps those that it has (C12).
    """

    addresses: tuple[str, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str | None = None
    target_name: str | None = None
    zone: str | None = None
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()
    weight: int = 1

    @property
    def address(self) -> str:
        """The only address that is used: the first (S16)."""
        return self.addresses[0]


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A discovery.k8s.io/v1 EndpointSlice: endpoints of one address family that serve the same ports.

    `service` is the label kubernetes.io/service-name, None where it is missing or empty. `headless` is the presence of
    the label service.kubernetes.io/headless, which hides the slice from every proxy (S5). `manifest` as in Service.
    """

    namespace: str
    name: str
    service: str | None
    address_type: AddressType
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    headless: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """`namespace/name` of the slice itself."""
        return f"{self.namespace}/{self.name}"

    @property
    def service_key(self) -> str | None:
        """`namespace/name` of the service it belongs to, by label alone: the owner is not looked at (S6)."""
        return None if self.service is None else f"{self.namespace}/{self.service}"

    @property
    def proxied(self) -> bool:
        """Whether its endpoints can serve: it names a service, holds addresses, and is not hidden (S5, S6)."""
        return self.service is not None and self.address_type != "FQDN" and not self.headless

    @property
    def family(self) -> Literal[4, 6] | None:
        """The IP version of its addresses; None for names (FQDN)."""
        if self.address_type == "FQDN":
            return None
        return 4 if self.address_type == "IPv4" else 6

    @property
    def numbered_ports(self) -> tuple[EndpointPort, ...]:
        """The ports that count: a port without a number, or with 0, is ignored (S15)."""
        return tuple(port for port in self.ports if port.port)


@dataclass(frozen=True, slots=True)
class Node:
    """A v1 Node: a machine of the cluster. No namespace holds it.

    `pod_cidrs` are the networks of its pods, `internal_ips` and `external_ips` its own addresses, all canonical; `zone`
    is its label topology.kubernetes.io/zone, "" without. `manifest` as in Service; of its status it has the addresses.
    """

    name: str
    pod_cidrs: tuple[str, ...] = ()
    internal_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    zone: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def namespace(self) -> Literal[""]:
        """None."""
        return ""

    @property
    def key(self) -> str:
        """Its name."""
        return self.name


Manifested: TypeAlias = Service | EndpointSlice | Node
"""What a manifest describes."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One endpoint behind one port of a service, as `service list -o json` shows it.

    `address` and `port` are where packets go (host order); `node` and `name` are what the slice says of it, None where
    it says nothing; `local` means on this node; `flows` is the number of flows that it has now.
    """

    address: str
    port: int
    protocol: Protocol
    node: str | None = None
    name: str | None = None
    local: bool = False
    state: BackendState = "active"
    flows: int = 0
