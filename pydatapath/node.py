"""What `load` was asked for and what the host has, made into what will be done: pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pydatapath import egress, timers
from pydatapath.annotations import ALGORITHMS
from pydatapath.egress import Egress, EgressAddress, Masquerade
from pydatapath.errors import DatapathError, NotFound
from pydatapath.fast_path import ASKED, FastPath, PodFastPath, decide
from pydatapath.fields import LABEL_VALUE, SUBDOMAIN
from pydatapath.kernel.host import Host, Interface
from pydatapath.kernel.layout import Family, Hook
from pydatapath.model import Algorithm

if TYPE_CHECKING:
    from pydatapath.records import Records

__all__ = [
    "DEFAULT_SERVICE_CIDR",
    "DEFAULT_SERVICE_CIDR6",
    "LIMITS",
    "Attachment",
    "Node",
    "Options",
    "Scope",
    "options_of",
    "resolve",
]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

DEFAULT_SERVICE_CIDR: Final = "10.96.0.0/12"  # kubeadm's serviceSubnet
DEFAULT_SERVICE_CIDR6: Final = "fd00:10:96::/112"  # kind's; kubeadm has none
# The least and the most
LIMITS: Final = {"max_flows": (1024, 1 << 24), "max_backends": (16, 1 << 22), "max_services": (16, 1 << 22)}
NatTypeName = Literal["endpoint-independent", "symmetric", "full-cone"]
NAMES: Final = {"node_name": SUBDOMAIN, "zone": LABEL_VALUE}  # what no object can name nobody would ever match
WORDS: Final = {"algorithm": ALGORITHMS, "nat_type": tuple(egress.NAT_TYPES), "pod_fast_path": ASKED}


@dataclass(frozen=True)
class Options:
    """What can be said to `load`; what is empty is found out from the host. Sizes count entries.

    Addresses and networks may be of both families; of a family that is not among them it is found out, too.
    """

    node_name: str = ""
    uplink: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    pod_interface: tuple[str, ...] = ()
    node_ip: tuple[str, ...] = ()
    pod_cidr: tuple[str, ...] = ()
    cluster_cidr: tuple[str, ...] = ()
    service_cidr: tuple[str, ...] = ()
    nodeport_addresses: tuple[str, ...] = ()
    nodeport_range: str = "30000-32767"  # the API server's --service-node-port-range
    masquerade: bool | None = None  # None: a family of which --cluster-cidr or --snat-address names something
    non_masquerade_cidr: tuple[str, ...] = ()
    snat_address: tuple[str, ...] = ()
    snat_ports: str = "1024-65535"
    nat_type: NatTypeName = "endpoint-independent"
    pod_flow_rate: str = ""  # FLOWS/SECONDS
    pod_fast_path: PodFastPath = "never"
    timeout: tuple[str, ...] = ()  # NAME=SECONDS, by the names of timers.TIMERS
    zone: str = ""
    algorithm: Algorithm = "random"
    max_flows: int = 131_072
    max_backends: int = 65_536
    max_services: int = 65_536

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> Options:
        """Of a TOML table or of command-line values. Raises DatapathError for a name or type that is none of ours."""
        known = {one.name: one.default for one in fields(Options)}
        for name, value in values.items():
            if name not in known:
                raise DatapathError(f"option {name!r} is unknown", hint=f"known are: {', '.join(sorted(known))}")
            if not _is_like(known[name], value):
                raise DatapathError(f"option {name!r} must be {_kind_of(known[name])}, not {value!r}")
            least, most = LIMITS.get(name, (0, 0))
            if name in LIMITS and not least <= value <= most:
                raise DatapathError(f"option {name!r} must be from {least:,} to {most:,}, not {value:,}")
            if value and name in NAMES and not NAMES[name].fullmatch(value):
                raise DatapathError(f"option {name!r} must be a name that Kubernetes allows, not {value!r:.80}")
            if value not in WORDS.get(name, (value,)):
                raise DatapathError(f"option {name!r} must be {' or '.join(WORDS[name])}, not {value!r}")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Options(**given)

    def as_mapping(self) -> dict[str, Any]:
        """For the records."""
        return asdict(self)


def options_of(records: Records) -> Options:
    """What was said to the last `load`."""
    return Options.from_mapping(records.get("options", {}))


def _is_like(default: Any, value: Any) -> bool:
    """Whether a value can stand where this one does; None stands for a yes or no that is not said."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    if default is None:
        return value is None or isinstance(value, bool)
    return isinstance(value, type(default)) and not isinstance(value, bool)


def _kind_of(default: Any) -> str:
    if default is None:
        return "true or false"
    return "a list of strings" if isinstance(default, tuple) else type(default).__name__


