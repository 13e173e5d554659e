"""Kubernetes objects to model objects: what the API server checks and defaults, done here, since there may be none.

`checked` makes sure of plain JSON data, `build` makes the model object, `parse` is both. Each refusal is one
ManifestError, `file: Kind namespace/name: field.path: what is wrong`; nothing from the document reaches a message
unquoted unless its form has been checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any, Final, get_args

from pydatapath.annotations import algorithm_of, scope_of, weights_of
from pydatapath.errors import ManifestError
from pydatapath.fields import (
    LABEL,
    LABEL_VALUE,
    PORT_NAME,
    SERVICE_LABEL,
    SUBDOMAIN,
    FieldError,
    boolean_of,
    choice_of,
    items_of,
    map_of,
    maps_of,
    name_of,
    network_of,
    number_of,
    port_name_of,
    port_of,
    printable,
    show,
    string_of,
    strings_of,
    type_name,
    unicast_of,
)
from pydatapath.kinds import API_VERSIONS, is_namespaced, kind_of, title
from pydatapath.model import (
    AddressType,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Manifested,
    Node,
    Policy,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
)

__all__ = ["MAX_DEPTH", "build", "checked", "parse"]

MAX_DEPTH: Final = 64  # a Pod with every field set has 14 levels; custom resources stay under 40
SERVICE_NAME: Final = "kubernetes.io/service-name"
SERVICE_PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
HEADLESS: Final = "service.kubernetes.io/headless"
ZONE: Final = "topology.kubernetes.io/zone"
AFFINITY_SECONDS: Final = 10_800  # S73: the API's default, and its limit
MOST_AFFINITY_SECONDS: Final = 86_400

_PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
_SERVICE_TYPES: Final[tuple[ServiceType, ...]] = get_args(ServiceType)
_ADDRESS_TYPES: Final[tuple[AddressType, ...]] = get_args(AddressType)
_POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)

# Only the API server writes these; two documents that differ in nothing else say the same.
_SERVER_FIELDS: Final = frozenset(("managedFields", "resourceVersion", "uid", "selfLink", "generation"))
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def parse(document: object, source: str, at: str = "") -> Manifested:
    """The Service, EndpointSlice or Node that `document` describes, any other kind being an error.

    `document` is plain JSON data, `source` where it came from, for messages; `at` is the place in it (such as `:14`),
    told only where the object has no name to be found by.
    """
    where = f"{printable(source)}{at}"
    manifest = checked(document, where)
    kind = kind_of(manifest, where)
    if kind not in API_VERSIONS:
        raise ManifestError(f"{where}: {title(manifest)}: neither a Service, an EndpointSlice nor a Node")
    return build(manifest, kind, source, at)


def checked(document: object, where: str) -> dict[str, Any]:
    """`document` itself, which is a map of plain JSON data: what can be stored, compared and written back.

    A Python caller may hand over anything, and JSON's own parser lets lone surrogates and 10,000 levels through.
    """
    if type(document) is not dict:
        problem = f"a map with apiVersion, kind and metadata is expected, not {type_name(document)}"
        raise ManifestError(f"{where}: {problem}")
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: dict[int, Any] = {}  # by identity, so that a list that holds itself ends at MAX_DEPTH
        for node in level:
            if type(node) is dict:
                for key in node:
                    if type(key) is not str or (not key.isascii() and _scalar_problem(key)):
                        raise ManifestError(f"{where}: holds a key that is not plain text")
            for value in node.values() if type(node) is dict else node:
                kind = type(value)
                if kind is dict or kind is list:
                    below[id(value)] = value
                elif kind is str and value.isascii():
                    continue  # nearly all there is, and this function's price is paid for every object of an apply
                elif problem := _scalar_problem(value):
                    raise ManifestError(f"{where}: holds {problem}")
        if not below:
            return document
        level = list(below.values())
    raise ManifestError(f"{where}: is nested deeper than {MAX_DEPTH} levels")


def _scalar_problem(value: object) -> str:
    """Why `value` cannot stand in a manifest, or ""."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**64 else "a whole number of more than 64 bits"
    if isinstance(value, float):
        return "" if isfinite(value) else f"{value}, which is no number in JSON"
    if not isinstance(value, str):
        return f"{type_name(value)}, which JSON does not have"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"text that is no Unicode: {show(value)}"
    return ""


