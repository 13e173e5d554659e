"""A case: one way for a packet from the client pod to the server, in a node of its own. And those of `first_look`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.kube_proxy import ServicePort, restore_input
from bench.kube_proxy_nft import nft_input
from bench.measures import PORTS, Ends, Measure, server_commands
from bench.processes import BenchError, run, server
from bench.topology import BRIDGE, NODE_IP, POD_NETWORK, UPLINK, Node, Where, delete, node, stale_nodes

__all__ = ["CASES", "Case", "ReadyCase", "find_pydatapath", "loaded", "nothing", "ready", "sweep_stale"]

SERVICE = "default/web"
CLUSTER_IP = "10.96.0.10"
SERVICE_NETWORK = "10.96.0.0/16"
SERVERS_UP_S = 10.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One way to the server. `prepare` puts into the node (first argument) what is measured, and takes it away.

    `tracked`: netfilter tracks connections there. `bridge_netfilter`: also of what crosses the bridge.
    """

    name: str
    text: str
    prepare: Callable[[Node, Path], AbstractContextManager[None]]
    to_vip: bool = False
    where: Where = Where.POD
    tracked: bool = False
    bridge_netfilter: bool = False
    needs_pydatapath: bool = False


@dataclass(frozen=True)
class ReadyCase:
    """A case whose node stands, with its servers listening."""

    case: Case
    node: Node
    cpu: int | None

    def measure(self, measure: Measure, seconds: int) -> dict[str, float]:
        """Measure once from the client pod, over this case's way."""
        port, ends = measure.port, Ends(self.node.client, self.node.server, self.cpu)
        if self.case.to_vip:
            return measure.measure(ends, CLUSTER_IP, port.port, seconds)
        return measure.measure(ends, self.node.backends[0], port.target, seconds)


@contextlib.contextmanager
def nothing(_node: Node, _folder: Path) -> Iterator[None]:
    """A plain bridge or router needs nothing."""
    yield


@contextlib.contextmanager
def _iptables(this: Node, _folder: Path) -> Iterator[None]:
    """kube-proxy's rules for the one service; they end with the node's namespace."""
    run(["iptables-restore", "--noflush"], netns=this.netns, stdin=restore_input(_ports(this), POD_NETWORK))
    yield


@contextlib.contextmanager
def _nftables(this: Node, _folder: Path) -> Iterator[None]:
    """As `_iptables`, by kube-proxy's nftables mode."""
    table = nft_input(_ports(this), POD_NETWORK, SERVICE_NETWORK, [NODE_IP])
    run(["nft", "-f", "-"], netns=this.netns, stdin=table)
    yield


def _ports(this: Node) -> list[ServicePort]:
    """The one service, for kube-proxy."""
    return [
        ServicePort(
            f"{SERVICE}:{port.name}",
            CLUSTER_IP,
            port.protocol,
            port.port,
            tuple((address, port.target) for address in this.backends),
        )
        for port in PORTS
    ]


def _command(this: Node) -> list[str]:
    """The pydatapath command for the node's own instance."""
    return [find_pydatapath(), "--instance", this.name, "--netns", this.netns]


@contextlib.contextmanager
def loaded(this: Node, *options: str) -> Iterator[list[str]]:
    """pydatapath loaded into the node, with further options; yields the command for its instance."""
    command = _command(this)
    try:
        run([*command, "load", "--bridge", BRIDGE, "--uplink", UPLINK, "--node-name", "node1", *options])
        yield command
    except BaseException:
        with contextlib.suppress(BenchError):  # what went wrong first is what the user must read
            run([*command, "unload"])
        raise
    run([*command, "unload"])