@dataclass(frozen=True)
class Attachment:
    """One program at one interface."""

    interface: Interface
    hook: Hook


@dataclass(frozen=True)
class Scope:
    """What a node has of one family; nothing, where it has no address of it."""

    addresses: tuple[Address, ...] = ()
    pod_networks: tuple[Network, ...] = ()
    cluster_networks: tuple[Network, ...] = ()  # where all nodes' pods are: who calls from there is inside (S28, S52)
    service_networks: tuple[Network, ...] = ()
    masquerade_address: Address | None = None  # what a pod sees that calls itself through its service
    node_port_addresses: tuple[Address, ...] = ()  # where node ports answer (S46, C5)
    exclusive_networks: tuple[Network, ...] = ()  # those of the pods that are nobody else's, too
    unmasqueraded_networks: tuple[Network, ...] = ()  # where pods are seen as who they are, beside the cluster's own
    egress: tuple[Egress, ...] = ()  # behind what pods leave, the first that fits; none: as who they are


@dataclass(frozen=True)
class Node:
    """The host as the datapath serves it. `zone` is "" where it was not said.

    `scopes` has the families that are loaded: IPv4 always, IPv6 where the host uses it.
    """

    name: str
    bridges: tuple[Interface, ...]
    uplinks: tuple[Interface, ...]
    pods: tuple[Interface, ...]
    loopback: Interface | None
    scopes: Mapping[Family, Scope]
    zone: str
    masquerade: Masquerade
    timeouts: Mapping[str, int]  # as layout.TIMEOUTS
    fast_path: FastPath = field(default_factory=FastPath)

    @property
    def families(self) -> tuple[Family, ...]:
        """Those that are loaded."""
        return tuple(self.scopes)

    @property
    def masqueraded(self) -> tuple[Family, ...]:
        """The families whose pods leave the cluster behind the node's address."""
        return tuple(family for family, scope in self.scopes.items() if scope.egress)

    @property
    def addresses(self) -> list[Address]:
        """Its addresses of both families."""
        return [address for scope in self.scopes.values() for address in scope.addresses]

    @property
    def pod_networks(self) -> list[Network]:
        """Where its pods are, of both families."""
        return [network for scope in self.scopes.values() for network in scope.pod_networks]

    @property
    def service_networks(self) -> list[Network]:
        """Where services are, of both families."""
        return [network for scope in self.scopes.values() for network in scope.service_networks]

    @property
    def node_port_addresses(self) -> list[Address]:
        """Where node ports answer, of both families."""
        return [address for scope in self.scopes.values() for address in scope.node_port_addresses]

    @property
    def attachments(self) -> list[Attachment]:
        """Every program that must hang somewhere. The node's calls of its own node ports go by the loopback."""
        loopback = [self.loopback] if self.loopback and self.node_port_addresses else []
        return [
            *(Attachment(one, Hook.FROM_POD) for one in self.pods),
            *(Attachment(one, Hook.FROM_UPLINK) for one in self.uplinks),
            *(Attachment(one, Hook.TO_BRIDGE) for one in self.bridges),
            *(Attachment(one, Hook.TO_UPLINK) for one in self.uplinks),
            *(Attachment(one, Hook.TO_LOOPBACK) for one in loopback),
        ]


@dataclass(frozen=True)
class _Said:
    """The addresses and networks of the options, read."""

    node_ip: tuple[Address, ...]
    pod_cidr: tuple[Network, ...]
    cluster_cidr: tuple[Network, ...]
    service_cidr: tuple[Network, ...]
    nodeport_addresses: tuple[Network, ...]
    non_masquerade_cidr: tuple[Network, ...]
    snat_address: tuple[EgressAddress, ...]

    def of(self, family: Family) -> _Said:
        """What is said of one family."""
        return _Said(**{name: tuple(one for one in said if one.version == family) for name, said in vars(self).items()})

    @property
    def asks(self) -> bool:
        """Whether the family is asked for. Where node ports answer does not say so: `::/0` means any that there are."""
        return bool(self.node_ip or self.pod_cidr or self.cluster_cidr or self.service_cidr)


@dataclass(frozen=True)
class _Interfaces:
    """The host's interfaces by what they are to us."""

    uplinks: tuple[Interface, ...]
    bridges: tuple[Interface, ...]
    pods: tuple[Interface, ...]


