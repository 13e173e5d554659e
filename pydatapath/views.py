"""What reading commands show: plain data whose fields are those of their JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydatapath.model import Backend, Service

__all__ = [
    "Difference",
    "End",
    "Flow",
    "InterfaceStatus",
    "MapStatus",
    "NatMapping",
    "NatStats",
    "PortForward",
    "PortsUsed",
    "ServiceStatus",
    "Status",
    "Tuple",
]


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction's addresses and ports (host order), as packets of it arrive."""

    src: str
    sport: int
    dst: str
    dport: int

    def __str__(self) -> str:
        source, destination = (f"[{host}]" if ":" in host else host for host in (self.src, self.dst))
        return f"{source}:{self.sport} > {destination}:{self.dport}"


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow, as `conntrack -L` knows it: the first packet's direction, and the reply's as the backend sends it.

    `packets` and `bytes` (of layer 3) are pairs, original and reply; `idle` and `expires` are seconds.
    """

    protocol: str
    original: Tuple
    reply: Tuple
    state: str
    packets: tuple[int, int]
    bytes: tuple[int, int]
    idle: float
    expires: float
    service: str | None = None
    family: int = 4

    @property
    def nat(self) -> str:
        """What is translated: none, dnat (destination), snat (source) or both."""
        destination = (self.original.dst, self.original.dport) != (self.reply.src, self.reply.sport)
        source = (self.original.src, self.original.sport) != (self.reply.dst, self.reply.dport)
        return {(False, False): "none", (True, False): "dnat", (False, True): "snat", (True, True): "both"}[
            destination, source
        ]


@dataclass(frozen=True, slots=True, order=True)
class End:
    """An address and port (of an echo: its identifier, or 0 for who is asked)."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class NatMapping:
    """An inside end and the outside one behind which it is seen, with those whom it talks to: none for a mapping of UDP
    whose flows are over. `idle` and `expires` are seconds.
    """

    family: int
    protocol: str
    inside: End
    outside: End
    remotes: tuple[End, ...]
    idle: float
    expires: float


@dataclass(frozen=True, slots=True)
class PortsUsed:
    """How many ports of an outside address a protocol uses, of how many that are looked for; `beside` are pods' own
    ports that were free and kept, and are none of these.
    """

    address: str
    protocol: str
    used: int
    of: int
    beside: int = 0


@dataclass(frozen=True, slots=True)
class NatStats:
    """The whole of masquerading, in the form of `nat stats -o json`. `dropped`: packets, by the reason's name;
    `sources`: the pods with the most flows, each with their number.
    """

    families: tuple[int, ...]
    type: str
    ports: str
    addresses: tuple[PortsUsed, ...]
    dropped: dict[str, int]
    sources: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of the node's addresses, or of one of them, that leads to a pod's."""

    protocol: str
    addresses: tuple[str, ...]
    port: int
    target: End
    flows: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """What `apply` would do to one object. `change`: created, configured or deleted; `diff`: a unified diff of the
    manifest as it is recorded and as it was given, without characters that a terminal would obey.
    """

    kind: str
    namespace: str
    name: str
    change: str
    diff: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service and what serves it now."""

    service: Service
    backends: tuple[Backend, ...]

    def as_json(self) -> dict[str, Any]:
        """The form of `service list -o json`."""
        service = self.service
        return {
            "namespace": service.namespace,
            "name": service.name,
            "type": service.type,
            "cluster_ips": list(service.cluster_ips),
            "external_ips": list(service.external_ips),
            "load_balancer_ips": list(service.load_balancer_ips),
            "ports": [
                {
                    "name": port.name,
                    "protocol": port.protocol,
                    "port": port.port,
                    "node_port": port.node_port,
                    "target_port": port.target_port,
                }
                for port in service.ports
            ],
            "backends": [
                {
                    "address": one.address,
                    "port": one.port,
                    "protocol": one.protocol,
                    "node": one.node,
                    "name": one.name,
                    "local": one.local,
                    "state": one.state,
                    "flows": one.flows,
                }
                for one in self.backends
            ],
        }


@dataclass(frozen=True, slots=True)
class InterfaceStatus:
    """An interface of ours and the programs that hang there now."""

    name: str
    role: str
    programs: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class MapStatus:
    """A map's fill. `bytes` is what the kernel has set aside for it; `entries` is None for arrays, which are full."""

    name: str
    type: str
    entries: int
    max_entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """The whole of an instance, in the form of `status -o json`.

    `drift` are sentences about what is not as load left it, `conflicts` about services that are not called at an
    address because another one has it (S70), about what two nodes say is their own, about forwards of ports that nobody
    can call, and about netfilter's rules that translate what pods send.
    """

    instance: str
    netns: str
    loaded: bool = False
    version: str = ""
    since: str = ""
    node_name: str = ""
    node_ips: tuple[str, ...] = ()
    interfaces: tuple[InterfaceStatus, ...] = ()
    maps: tuple[MapStatus, ...] = ()
    services: int = 0
    backends: int = 0
    flows: int = 0
    timers: dict[str, int] = field(default_factory=dict)  # seconds, by the names of `load --timeout`
    pod_fast_path: str = "never"  # what was asked for at load, and what is done
    counters: dict[str, int] = field(default_factory=dict)
    drift: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    unchecked: str = ""  # why drift may be missing here
