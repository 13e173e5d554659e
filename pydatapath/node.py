"""What `load` was asked for and what the host has, made into what will be done: pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Final

from pydatapath.annotations import ALGORITHMS
from pydatapath.errors import DatapathError, NotFound
from pydatapath.kernel.host import Host, Interface
from pydatapath.kernel.layout import Hook
from pydatapath.model import Algorithm

__all__ = ["DEFAULT_SERVICE_CIDR", "LIMITS", "Attachment", "Node", "Options", "resolve"]

DEFAULT_SERVICE_CIDR: Final = "10.96.0.0/12"  # kubeadm's serviceSubnet
LIMITS: Final = {"max_flows": (1024, 1 << 24), "max_backends": (16, 1 << 22)}  # the least and the most
WORDS: Final = {"algorithm": ALGORITHMS}


@dataclass(frozen=True)
class Options:
    """What can be said to `load`; what is empty is found out from the host. Sizes count entries."""

    node_name: str = ""
    uplink: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    pod_interface: tuple[str, ...] = ()
    node_ip: tuple[str, ...] = ()
    pod_cidr: tuple[str, ...] = ()
    cluster_cidr: tuple[str, ...] = ()
    service_cidr: tuple[str, ...] = (DEFAULT_SERVICE_CIDR,)
    nodeport_addresses: tuple[str, ...] = ()
    zone: str = ""
    algorithm: Algorithm = "random"
    max_flows: int = 131_072
    max_backends: int = 65_536

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> Options:
        """Of a TOML table or of command-line values. Raises DatapathError for a name or type that is none of ours."""
        known = {field.name: field.default for field in fields(Options)}
        for name, value in values.items():
            if name not in known:
                raise DatapathError(f"option {name!r} is unknown", hint=f"known are: {', '.join(sorted(known))}")
            if isinstance(known[name], tuple):
                good = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
            else:
                good = isinstance(value, type(known[name])) and not isinstance(value, bool)
            if not good:
                wanted = "a list of strings" if isinstance(known[name], tuple) else type(known[name]).__name__
                raise DatapathError(f"option {name!r} must be {wanted}, not {value!r}")
            least, most = LIMITS.get(name, (0, 0))
            if name in LIMITS and not least <= value <= most:
                raise DatapathError(f"option {name!r} must be from {least:,} to {most:,}, not {value:,}")
            if value not in WORDS.get(name, (value,)):
                raise DatapathError(f"option {name!r} must be {' or '.join(WORDS[name])}, not {value!r}")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Options(**given)

    def as_mapping(self) -> dict[str, Any]:
        """For the records."""
        return asdict(self)


@dataclass(frozen=True)
class Attachment:
    """One program at one interface."""

    interface: Interface
    hook: Hook


@dataclass(frozen=True)
class Node:
    """The host as the datapath serves it. `zone` is "" where it was not said."""

    name: str
    addresses: tuple[IPv4Address, ...]
    bridges: tuple[Interface, ...]
    uplinks: tuple[Interface, ...]
    pods: tuple[Interface, ...]
    pod_networks: tuple[IPv4Network, ...]
    cluster_networks: tuple[IPv4Network, ...]  # where all nodes' pods are: who calls from there is inside (S28, S52)
    service_networks: tuple[IPv4Network, ...]
    masquerade_address: IPv4Address  # what a pod sees that calls itself through its service
    node_port_addresses: tuple[IPv4Address, ...]  # where node ports answer (S46, C5)
    zone: str

    @property
    def attachments(self) -> list[Attachment]:
        """Every program that must hang somewhere."""
        return [
            *(Attachment(one, Hook.FROM_POD) for one in self.pods),
            *(Attachment(one, Hook.FROM_UPLINK) for one in self.uplinks),
            *(Attachment(one, Hook.TO_BRIDGE) for one in self.bridges),
            *(Attachment(one, Hook.TO_UPLINK) for one in self.uplinks),
        ]


def resolve(options: Options, host: Host, hostname: str) -> Node:
    """Fills in what was not said. Raises DatapathError or NotFound, naming the option that would help."""
    uplinks = [host.interface(name) for name in options.uplink or host.default_interfaces]
    bridges = [host.interface(name) for name in options.bridge] or _only_bridge(options, host)
    for one in bridges:
        if one.kind != "bridge":
            raise DatapathError(f"interface {one.name!r} is no bridge", hint="--pod-interface names single interfaces")
    pods = _pod_interfaces(options, host, bridges, uplinks)
    node_addresses = _addresses(options.node_ip, "--node-ip") or [
        at.ip for uplink in uplinks for at in uplink.addresses
    ]
    bridge_addresses = [at for bridge in bridges for at in bridge.addresses]
    if not bridge_addresses and not node_addresses:
        raise DatapathError("this host has no address to show to pods", hint="give the bridge one, or --node-ip")
    service_networks = _networks(options.service_cidr, "--service-cidr")
    pod_networks = _networks(options.pod_cidr, "--pod-cidr") or tuple(at.network for at in bridge_addresses)
    _refuse_overlap(service_networks, [*(at.network for one in host.interfaces for at in one.addresses), *pod_networks])
    return Node(
        name=options.node_name or hostname,
        addresses=tuple(node_addresses),
        bridges=tuple(bridges),
        uplinks=tuple(uplinks),
        pods=tuple(pods),
        pod_networks=pod_networks,
        cluster_networks=_networks(options.cluster_cidr, "--cluster-cidr") or pod_networks,
        service_networks=service_networks,
        masquerade_address=bridge_addresses[0].ip if bridge_addresses else node_addresses[0],
        node_port_addresses=_node_port_addresses(options, host, node_addresses),
        zone=options.zone,
    )


def _node_port_addresses(options: Options, host: Host, node_addresses: list[IPv4Address]) -> tuple[IPv4Address, ...]:
    """Those of the host's addresses that are in the networks named; the node's where none is named. Loopback never."""
    networks = _networks(options.nodeport_addresses, "--nodeport-addresses")
    if not networks:
        return tuple(dict.fromkeys(node_addresses))
    found = [address for address in host.addresses if any(address in network for network in networks)]
    if not found:
        named = ", ".join(str(network) for network in networks)
        raise DatapathError(
            f"--nodeport-addresses {named}: none of this host's addresses is in there", hint="`ip address` lists them"
        )
    return tuple(dict.fromkeys(found))


def _refuse_overlap(services: tuple[IPv4Network, ...], others: list[IPv4Network]) -> None:
    """What comes to an address in a service network that no service owns is dropped: never the host's own."""
    for service in services:
        for other in others:
            if service.overlaps(other):
                raise DatapathError(
                    f"the service network {service} overlaps {other}, which this host or its pods are in",
                    hint="--service-cidr names another one",
                )


