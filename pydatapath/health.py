"""What a balancer hears when it asks a node for a service's health: which services are asked, and the answers; pure.

A LoadBalancer with externalTrafficPolicy Local has a port where each node says whether it has endpoints of it, so that
the balancer sends its packets to such nodes only. Who listens there is another matter; words are kube-proxy's own.
Rule numbers (S80...) are those of the project's table of service semantics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydatapath.model import EndpointSlice, Service
from pydatapath.serving import Here, known_endpoints

__all__ = ["HealthAnswer", "HealthCheck", "health_check", "health_checks"]


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """An HTTP response, whatever the path that was asked for."""

    status: Literal[200, 503]
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The health of one service on one node, over one IP version: `port` is where it is asked for (host order),
    `endpoints` how many addresses here take its new flows.
    """

    namespace: str
    service: str
    port: int
    endpoints: int

    def answer(self, *, healthy: bool = True) -> HealthAnswer:
        """What is said; `healthy` is whether this node's datapath follows the changes of the cluster."""
        said = {
            "service": {"namespace": self.namespace, "name": self.service},
            "localEndpoints": self.endpoints,
            "serviceProxyHealthy": healthy,
        }
        headers = {
            "Content-Type": "application/json",
            "X-Content-Type-Options": "nosniff",
            "X-Load-Balancing-Endpoint-Weight": str(self.endpoints),
        }
        return HealthAnswer(200 if self.endpoints and healthy else 503, headers, json.dumps(said, indent="\t"))


def health_check(
    service: Service, slices: Iterable[EndpointSlice], here: Here, family: Literal[4, 6] = 4
) -> HealthCheck | None:
    """A service's health on a node; None where nobody asks for it: of another kind or policy, not served, or not of
    this IP version (S7, S82).

    Addresses are counted, not ports, and of those on this node the ready ones with a weight: who drains or terminates
    still serves, and shall get nothing new (S80, S81, C12).
    """
    families = {6 if ":" in address else 4 for address in service.cluster_ips}
    if service.health_check_node_port is None or not service.proxied or family not in families:
        return None
    own = [one for one in slices if one.proxied and one.family == family]
    counted = {
        at.address
        for port in service.ports
        for at, endpoint in known_endpoints(port, own)
        if endpoint.node_name == here.name and endpoint.ready and endpoint.weight
    }
    return HealthCheck(service.namespace, service.name, service.health_check_node_port, len(counted))


def health_checks(
    services: Iterable[tuple[Service, Iterable[EndpointSlice]]], here: Here, family: Literal[4, 6] = 4
) -> Iterator[HealthCheck]:
    """The health of all services that a node is asked for over one IP version, each with its slices."""
    for service, slices in services:
        if check := health_check(service, slices, here, family):
            yield check