def build(document: dict[str, Any], kind: str, source: str, at: str = "") -> Manifested:
    """The model object of a document that is plain data and of a `kind` in API_VERSIONS; see `parse`."""
    subject = f"{printable(source)}{at}: {kind}"
    try:
        metadata = map_of(document, "metadata", "")
        held = is_namespaced(kind)
        namespace = name_of(metadata, "namespace", "metadata", LABEL, default="default") if held else ""
        name = name_of(metadata, "name", "metadata", SERVICE_LABEL if kind == "Service" else SUBDOMAIN)
        subject = (
            f"{printable(source)}: {kind} {namespace}/{name}" if namespace else f"{printable(source)}: {kind} {name}"
        )
        choice_of(document, "apiVersion", "", (API_VERSIONS[kind],), None)
        if not held:
            _refuse_namespace(metadata, kind)
        labels = strings_of(metadata, "labels", "metadata")
        annotations = strings_of(metadata, "annotations", "metadata")
        manifest = _manifest(document, kind, {**metadata, "namespace": namespace or None, "annotations": annotations})
        return _BUILDERS[kind](namespace, name, labels, manifest)
    except FieldError as error:
        raise ManifestError(f"{subject}: {error}") from None


def _refuse_namespace(metadata: Mapping[str, Any], kind: str) -> None:
    if string_of(metadata, "namespace", "metadata"):
        raise FieldError("metadata.namespace", f"no namespace holds a {kind}")


