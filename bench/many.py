"""Any number of services, of which the last one is called: as Kubernetes' objects and as kube-proxy sees them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from bench.kube_proxy import ServicePort, restore_input
from bench.measure import Port
from bench.measures import PORTS
from bench.scale import FIRST_POD, FIRST_VIP
from bench.scale import Sample as Size

__all__ = ["SERVICE_NETWORK", "Called", "Many", "restore_parts", "resync"]

SERVICE_NETWORK = "10.96.0.0/12"
PART = 300  # services that are laid at once
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@dataclass(frozen=True)
class Called:
    """A service that packets are sent to."""

    name: str
    vip: str
    backends: Sequence[str]
    node: str = "node1"
    ports: Sequence[Port] = PORTS

    def service_ports(self) -> list[ServicePort]:
        """For kube-proxy."""
        return [
            ServicePort(
                f"default/{self.name}:{port.name}",
                self.vip,
                port.protocol,
                port.port,
                tuple((address, port.target) for address in self.backends),
            )
            for port in self.ports
        ]

    def manifests(self) -> list[dict[str, Any]]:
        """The Service and its slice."""
        ports = [(port, {"name": port.name, "protocol": port.protocol.upper()}) for port in self.ports]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name},
            "spec": {
                "clusterIP": self.vip,
                "ports": [{**one, "port": port.port, "targetPort": port.target} for port, one in ports],
            },
        }
        return [service, self.slice()]

    def slice(self) -> dict[str, Any]:
        """The EndpointSlice."""
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{self.name}-1", "labels": {"kubernetes.io/service-name": self.name}},
            "addressType": "IPv4",
            "ports": [{"name": p.name, "protocol": p.protocol.upper(), "port": p.target} for p in self.ports],
            "endpoints": [{"addresses": [address], "nodeName": self.node} for address in self.backends],
        }


@dataclass(frozen=True)
class Many:
    """So many services in all: `ahead` are the first of them, `called` the last; others have pods on other nodes.

    Each other one has `endpoints` pods. `moved`: those pods are not the same as before, in every service.
    """

    services: int
    endpoints: int
    called: Sequence[Called]
    ahead: Sequence[Called] = ()
    moved: bool = False

    @property
    def _size(self) -> Size:
        return Size(self.services - len(self.called) - len(self.ahead), self.endpoints)

    def manifests(self) -> list[dict[str, Any]]:
        """All objects."""
        first, last = ([one for called in ends for one in called.manifests()] for ends in (self.ahead, self.called))
        others = [self._moved(one) if self.moved else one for one in self._size.manifests()]
        return [*first, *others, *last]

    def _moved(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Its pods are as many addresses on as there are pods."""
        if manifest["kind"] != "EndpointSlice":
            return manifest
        endpoints = [
            {**one, "addresses": [str(ip_address(one["addresses"][0]) + self._pods)]} for one in manifest["endpoints"]
        ]
        return {**manifest, "endpoints": endpoints}

    @property
    def _pods(self) -> int:
        return self._size.services * self.endpoints

    def service_ports(self) -> list[ServicePort]:
        """As `manifests`, for kube-proxy."""
        size, first = self._size, FIRST_POD + (self._pods if self.moved else 0)
        made = [port for called in self.ahead for port in called.service_ports()]
        for number in range(size.services):
            pods = range(first + number * size.endpoints, first + (number + 1) * size.endpoints)
            backends = tuple((str(ip_address(pod)), 8080) for pod in pods)
            made.append(ServicePort(f"scale/s{number}:http", str(ip_address(FIRST_VIP + number)), "tcp", 80, backends))
        return [*made, *(port for called in self.called for port in called.service_ports())]


def resync(restore: str, changed: Sequence[str] | None = None) -> str:
    """What kube-proxy gives to `iptables-restore --noflush` at a later time than its first.

    The jumps from netfilter's own chains are there already, and would else be added again. `changed`: names of the
    services of a partial sync (kube-proxy 1.28 and later): all of KUBE-SERVICES is written anew, and of the services'
    own chains theirs alone.
    """
    lines = restore[restore.index("*nat") :].splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith(tuple(f"-A {chain} " for chain in BUILT_IN))]
    if changed is None:
        return "".join(lines)
    words = tuple(f'"{name} ' for name in changed) + tuple(f'"{name}"' for name in changed)
    own = {line.split()[1] for line in lines if line.startswith(("-A KUBE-SVC-", "-A KUBE-SEP-")) and _has(line, words)}
    kept = []
    for line in lines:
        chain = line.split()[1] if line.startswith("-A ") else line[1:].split()[0]
        if not chain.startswith(("KUBE-SVC-", "KUBE-SEP-")) or chain in own:
            kept.append(line)
    return "".join(kept)


def _has(line: str, words: Sequence[str]) -> bool:
    return any(word in line for word in words)


def restore_parts(services: Sequence[ServicePort], cluster_cidr: str) -> Iterator[str]:
    """`restore_input` for several calls, PART services in each, that end with the same rules.

    What iptables-nft-restore 1.8.9 takes for one call grows with the square of its chains, in its own code.
    """
    last = ""
    for start in range(0, len(services), PART):
        rules = restore_input(services[start : start + PART], cluster_cidr)
        lines = rules.splitlines(keepends=True)
        last = next(line for line in lines if line.startswith("-A KUBE-SERVICES") and "addrtype" in line)
        own = (":KUBE-SVC-", ":KUBE-SEP-", "-A KUBE-SVC-", "-A KUBE-SEP-", "-A KUBE-SERVICES ")
        more = ["*nat\n", *(line for line in lines if line.startswith(own)), "COMMIT\n"]
        yield "".join(line for line in (more if start else lines) if line != last)
    yield f"*nat\n{last}COMMIT\n"
