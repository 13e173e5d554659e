"""Services made by hand: `service add` and `backend add`, `remove`, `drain` as edits of the same objects as manifests.

A service's hand-made backends live in slices of their own, one for each port number, because a slice holds one number
for each port name. Removing and draining look into every slice, so that backends of a manifest can be meant, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from pydatapath import schema
from pydatapath.annotations import weigh
from pydatapath.errors import Conflict, DatapathError, NotFound
from pydatapath.model import EndpointSlice, Service

__all__ = ["PortSpec", "add_backends", "drain_backend", "free_cluster_ip", "new_service", "remove_backend"]

MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
SERVICE_NAME: Final = "kubernetes.io/service-name"
BY_HAND: Final = "pydatapath"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port of a service made by hand: `http=80/tcp` and the port number that its backends listen at."""

    name: str
    protocol: str
    port: int
    target_port: int


def free_cluster_ip(networks: Iterable[str], used: set[str]) -> str:
    """The first address of the service networks that no service has. Raises DatapathError where all are taken."""
    for network in networks:
        if ":" in network:
            continue
        for address in IPv4Network(network, strict=False).hosts():
            if str(address) not in used:
                return str(address)
    raise DatapathError("no cluster IP is free in the service networks", hint="give one with --cluster-ip")


def new_service(namespace: str, name: str, cluster_ip: str, ports: Sequence[PortSpec]) -> Service:
    """A ClusterIP service. Raises ManifestError, as its manifest would."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ports": [
                {
                    **({"name": port.name} if port.name else {}),
                    "protocol": port.protocol,
                    "port": port.port,
                    "targetPort": port.target_port,
                }
                for port in ports
            ],
        },
    }
    made = schema.parse(manifest, "service add")
    assert isinstance(made, Service)
    return made


def add_backends(
    service: Service,
    slices: Sequence[EndpointSlice],
    backends: Iterable[tuple[str, int | None, str]],
    *,
    weight: int = 1,
) -> list[EndpointSlice]:
    """The slices that must be applied so that these serve, each (address, port, node), all with this weight.

    Port None is the target port, node "" is not known. One that drains takes new flows again.

    Raises Conflict where one serves already, DatapathError where the port does not say which service port is meant.
    """
    documents = {one.name: copy.deepcopy(dict(one.manifest)) for one in slices}
    changed: dict[str, None] = {}
    for address, port, node in backends:
        numbers = _target_numbers(service, port)
        there = [name for name, document in documents.items() if _has(document, address, numbers)]
        if there:
            if not all(_drains(slices, name, address) for name in there):
                raise Conflict(f"Service {service.key} has the backend {_text(address, port)} already")
            for name in there:
                weigh(documents[name], address, weight)
                changed[name] = None
            continue
        name = f"{service.name}-by-hand-{'-'.join(str(number) for number in numbers)}"
        document = documents.setdefault(name, _empty_slice(service, name, numbers))
        changed[name] = None
        document["endpoints"] = [
            *(document.get("endpoints") or []),
            {"addresses": [address], "conditions": {"ready": True}, **({"nodeName": node} if node else {})},
        ]
        weigh(document, address, weight)
    return [_parsed(documents[name]) for name in changed]


def remove_backend(
    service: Service, slices: Sequence[EndpointSlice], address: str, port: int | None
) -> tuple[list[EndpointSlice], list[EndpointSlice]]:
    """The slices to apply and the slices to delete so that this address no longer serves. Raises NotFound."""
    kept, emptied = [], []
    for one in _holding(service, slices, address, port):
        document = copy.deepcopy(dict(one.manifest))
        document["endpoints"] = [each for each in document["endpoints"] if each["addresses"][0] != address]
        weigh(document, address, 1)
        by_hand = document["metadata"].get("labels", {}).get(MANAGED_BY) == BY_HAND
        if by_hand and not document["endpoints"]:
            emptied.append(one)
        else:
            kept.append(_parsed(document))
    return kept, emptied


def drain_backend(
    service: Service, slices: Sequence[EndpointSlice], address: str, port: int | None
) -> list[EndpointSlice]:
    """The slices to apply so that this address takes no new flows and keeps those that it has. Raises NotFound."""
    drained = []
    for one in _holding(service, slices, address, port):
        document = copy.deepcopy(dict(one.manifest))
        weigh(document, address, 0)
        drained.append(_parsed(document))
    return drained


def _holding(
    service: Service, slices: Sequence[EndpointSlice], address: str, port: int | None
) -> Iterator[EndpointSlice]:
    """The slices that hold a backend, at this port number or (None) at any. Raises NotFound."""
    found = False
    for one in slices:
        numbers = {slice_port.port for slice_port in one.ports}
        if any(address == each.address for each in one.endpoints) and (port is None or port in numbers):
            found = True
            yield one
    if not found:
        raise NotFound(
            f"Service {service.key} has no backend {_text(address, port)}",
            hint=f"`pydatapath backend list {service.key}` shows those that it has",
        )


def _text(address: str, port: int | None) -> str:
    return address if port is None else f"{address}:{port}"


def _target_numbers(service: Service, port: int | None) -> list[int]:
    """The port numbers of a backend, one for each service port."""
    if port is not None:
        if len(service.ports) > 1:
            targets = [one.target_port if isinstance(one.target_port, int) else one.port for one in service.ports]
            if set(targets) != {port}:
                raise DatapathError(
                    f"Service {service.key} has several ports: {port} does not say which is meant",
                    hint="leave the port out, then each service port's own target port is taken",
                )
        return [port] * len(service.ports)
    return [one.target_port if isinstance(one.target_port, int) else one.port for one in service.ports]


def _drains(slices: Sequence[EndpointSlice], name: str, address: str) -> bool:
    return any(
        one.name == name and not each.weight for one in slices for each in one.endpoints if each.address == address
    )


def _has(document: dict[str, Any], address: str, numbers: Sequence[int]) -> bool:
    same_port = {port.get("port") for port in document.get("ports") or []} & set(numbers)
    return bool(same_port) and any(each["addresses"][0] == address for each in document.get("endpoints") or [])


def _empty_slice(service: Service, name: str, numbers: Sequence[int]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": service.namespace,
            "name": name,
            "labels": {SERVICE_NAME: service.name, MANAGED_BY: BY_HAND},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": port.name, "protocol": port.protocol, "port": number}
            for port, number in zip(service.ports, numbers, strict=True)
        ],
        "endpoints": [],
    }


def _parsed(document: dict[str, Any]) -> EndpointSlice:
    made = schema.parse(document, "backend add")
    assert isinstance(made, EndpointSlice)
    return made


def is_address(text: str) -> bool:
    """Whether this is an IPv4 address."""
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