def _manifest(document: dict[str, Any], kind: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The document without what only the API server writes: equal manifests ask for the same."""
    annotations = {key: text for key, text in metadata.pop("annotations").items() if key != _LAST_APPLIED}
    kept = {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS and value is not None}
    manifest = {**document, "metadata": {**kept, "annotations": annotations} if annotations else kept}
    manifest.pop("status", None)
    if kind == "Service" and (balancer := map_of(document, "status", "").get("loadBalancer")):
        manifest["status"] = {"loadBalancer": balancer}  # S59: the LB IPs stand nowhere else
    # Beside these a node's heartbeat stands there, and is no change
    if kind == "Node" and (addresses := map_of(document, "status", "").get("addresses")):
        manifest["status"] = {"addresses": addresses}
    return manifest


# Service


def _service(namespace: str, name: str, labels: Mapping[str, str], manifest: dict[str, Any]) -> Service:
    spec = map_of(manifest, "spec", "")
    kind = choice_of(spec, "type", "spec", _SERVICE_TYPES, "ClusterIP")
    headless = spec.get("clusterIP") == "None" or spec.get("clusterIPs") == ["None"]  # S3
    cluster_ips = () if headless else _cluster_ips(spec)
    ports = tuple(_service_ports(spec, kind))
    if not ports and not headless and kind != "ExternalName":
        raise FieldError("spec.ports", "at least one port is needed")
    external_ips = tuple(unicast_of(value, path) for path, value in items_of(spec, "externalIPs", "spec"))
    external_policy = _external_policy(spec, kind, external_ips)
    return Service(
        namespace=namespace,
        name=name,
        type=kind,
        cluster_ips=cluster_ips,
        ports=ports,
        external_ips=external_ips,
        load_balancer_ips=tuple(_ingress_ips(manifest)),
        proxied=bool(cluster_ips) and kind != "ExternalName" and SERVICE_PROXY_NAME not in labels,
        external_policy=external_policy,
        internal_policy=choice_of(spec, "internalTrafficPolicy", "spec", _POLICIES, "Cluster"),
        affinity=_affinity(spec),
        affinity_scope=scope_of(manifest),
        source_ranges=tuple(
            network_of(value, path) for path, value in items_of(spec, "loadBalancerSourceRanges", "spec")
        ),
        health_check_node_port=_health_check_node_port(spec, kind, external_policy),
        algorithm=algorithm_of(manifest),
        manifest=manifest,
    )


def _external_policy(spec: Mapping[str, Any], kind: ServiceType, external_ips: tuple[str, ...]) -> Policy:
    """Service.spec.externalTrafficPolicy, Cluster where there is no way in from outside that it could govern (S71)."""
    policy = choice_of(spec, "externalTrafficPolicy", "spec", _POLICIES, "Cluster")
    return policy if kind in ("NodePort", "LoadBalancer") or external_ips else "Cluster"


def _affinity(spec: Mapping[str, Any]) -> int:
    """Seconds of Service.spec.sessionAffinity ClientIP, 0 for None (S73)."""
    kind = choice_of(spec, "sessionAffinity", "spec", ("ClientIP", "None"), "None")
    config = map_of(spec, "sessionAffinityConfig", "spec")
    if config and kind == "None":
        raise FieldError("spec.sessionAffinityConfig", "has no place where sessionAffinity is None")
    path = "spec.sessionAffinityConfig.clientIP"
    seconds = number_of(map_of(config, "clientIP", "spec.sessionAffinityConfig"), "timeoutSeconds", path)
    if seconds is None:
        seconds = AFFINITY_SECONDS
    if not 1 <= seconds <= MOST_AFFINITY_SECONDS:
        raise FieldError(
            f"{path}.timeoutSeconds", f"{seconds} is not from 1 to {MOST_AFFINITY_SECONDS} seconds (a day)"
        )
    return seconds if kind == "ClientIP" else 0


def _health_check_node_port(spec: Mapping[str, Any], kind: ServiceType, policy: Policy) -> int | None:
    """Service.spec.healthCheckNodePort, which only a LoadBalancer of policy Local has (S72, S80, S82)."""
    port = port_of(spec, "healthCheckNodePort", "spec", or_zero=True) or None
    return port if kind == "LoadBalancer" and policy == "Local" else None


def _cluster_ips(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Service.spec.clusterIPs, and clusterIP, which repeats its first entry: one address of each family at most."""
    listed = list(items_of(spec, "clusterIPs", "spec"))
    first = string_of(spec, "clusterIP", "spec")
    if not listed:
        return (unicast_of(first, "spec.clusterIP"),) if first else ()
    addresses = tuple(unicast_of(value, path) for path, value in listed)
    if first and unicast_of(first, "spec.clusterIP") != addresses[0]:
        raise FieldError("spec.clusterIPs[0]", f"{addresses[0]} differs from spec.clusterIP {show(first)}")
    if len(addresses) > 2 or len({":" in address for address in addresses}) < len(addresses):
        raise FieldError("spec.clusterIPs", "one IPv4 and one IPv6 address are the most that a service may have")
    return addresses


def _service_ports(spec: Mapping[str, Any], kind: ServiceType) -> Iterator[ServicePort]:
    taken: dict[tuple[object, ...], str] = {}
    entries = list(maps_of(spec, "ports", "spec"))
    for path, entry in entries:
        name = port_name_of(entry, path)
        if not name and len(entries) > 1:
            raise FieldError(f"{path}.name", "is missing: each of several ports needs a name")
        protocol = choice_of(entry, "protocol", path, _PROTOCOLS, "TCP")
        number = port_of(entry, "port", path)
        if number is None:
            raise FieldError(f"{path}.port", "is missing")
        node_port = port_of(entry, "nodePort", path, or_zero=True) or None
        if node_port and kind == "ClusterIP":
            raise FieldError(f"{path}.nodePort", "has no place in a service of type ClusterIP")
        _claim(taken, (name,), f"{path}.name", show(name), path)
        _claim(taken, (protocol, number), f"{path}.port", f"{number}/{protocol}", path)
        if node_port:
            _claim(taken, ("node", protocol, node_port), f"{path}.nodePort", f"{node_port}/{protocol}", path)
        yield ServicePort(name, protocol, number, _target_port(entry, path, number), node_port)


def _claim(taken: dict[tuple[object, ...], str], key: tuple[object, ...], path: str, what: str, holder: str) -> None:
    """Note that `holder` has `key`, which nobody else may have."""
    if key in taken:
        raise FieldError(path, f"{what} is taken by {taken[key]}")
    taken[key] = holder


def _target_port(entry: Mapping[str, Any], path: str, port: int) -> int | str:
    """Service.spec.ports.targetPort: a number or the name of a container's port; by default the port itself."""
    value = entry.get("targetPort")
    if isinstance(value, str) and value:
        if not PORT_NAME.fullmatch(value):
            advice = "a number has no quotes" if value.isdecimal() else "at most 15 of a-z, 0-9 and -, one a letter"
            raise FieldError(f"{path}.targetPort", f"{show(value)} is not the name of a port ({advice})")
        return value
    return port if value == "" else port_of(entry, "targetPort", path, or_zero=True) or port


def _ingress_ips(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Service.status.loadBalancer.ingress: addresses of ipMode VIP or unset (S59, S60); hostnames are for DNS."""
    balancer = map_of(map_of(manifest, "status", ""), "loadBalancer", "status")
    for path, entry in maps_of(balancer, "ingress", "status.loadBalancer"):
        mode = choice_of(entry, "ipMode", path, ("VIP", "Proxy"), "VIP")
        if text := string_of(entry, "ip", path):
            address = unicast_of(text, f"{path}.ip")
            if mode == "VIP":
                yield address


# EndpointSlice


def _endpoint_slice(namespace: str, name: str, labels: Mapping[str, str], manifest: dict[str, Any]) -> EndpointSlice:
    service = labels.get(SERVICE_NAME) or None
    if service and not LABEL_VALUE.fullmatch(service):
        raise FieldError(f"metadata.labels[{SERVICE_NAME!r}]", f"{show(service)} is not the value of a label")
    kind = choice_of(manifest, "addressType", "", _ADDRESS_TYPES, None)
    weights = weights_of(manifest)
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=service,
        address_type=kind,
        ports=tuple(_endpoint_ports(manifest)),
        endpoints=tuple(_endpoint(entry, path, kind, weights) for path, entry in maps_of(manifest, "endpoints", "")),
        headless=HEADLESS in labels,
        manifest=manifest,
    )


def _endpoint_ports(manifest: Mapping[str, Any]) -> Iterator[EndpointPort]:
    """EndpointSlice.ports: a missing name is "" (the API's default), a missing number stays None (S15)."""
    taken: dict[tuple[object, ...], str] = {}
    for path, entry in maps_of(manifest, "ports", ""):
        name = port_name_of(entry, path)
        _claim(taken, (name,), f"{path}.name", show(name), path)
        protocol = choice_of(entry, "protocol", path, _PROTOCOLS, "TCP")
        yield EndpointPort(name, protocol, port_of(entry, "port", path, or_zero=True) or None)


def _endpoint(entry: Mapping[str, Any], path: str, kind: AddressType, weights: Mapping[str, int]) -> Endpoint:
    addresses = tuple(_endpoint_address(value, where, kind) for where, value in items_of(entry, "addresses", path))
    if not addresses:
        raise FieldError(f"{path}.addresses", "at least one address is needed")
    conditions, within = map_of(entry, "conditions", path), f"{path}.conditions"
    ready = boolean_of(conditions, "ready", within)
    serving = boolean_of(conditions, "serving", within)
    target = map_of(entry, "targetRef", path)
    hints = map_of(entry, "hints", path)
    return Endpoint(
        addresses=addresses,
        ready=ready is not False,  # S19: nil means true
        serving=serving is not False,  # S19: nil means true, whatever `ready` is
        terminating=boolean_of(conditions, "terminating", within) is True,
        node_name=name_of(entry, "nodeName", path, SUBDOMAIN, default="") or None,
        target_name=name_of(target, "name", f"{path}.targetRef", SUBDOMAIN, default="") or None,
        zone=name_of(entry, "zone", path, LABEL_VALUE, default="") or None,
        for_zones=_hints(hints, "forZones", f"{path}.hints", LABEL_VALUE) if hints else (),
        for_nodes=_hints(hints, "forNodes", f"{path}.hints", SUBDOMAIN) if hints else (),
        weight=weights.get(addresses[0], 1),
    )


def _hints(hints: Mapping[str, Any], key: str, path: str, form: re.Pattern[str]) -> tuple[str, ...]:
    """EndpointSlice.endpoints.hints: the names of the zones or nodes that are advised to call an endpoint (S84)."""
    return tuple(name_of(entry, "name", where, form) for where, entry in maps_of(hints, key, path))


def _endpoint_address(value: object, path: str, kind: AddressType) -> str:
    if kind == "FQDN":
        if not isinstance(value, str) or not SUBDOMAIN.fullmatch(value):
            raise FieldError(path, f"{show(value)} is not a domain name")
        return value
    address = unicast_of(value, path)
    family: AddressType = "IPv6" if ":" in address else "IPv4"
    if family != kind:
        raise FieldError(path, f"{show(address)} is an {family} address in a slice of addressType {kind}")
    return address


# Node


def _node(_: str, name: str, labels: Mapping[str, str], manifest: dict[str, Any]) -> Node:
    zone = labels.get(ZONE, "")
    if not LABEL_VALUE.fullmatch(zone):
        raise FieldError(f"metadata.labels[{ZONE!r}]", f"{show(zone)} is not the value of a label")
    addresses = list(_node_addresses(manifest))
    return Node(
        name=name,
        pod_cidrs=_pod_cidrs(map_of(manifest, "spec", "")),
        internal_ips=tuple(dict.fromkeys(address for kind, address in addresses if kind == "InternalIP")),
        external_ips=tuple(dict.fromkeys(address for kind, address in addresses if kind == "ExternalIP")),
        zone=zone,
        manifest=manifest,
    )


def _pod_cidrs(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Node.spec.podCIDRs, or where that is not said podCIDR, which is its first; at most one of each family."""
    networks = tuple(_pod_network(value, path) for path, value in items_of(spec, "podCIDRs", "spec"))
    if text := string_of(spec, "podCIDR", "spec"):
        first = _pod_network(text, "spec.podCIDR")
        if networks and networks[0] != first:
            raise FieldError("spec.podCIDR", f"{first} is not the first of podCIDRs, {networks[0]}")
        networks = networks or (first,)
    if len({":" in one for one in networks}) < len(networks):
        raise FieldError("spec.podCIDRs", "there is at most one of each family")
    return networks


def _pod_network(value: object, path: str) -> str:
    """A network of one node's pods. Kubernetes has no bound; a wide one would make the world the cluster's own."""
    network = network_of(value, path)
    widest = 16 if ":" in network else 8
    if int(network.partition("/")[2]) < widest:
        raise FieldError(path, f"{network} is too wide for one node's pods (/{widest} at most)")
    return network


def _node_addresses(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Node.status.addresses that are addresses, each with its type; names are for DNS."""
    for path, entry in maps_of(map_of(manifest, "status", ""), "addresses", "status"):
        kind = string_of(entry, "type", path) or ""
        if kind in ("InternalIP", "ExternalIP"):
            yield kind, unicast_of(entry.get("address"), f"{path}.address", "no node")


_BUILDERS: Final[dict[str, Callable[[str, str, Mapping[str, str], dict[str, Any]], Manifested]]] = {
    "Service": _service,
    "EndpointSlice": _endpoint_slice,
    "Node": _node,
}
