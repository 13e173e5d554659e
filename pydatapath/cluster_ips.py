"""Which ClusterIPs a service cannot have here, and what to say of a service that has none.

    Places(own, pod_networks).check(service)       raises ManifestError
    unserved(service)                              a sentence, or ""

An API server hands out ClusterIPs of the service network, where nobody else is. Here a manifest names them, and may
name anything.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from pydatapath.errors import ManifestError
from pydatapath.model import Service

__all__ = ["Places", "unserved"]

_HINT: Final = "a ClusterIP is nobody else's: take one of a service network (`pydatapath load --service-cidr`)"


class Places:
    """Where nodes and pods are: `own` are this node's addresses, canonical, `pod_networks` those of its pods."""

    def __init__(self, own: Collection[str], pod_networks: Collection[str]) -> None:
        self._own = frozenset(own)
        self._pods: dict[int, list[tuple[int, int, str]]] = {AF_INET: [], AF_INET6: []}
        for one in map(ip_network, pod_networks):
            family = AF_INET6 if one.version == 6 else AF_INET
            self._pods[family].append((int(one.network_address), int(one.netmask), str(one)))

    def check(self, service: Service) -> None:
        """Raises ManifestError where a ClusterIP is this node's address, or where its pods are."""
        for address in service.cluster_ips:
            if problem := self._problem(address):
                error = ManifestError(f"Service {service.key}: the ClusterIP {address} is {problem}", hint=_HINT)
                error.key = ("Service", service.namespace, service.name)
                raise error

    def _problem(self, address: str) -> str:
        if address in self._own:
            return "an address of this node"
        family = AF_INET6 if ":" in address else AF_INET
        # Ten thousand are looked at in an apply: the module ipaddress takes several times as long
        number = int.from_bytes(inet_pton(family, address), "big")
        for network, mask, text in self._pods[family]:
            if number & mask == network:
                return f"in the pod network {text}"
        return ""


def unserved(service: Service) -> str:
    """Of a service that gets its ClusterIP of an API server, and so has none here (S1); "" for all others."""
    if service.cluster_ips or service.type == "ExternalName":
        return ""
    spec = service.manifest.get("spec") or {}
    if spec.get("clusterIP") == "None" or spec.get("clusterIPs") == ["None"]:
        return ""  # headless (S3)
    return (
        f"Service {service.key}: it has no spec.clusterIP, and is not served: name an address of a service network, or"
        " make it by `pydatapath service add`, which finds one"
    )
