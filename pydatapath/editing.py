"""Services made by hand: `service add` and `backend add`, `remove`, `drain` as edits of the same objects as manifests.

A service's hand-made backends live in slices of their own, one for each family and port number, because a slice holds
addresses of one family, and one number for each port name. Removing and draining look into every slice, so that
backends of a manifest can be meant, too.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from pydatapath import schema
from pydatapath.annotations import weigh
from pydatapath.errors import Conflict, DatapathError, NotFound
from pydatapath.fields import FieldError, unicast_of
from pydatapath.kernel.layout import Family
from pydatapath.model import EndpointSlice, Service

__all__ = [
    "PortSpec",
    "add_backends",
    "backend_text",
    "canonical",
    "cluster_ips_of",
    "drain_backend",
    "free_cluster_ip",
    "is_by_hand",
    "new_service",
    "remove_backend",
]

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


def cluster_ips_of(
    given: Sequence[str], families: Collection[Family], networks: Sequence[str], used: Collection[str]
) -> tuple[str, ...]:
    """The cluster IPs of a new service: those given, and a free one of each of the families that they have not.

    No family: those of the given addresses; without any, IPv4 alone, as Kubernetes has it (SingleStack), and IPv6 alone
    where no service network is IPv4. Raises DatapathError where one is given that is of none of the families.
    """
    given = [canonical(address) for address in given]
    own = [Family.of(address) for address in given]
    wanted = families or own or [_first_family(networks)]
    for address, family in zip(given, own, strict=True):
        if family not in wanted:
            raise DatapathError(
                f"the cluster IP {address} is of {_title(family)}, which is not asked for",
                hint="--ip-family dual asks for both families",
            )
    return (*given, *(free_cluster_ip(networks, used, family) for family in wanted if family not in own))


def _first_family(networks: Iterable[str]) -> Family:
    families = {Family.of(network) for network in networks}
    return Family.IPV6 if families == {Family.IPV6} else Family.IPV4


def free_cluster_ip(networks: Iterable[str], used: Collection[str], family: Family = Family.IPV4) -> str:
    """The first address of a family's service networks that no service has. Raises DatapathError for none."""
    own = [ip_network(network, strict=False) for network in networks if Family.of(network) is family]
    for network in own:
        for address in network.hosts():
            if str(address) not in used:
                return str(address)
    raise DatapathError(
        f"no cluster IP of {_title(family)} is free in the service networks"
        if own
        else f"no service network is of {_title(family)}",
        hint="give an address with --cluster-ip" if own else "`pydatapath load --service-cidr` names one",
    )


def new_service(namespace: str, name: str, cluster_ips: Sequence[str], ports: Sequence[PortSpec]) -> Service:
    """A ClusterIP service, of the families of its addresses. Raises ManifestError, as its manifest would."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ipFamilies": [_title(Family.of(address)) for address in cluster_ips],
            "ipFamilyPolicy": "SingleStack" if len(cluster_ips) == 1 else "RequireDualStack",
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


def is_by_hand(one: EndpointSlice) -> bool:
    """Whether `backend add` has made the slice."""
    labels: Mapping[str, str] = one.manifest["metadata"].get("labels", {})
    return labels.get(MANAGED_BY) == BY_HAND


def add_backends(
    service: Service,
    slices: Sequence[EndpointSlice],
    backends: Iterable[tuple[str, int | None, str]],
    *,
    weight: int = 1,
) -> list[EndpointSlice]:
    """The slices that must be applied so that these serve, each (address, port, node), all with this weight.

    Port None is the target port, node "" is not known. One that drains takes new flows again.

    Raises Conflict where one serves already, DatapathError where the port does not say which service port is meant, or
    the service has no cluster IP of the backend's family.
    """
    documents = {one.name: copy.deepcopy(dict(one.manifest)) for one in slices}
    changed: dict[str, None] = {}
    for text, port, node in backends:
        address = canonical(text)
        _check_family(service, address)
        numbers = _target_numbers(service, port)
        there = [name for name, document in documents.items() if _has(document, address, numbers)]
        if there:
            if not all(_drains(slices, name, address) for name in there):
                raise Conflict(f"Service {service.key} has the backend {backend_text(address, port)} already")
            for name in there:
                weigh(documents[name], address, weight)
                changed[name] = None
            continue
        fresh = _empty_slice(service, numbers, Family.of(address))
        name = fresh["metadata"]["name"]
        document = documents.setdefault(name, fresh)
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
    address = canonical(address)
    kept, emptied = [], []
    for one in _holding(service, slices, address, port):
        document = copy.deepcopy(dict(one.manifest))
        document["endpoints"] = [each for each in document["endpoints"] if not _is_at(each, address)]
        weigh(document, address, 1)
        if is_by_hand(one) and not document["endpoints"]:
            emptied.append(one)
        else:
            kept.append(_parsed(document))
    return kept, emptied


def drain_backend(
    service: Service, slices: Sequence[EndpointSlice], address: str, port: int | None
) -> list[EndpointSlice]:
    """The slices to apply so that this address takes no new flows and keeps those that it has. Raises NotFound."""
    address = canonical(address)
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
            f"Service {service.key} has no backend {backend_text(address, port)}",
            hint=f"`pydatapath backend list {service.key}` shows those that it has",
        )


def _check_family(service: Service, address: str) -> None:
    """Raises DatapathError where a backend would be of no use: each family is balanced among its own (S8)."""
    family = Family.of(address)
    if service.cluster_ips and family not in map(Family.of, service.cluster_ips):
        raise DatapathError(
            f"Service {service.key} has no cluster IP of {_title(family)}: the backend {address} would never be called",
            hint=f"a service gets one by --ip-family {_title(family).lower()} or dual, or by --cluster-ip",
        )


def _title(family: Family) -> str:
    """What Kubernetes calls a family."""
    return f"IPv{int(family)}"


def canonical(address: str) -> str:
    """An address as model objects have it; what no backend can have, as it is: making the object refuses it."""
    try:
        return unicast_of(address, "")
    except FieldError:
        return address


def backend_text(address: str, port: int | None) -> str:
    """A backend as it is typed: IPv6 with a port in brackets."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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
    return bool(same_port) and any(_is_at(each, address) for each in document.get("endpoints") or [])


def _is_at(endpoint: Mapping[str, Any], address: str) -> bool:
    """Whether an entry of a manifest's endpoints has this address, however it is spelled there."""
    return canonical(endpoint["addresses"][0]) == address


def _empty_slice(service: Service, numbers: Sequence[int], family: Family) -> dict[str, Any]:
    words = [service.name, "by-hand", *map(str, numbers), *(["ipv6"] if family is Family.IPV6 else [])]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": service.namespace,
            "name": "-".join(words),
            "labels": {SERVICE_NAME: service.name, MANAGED_BY: BY_HAND},
        },
        "addressType": _title(family),
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