def _only_bridge(options: Options, host: Host) -> list[Interface]:
    """The bridge that is meant where none is named: the only one with an address."""
    found = [one for one in host.interfaces if one.kind == "bridge" and one.addresses]
    if len(found) == 1 or options.pod_interface:
        return found[:1] if len(found) == 1 else []
    if found:
        raise DatapathError(
            f"this host has several bridges: {', '.join(one.name for one in found)}", hint="say which with --bridge"
        )
    raise NotFound("this host has no bridge with an address", hint="--bridge or --pod-interface say where pods are")


def _pod_interfaces(
    options: Options, host: Host, bridges: list[Interface], uplinks: list[Interface]
) -> list[Interface]:
    """The bridges' ports, and what the globs match; never an uplink that is a port, too."""
    found = {one.name: one for bridge in bridges for one in host.ports(bridge)}
    for glob in options.pod_interface:
        matching = [one for one in host.interfaces if fnmatch.fnmatchcase(one.name, glob)]
        if not matching:
            raise NotFound(f"--pod-interface {glob!r} matches no interface", hint="`ip link` lists them")
        found |= {one.name: one for one in matching}
    taken = {one.name for one in [*uplinks, *bridges]}
    return [one for name, one in sorted(found.items()) if name not in taken]


def _addresses(texts: tuple[str, ...], option: str) -> list[IPv4Address]:
    found = []
    for text in texts:
        try:
            found.append(IPv4Address(text))
        except ValueError:
            raise DatapathError(f"{option} {text!r} is not an IPv4 address", hint="such as 192.168.50.11") from None
    return found


def _networks(texts: tuple[str, ...], option: str) -> tuple[IPv4Network, ...]:
    found = []
    for text in texts:
        try:
            found.append(IPv4Interface(text).network)
        except ValueError:
            raise DatapathError(f"{option} {text!r} is not an IPv4 network", hint="such as 10.96.0.0/12") from None
    return tuple(found)
