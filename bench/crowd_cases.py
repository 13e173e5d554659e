"""The implementations of `bench.crowd`, each with so many services, and a server of so many addresses."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from bench.kube_proxy import restore_input
from bench.kube_proxy_ipvs import SYSCTLS, ipvs_input, masquerade_input
from bench.kube_proxy_nft import nft_input
from bench.many import SERVICE_NETWORK, Called, Many, restore_parts
from bench.measures import PORTS
from bench.paths import CLUSTER_IP, Case, find_pydatapath, loaded, nothing
from bench.processes import BenchError, run
from bench.programmers import LEGACY_FORM, NFT_FORM
from bench.topology import BRIDGE, NODE_IP, POD_NETWORK, Node, set_sysctls

__all__ = ["Crowd", "add_addresses", "cases"]

MORE_PODS = "10.244.4.0/22"  # further addresses of the server: of one /24 there are too few for 1,000 endpoints
POD_CIDRS = ("10.244.1.0/24", MORE_PODS)
MAX_BACKENDS = 131_072


@dataclass(frozen=True)
class Crowd:
    """How many there are of each."""

    services: int = 1
    endpoints: int = 1  # of the service that is called
    flows: int = 0
    others: int = 2  # endpoints of each other service
    load_s: float = 150.0  # to load the rules; who takes longer is left out at that size

    def of(self, this: Node) -> Many:
        """The services, the last of which has the server's addresses."""
        more = ip_address(MORE_PODS.partition("/")[0])
        backends = [*this.backends, *(str(more + number) for number in range(1, self.endpoints))]
        ports = [port for port in PORTS if port.protocol == "tcp"]
        return Many(self.services, self.others, [Called("web", CLUSTER_IP, backends, ports=ports)])


@contextlib.contextmanager
def _ours(crowd: Crowd, max_flows: int, this: Node, folder: Path) -> Iterator[None]:
    manifest = folder / "all.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": crowd.of(this).manifests()}))
    sizes = ["--max-backends", str(MAX_BACKENDS), "--max-flows", str(max_flows)]
    with loaded(this, *sizes, *(word for cidr in POD_CIDRS for word in ("--pod-cidr", cidr))):
        command = [find_pydatapath(), "--instance", this.name, "--netns", this.netns]
        run([*command, "apply", "-f", str(manifest)], timeout=crowd.load_s)
        yield


def _lay(crowd: Crowd, argv: Sequence[str], this: Node, parts: Iterable[str]) -> None:
    """Rules in parts, within the time that there is for all of them."""
    deadline = time.monotonic() + crowd.load_s
    for part in parts:
        try:
            run(argv, netns=this.netns, stdin=part, timeout=max(0.1, deadline - time.monotonic()))
        except BenchError as error:
            if time.monotonic() < deadline:
                raise
            raise BenchError(f"its rules are not laid within {crowd.load_s:.0f} s") from error


@contextlib.contextmanager
def _iptables(restore: str, crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    services = crowd.of(this).service_ports()
    # the legacy form reads and writes the whole table at each call: there it is the parts that take long
    in_parts = restore == NFT_FORM
    parts = restore_parts(services, POD_NETWORK) if in_parts else [restore_input(services, POD_NETWORK)]
    _lay(crowd, [restore, "--noflush"], this, parts)
    yield


@contextlib.contextmanager
def _nftables(crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    table = nft_input(crowd.of(this).service_ports(), POD_NETWORK, SERVICE_NETWORK, [NODE_IP])
    _lay(crowd, ["nft", "-f", "-"], this, [table])
    yield


@contextlib.contextmanager
def _ipvs(crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    services = crowd.of(this).service_ports()
    called = [service for service in services if service.cluster_ip == CLUSTER_IP]
    addresses = "".join(f"address add {vip}/32 dev kube-ipvs0\n" for vip in {one.cluster_ip: 0 for one in services})
    run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"], netns=this.netns)
    run(["ip", "-batch", "-"], netns=this.netns, stdin=addresses, timeout=crowd.load_s)
    run(["ipvsadm", "--restore"], netns=this.netns, stdin=ipvs_input(services), timeout=crowd.load_s)
    set_sysctls(this.netns, SYSCTLS)
    run(["iptables-restore", "--noflush"], netns=this.netns, stdin=masquerade_input(called, POD_NETWORK))
    yield


def cases(crowd: Crowd, max_flows: int) -> list[Case]:
    """Each implementation with its services."""

    def netfilter(name: str, text: str, how: Callable[[Crowd, Node, Path], AbstractContextManager[None]]) -> Case:
        prepare = functools.partial(how, crowd)
        return Case(name, text, prepare, to_vip=True, tracked=True, bridge_netfilter=True, beside=["bridge"])

    return [
        Case("bridge", "pod to pod over the plain bridge, past all services", nothing),
        Case(
            "pydatapath",
            "by pydatapath",
            functools.partial(_ours, crowd, max_flows),
            to_vip=True,
            beside=["bridge", "iptables-legacy", "nftables"],
        ),
        netfilter(
            "iptables",
            "by kube-proxy's iptables rules in iptables' nft form; the last service is the last rule",
            functools.partial(_iptables, NFT_FORM),
        ),
        netfilter(
            "iptables-legacy", "the same in iptables' own, legacy form", functools.partial(_iptables, LEGACY_FORM)
        ),
        netfilter("nftables", "by the table of kube-proxy's nftables mode", _nftables),
        netfilter("ipvs", "by IPVS as in kube-proxy's IPVS mode", _ipvs),
    ]


def add_addresses(this: Node) -> None:
    """The server answers for further addresses, and the node has them as neighbours: it would not learn so many."""
    run(["ip", "route", "add", "local", MORE_PODS, "dev", "lo"], netns=this.server)
    shown = json.loads(run(["ip", "-json", "link", "show", "eth0"], netns=this.server))
    network = ip_address(MORE_PODS.partition("/")[0])
    lines = [f"neigh replace {network + one} lladdr {shown[0]['address']} dev {BRIDGE}" for one in range(1, 1_000)]
    run(["ip", "route", "add", MORE_PODS, "dev", BRIDGE], netns=this.netns)
    run(["ip", "-batch", "-"], netns=this.netns, stdin="\n".join(lines) + "\n")