@contextlib.contextmanager
def _pydatapath(this: Node, folder: Path) -> Iterator[None]:
    """pydatapath with the one service applied from a manifest."""
    manifest = folder / "service.json"
    manifest.write_text(json.dumps(manifests(this.backends), indent=2))
    with loaded(this) as command:
        run([*command, "apply", "-f", str(manifest)])
        yield


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("bridge", "pod to pod over the plain bridge, no service, nothing loaded", nothing),
        Case("vip-pydatapath", "pod to VIP, served by pydatapath", _pydatapath, to_vip=True, needs_pydatapath=True),
        Case(
            "vip-iptables",
            "pod to VIP, by kube-proxy's iptables rules",
            _iptables,
            to_vip=True,
            tracked=True,
            bridge_netfilter=True,
        ),
        Case(
            "vip-nftables",
            "pod to VIP, by the table of kube-proxy's nftables mode",
            _nftables,
            to_vip=True,
            tracked=True,
            bridge_netfilter=True,
        ),
        Case("bridge-loaded", "pod to pod, with pydatapath loaded", _pydatapath, needs_pydatapath=True),
    )
}


def manifests(backends: Sequence[str]) -> dict[str, object]:
    """A List of the Service and its EndpointSlice, as Kubernetes would hand them out."""
    namespace, name = SERVICE.split("/")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": CLUSTER_IP,
            "clusterIPs": [CLUSTER_IP],
            "ports": [
                {"name": p.name, "protocol": p.protocol.upper(), "port": p.port, "targetPort": p.target} for p in PORTS
            ],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": f"{name}-1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": p.name, "protocol": p.protocol.upper(), "port": p.target} for p in PORTS],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}, "nodeName": "node1"} for ip in backends],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}


def find_pydatapath() -> str:
    """The `pydatapath` command: of this interpreter's environment, of the repository's, or of PATH."""
    for folder in (Path(sys.executable).parent, ROOT / ".venv" / "bin"):
        if os.access(folder / "pydatapath", os.X_OK):
            return str(folder / "pydatapath")
    found = shutil.which("pydatapath")
    if found is None:
        raise BenchError("the pydatapath command is not installed: run `make setup` in the project's root")
    return found


def _wait_for_servers(this: Node) -> None:
    """Return when every port of the server is bound."""
    wanted = {(port.protocol, port.target) for port in PORTS}
    deadline = time.monotonic() + SERVERS_UP_S
    while True:
        rows = [line.split() for line in run(["ss", "-Hltun"], netns=this.server).splitlines()]
        missing = wanted - {(row[0], int(row[4].rsplit(":", 1)[1])) for row in rows}
        if not missing:
            return
        if time.monotonic() > deadline:
            ports = ", ".join(f"{port}/{protocol}" for protocol, port in sorted(missing))
            raise BenchError(f"nothing listens on {ports} in {this.server} after {SERVERS_UP_S:.0f} s")
        time.sleep(0.05)


def _check_way(case: Case, this: Node) -> None:
    """The way leads there and back: where the server has no route to the pods, that is the NAT's proof."""
    try:
        run(["ping", "-c1", "-W2", "-q", this.backends[0]], netns=this.client)
    except BenchError:
        raise BenchError(f"{case.name}: the client pings {this.backends[0]} and gets no answer") from None


def sweep_stale() -> list[str]:
    """Clear up after earlier runs that were killed outright, and name what was found: nodes, and pydatapath in them."""
    stale = stale_nodes()
    for this in stale:
        with contextlib.suppress(BenchError):  # not every node has one, and it may have been cut off half-way
            run([*_command(this), "unload"])
        delete(this)
    return [this.name for this in stale]


@contextlib.contextmanager
def ready(case: Case, run_id: str, workdir: Path, *, backends: int, cpu: int | None) -> Iterator[ReadyCase]:
    """Set a case up for the length of the `with`: node, pods, servers, and what is measured."""
    folder = workdir / case.name
    folder.mkdir()
    with ExitStack() as stack:
        this = stack.enter_context(
            node(f"{run_id}-{case.name}", where=case.where, backends=backends, bridge_netfilter=case.bridge_netfilter)
        )
        for name, argv in server_commands(folder, cpu).items():
            stack.enter_context(server(argv, netns=this.server, log=folder / f"{name}.log"))
        _wait_for_servers(this)
        stack.enter_context(case.prepare(this, folder))
        _check_way(case, this)
        yield ReadyCase(case, this, cpu)