def resolve(options: Options, host: Host, hostname: str) -> Node:
    """Fills in what was not said. Raises DatapathError or NotFound, naming the option that would help."""
    uplinks = [host.interface(name) for name in options.uplink or host.default_interfaces]
    _refuse_without_ethernet(uplinks, host)
    bridges = [host.interface(name) for name in options.bridge] or _only_bridge(options, host)
    for one in bridges:
        if one.kind != "bridge":
            raise DatapathError(f"interface {one.name!r} is no bridge", hint="--pod-interface names single interfaces")
    pods = _pod_interfaces(options, host, bridges, uplinks)
    found = _Interfaces(tuple(uplinks), tuple(bridges), tuple(pods))
    said = _read(options)
    scopes = _scopes(said, host, found)
    node = Node(
        name=options.node_name or hostname.lower(),  # as kubelet names it (pkg/util/node, GetHostname)
        **vars(found),
        loopback=host.loopback,
        scopes={
            family: _hidden(options, family, said.of(family), scope, host, found) for family, scope in scopes.items()
        },
        zone=options.zone,
        masquerade=Masquerade(
            egress.NAT_TYPES[options.nat_type],
            egress.port_range(options.snat_ports, "--snat-ports"),
            egress.port_range(options.nodeport_range, "--nodeport-range"),
            egress.flow_rate(options.pod_flow_rate, "--pod-flow-rate"),
        ),
        timeouts=timers.read(options.timeout),
        fast_path=decide(options.pod_fast_path, host, bridges, pods),
    )
    if node.masqueraded:
        egress.check_ports(node.masquerade)
    return node


def _refuse_without_ethernet(uplinks: list[Interface], host: Host) -> None:
    """The programs read an Ethernet header first: at wg, tun or ppp they would take the IP header for one, and no
    answer would find its pod (N80). Left out in silence, pods' own addresses would leave there.
    """
    for one in uplinks:
        if not one.has_ethernet:
            by = [way.name for way in (*uplinks, *host.interfaces) if way.has_ethernet and _could_be_uplink(way, host)]
            raise DatapathError(
                f"uplink {one.name!r} has no Ethernet, and its packets cannot be read",
                hint=f"--uplink names others{f', such as {by[0]}' if by else ''}; "
                f"what pods send by {one.name!r} is left as it is then",
            )


def _could_be_uplink(one: Interface, host: Host) -> bool:
    """With an address of its own, and neither a bridge nor the loopback."""
    return bool(one.addresses) and one.kind != "bridge" and one != host.loopback


def _read(options: Options) -> _Said:
    return _Said(
        _addresses(options.node_ip, "--node-ip"),
        _networks(options.pod_cidr, "--pod-cidr"),
        _networks(options.cluster_cidr, "--cluster-cidr"),
        _networks(options.service_cidr, "--service-cidr"),
        _networks(options.nodeport_addresses, "--nodeport-addresses"),
        _networks(options.non_masquerade_cidr, "--non-masquerade-cidr"),
        egress.read_addresses(options.snat_address, "--snat-address", _addresses, _networks),
    )


def _scopes(said: _Said, host: Host, found: _Interfaces) -> dict[Family, Scope]:
    """IPv6's is there where the pods' side of the host has an address of it, or an option names one."""
    scopes = {family: _scope(family, said.of(family), host, found) for family in Family}
    if not any(scope.masquerade_address for scope in scopes.values()):
        raise DatapathError("this host has no address to show to pods", hint="give the bridge one, or --node-ip")
    six = scopes[Family.IPV6]
    return {Family.IPV4: scopes[Family.IPV4], **({Family.IPV6: six} if six.masquerade_address else {})}


def _scope(family: Family, said: _Said, host: Host, found: _Interfaces) -> Scope:
    addresses = said.node_ip or tuple(at.ip for at in _own(found.uplinks, family))
    bridges, pods = _own(found.bridges, family), _own(found.pods, family)
    shown = [*(at.ip for at in bridges), *addresses, *(at.ip for at in pods)]
    used = bool(shown) if family is Family.IPV4 else bool(bridges or pods)
    if not used and not said.asks:
        return Scope()
    if not shown:
        raise DatapathError(
            f"this host has no IPv{int(family)} address to show to pods, and IPv{int(family)} networks are named",
            hint="give the bridge one, or --node-ip",
        )
    pod_networks = said.pod_cidr or tuple(at.network for at in bridges)
    taken = [*(at.network for at in _own(host.interfaces, family)), *pod_networks]
    return Scope(
        addresses=addresses,
        pod_networks=pod_networks,
        cluster_networks=said.cluster_cidr or pod_networks,
        service_networks=_service_networks(family, said, taken),
        masquerade_address=shown[0],
        node_port_addresses=_node_port_addresses(said, host, addresses),
        exclusive_networks=_exclusive_networks(family, said, found, pod_networks),
    )


def _exclusive_networks(
    family: Family, said: _Said, found: _Interfaces, pod_networks: Sequence[Network]
) -> tuple[Network, ...]:
    """The pod networks of which nobody is elsewhere: no uplink is in one (N87), nor is a part of it another node's."""
    bridges = {one.master for one in found.uplinks if one.master}
    shared = [*found.uplinks, *(one for one in found.bridges if one.index in bridges)]
    outside = [at.ip for at in _own(shared, family)]
    return tuple(
        one
        for one in pod_networks
        if not any(address in one for address in outside)
        and not any(other.prefixlen >= one.prefixlen and other.network_address in one for other in said.cluster_cidr)
    )


def _hidden(options: Options, family: Family, said: _Said, scope: Scope, host: Host, found: _Interfaces) -> Scope:
    """With what pods leave the cluster behind."""
    if not egress.is_wanted(options.masquerade, said.snat_address, said.cluster_cidr):
        return scope
    chosen = egress.choose(
        found.uplinks, scope.pod_networks, scope.addresses, said.snat_address, host.addresses, family
    )
    return replace(scope, egress=chosen, unmasqueraded_networks=said.non_masquerade_cidr)


def _service_networks(family: Family, said: _Said, taken: list[Network]) -> tuple[Network, ...]:
    """What comes to an address in a service network that no service owns is dropped: never the host's own."""
    if family is Family.IPV6 and not said.service_cidr:
        default = ip_network(DEFAULT_SERVICE_CIDR6)
        return () if any(_overlap(default, one) for one in (*taken, *said.cluster_cidr)) else (default,)
    services = said.service_cidr or (ip_network(DEFAULT_SERVICE_CIDR),)
    for service in services:
        for other in taken:
            if _overlap(service, other):
                raise DatapathError(
                    f"the service network {service} overlaps {other}, which this host or its pods are in",
                    hint="--service-cidr names another one",
                )
    return services


def _overlap(one: Network, other: Network) -> bool:
    """Two networks of one family."""
    return one.network_address in other or other.network_address in one


def _node_port_addresses(said: _Said, host: Host, addresses: Sequence[Address]) -> tuple[Address, ...]:
    """Those of the host's addresses that are in the networks named; the node's where none is named. Loopback never."""
    networks = said.nodeport_addresses
    if not networks:
        return tuple(dict.fromkeys(addresses))
    found = [address for address in host.addresses if any(address in network for network in networks)]
    if not found:
        named = ", ".join(str(network) for network in networks)
        raise DatapathError(
            f"--nodeport-addresses {named}: none of this host's addresses is in there", hint="`ip address` lists them"
        )
    return tuple(dict.fromkeys(found))


def _own(interfaces: Iterable[Interface], family: Family) -> list[IPv4Interface | IPv6Interface]:
    """The addresses of a family that interfaces have."""
    return [at for one in interfaces for at in one.addresses if at.version == family]


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
    """The bridges' ports, and what the globs match; never an uplink that is a port, too, nor the loopback."""
    found = {one.name: one for bridge in bridges for one in host.ports(bridge)}
    for glob in options.pod_interface:
        matching = [one for one in host.interfaces if fnmatch.fnmatchcase(one.name, glob)]
        if not matching:
            raise NotFound(f"--pod-interface {glob!r} matches no interface", hint="`ip link` lists them")
        found |= {one.name: one for one in matching}
    taken = {one.name for one in [*uplinks, *bridges]} | ({host.loopback.name} if host.loopback else set())
    return [one for name, one in sorted(found.items()) if name not in taken]


def _addresses(texts: tuple[str, ...], option: str) -> tuple[Address, ...]:
    found = []
    for text in texts:
        try:
            found.append(ip_address(text))
        except ValueError:
            raise DatapathError(
                f"{option} {text!r} is not an IP address", hint="such as 192.168.50.11 or fd00:192:168:50::11"
            ) from None
        _refuse_link_local(found[-1], text, option)
    return tuple(found)


def _networks(texts: tuple[str, ...], option: str) -> tuple[Network, ...]:
    found = []
    for text in texts:
        try:
            found.append(ip_interface(text).network)
        except ValueError:
            raise DatapathError(
                f"{option} {text!r} is not an IP network", hint="such as 10.96.0.0/12 or fd00:10:96::/112"
            ) from None
        _refuse_link_local(found[-1].network_address, text, option)
    return tuple(found)


def _refuse_link_local(address: Address, text: str, option: str) -> None:
    """Every link has the same IPv6 addresses of its own: no packet to one is routed, and none is ours."""
    if isinstance(address, IPv6Address) and address.is_link_local:
        raise DatapathError(f"{option} {text!r} is of one link only", hint="a global or unique local one, please")
