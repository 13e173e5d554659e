"""The paths that are compared: pod to pod in several ways, and pod to a service's virtual IP by several means."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.kube_proxy import ServicePort, restore_input
from bench.kube_proxy_ipvs import SYSCTLS, ipvs_input, masquerade_input
from bench.kube_proxy_nft import nft_input
from bench.measures import PORTS
from bench.paths import CLUSTER_IP, Case, lacks_pydatapath, loaded, nothing, why_not
from bench.processes import run
from bench.topology import NODE_IP, POD_NETWORK, Node, Where, set_sysctls

__all__ = ["CASES", "lacks_ipvs", "manifests"]

SERVICE = "default/web"
PLAIN = ("bridge", "veth")  # what the ways of one node are compared with
SERVICE_NETWORK = "10.96.0.0/16"
PAST = ("--pod-fast-path", "always")  # the bridge
BRIDGE_NETFILTER = Path("/proc/sys/net/bridge")
# iptables-legacy waits for whoever changes rules anywhere on the machine, and they for it; our tables are ours alone
NO_LOCK = ("env", f"XTABLES_LOCKFILE={os.devnull}")
SAMPLE = ServicePort(f"{SERVICE}:http", CLUSTER_IP, "tcp", 80, (("10.244.1.12", 8080), ("10.244.1.13", 8080)))


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


@contextlib.contextmanager
def _pydatapath(this: Node, folder: Path, options: Sequence[str] = ()) -> Iterator[None]:
    """pydatapath on every node, with the one service applied from a manifest."""
    manifest = folder / "service.json"
    manifest.write_text(json.dumps(manifests(this), indent=2))
    with loaded(this, *options) as commands:
        for command in commands:
            run([*command, "apply", "-f", str(manifest)])
        yield


@contextlib.contextmanager
def _without_service(this: Node, _folder: Path) -> Iterator[None]:
    """pydatapath, with nothing applied: no flow is entered, so that each packet is looked at anew."""
    with loaded(this, *PAST):
        yield


@contextlib.contextmanager
def _iptables(restore: str, this: Node, _folder: Path) -> Iterator[None]:
    """kube-proxy's rules for the one service; they end with the node's namespace."""
    run([*NO_LOCK, restore, "--noflush"], netns=this.netns, stdin=restore_input(_ports(this), POD_NETWORK))
    yield


@contextlib.contextmanager
def _nftables(this: Node, _folder: Path) -> Iterator[None]:
    """As `_iptables`, by kube-proxy's nftables mode."""
    table = nft_input(_ports(this), POD_NETWORK, SERVICE_NETWORK, [NODE_IP])
    run(["nft", "-f", "-"], netns=this.netns, stdin=table)
    yield


@contextlib.contextmanager
def _ipvs(this: Node, _folder: Path) -> Iterator[None]:
    """As `_iptables`, by kube-proxy's IPVS mode: the virtual IP is the node's own, on a link that stays down."""
    run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"], netns=this.netns)
    run(["ip", "address", "add", f"{CLUSTER_IP}/32", "dev", "kube-ipvs0"], netns=this.netns)
    run(["ipvsadm", "--restore"], netns=this.netns, stdin=ipvs_input(_ports(this)))
    set_sysctls(this.netns, SYSCTLS)  # they exist from IPVS's first use on
    run(
        [*NO_LOCK, "iptables-restore", "--noflush"], netns=this.netns, stdin=masquerade_input(_ports(this), POD_NETWORK)
    )
    yield


def _lacks_netfilter(*argv: str, stdin: str) -> str:
    if not BRIDGE_NETFILTER.is_dir():
        return "kube-proxy's rules need br_netfilter where client and server share a bridge: modprobe it"
    return why_not(argv, stdin)


def lacks_ipvs() -> str:
    """Why there is no IPVS here; "" where a virtual server can be made."""
    alone = dataclasses.replace(SAMPLE, backends=())  # where no link is up, no address of a backend is a host's
    lack = _lacks_netfilter("ipvsadm", "--restore", stdin=ipvs_input([alone]))
    return lack and f"IPVS cannot be used here, {lack}"


def _kube_proxy(
    name: str, how: str, prepare: Callable[..., contextlib.AbstractContextManager[None]], lack: Callable[[], str]
) -> Case:
    """A way to the virtual IP by netfilter."""
    text = f"pod to VIP, {how}"
    return Case(name, text, prepare, to_vip=True, tracked=True, bridge_netfilter=True, beside=PLAIN, lack=lack)


def _by_iptables(name: str, restore: str, how: str) -> Case:
    lack = functools.partial(
        _lacks_netfilter, *NO_LOCK, restore, "--noflush", stdin=restore_input([SAMPLE], POD_NETWORK)
    )
    return _kube_proxy(name, f"by kube-proxy's iptables rules, {how}", functools.partial(_iptables, restore), lack)


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("veth", "client and server at the two ends of one veth pair, no node between", nothing, where=Where.LINK),
        Case("bridge", "pod to pod over the plain bridge, no service, nothing loaded", nothing, beside=["veth"]),
        Case("bridge-loaded", "pod to pod, with pydatapath loaded", _pydatapath, beside=PLAIN, lack=lacks_pydatapath),
        Case(
            "pod-fast",
            "pod to pod, past the bridge by pydatapath's pod fast path",
            functools.partial(_pydatapath, options=PAST),
            beside=PLAIN,
            lack=lacks_pydatapath,
        ),
        Case(
            "pod-fast-unserved",
            "the same, where no service has a backend: no flow is known",
            _without_service,
            beside=PLAIN,
            lack=lacks_pydatapath,
        ),
        Case(
            "routed",
            "pod to pod in another subnet by the node's routing, without a bridge",
            nothing,
            where=Where.SUBNET,
            beside=PLAIN,
        ),
        Case(
            "vip-local",
            "pod to VIP, served by pydatapath",
            _pydatapath,
            to_vip=True,
            beside=PLAIN,
            lack=lacks_pydatapath,
        ),
        _by_iptables("vip-iptables", "iptables-nft-restore", "in iptables' nft form"),
        _by_iptables("vip-iptables-legacy", "iptables-legacy-restore", "in iptables' own, legacy form"),
        _kube_proxy(
            "vip-nftables",
            "by the table of kube-proxy's nftables mode",
            _nftables,
            functools.partial(
                _lacks_netfilter,
                *("nft", "-f", "-"),
                stdin=nft_input([SAMPLE], POD_NETWORK, SERVICE_NETWORK, [NODE_IP]),
            ),
        ),
        _kube_proxy(
            "vip-ipvs",
            "by IPVS as in kube-proxy's IPVS mode: round robin, NAT",
            _ipvs,
            lacks_ipvs,
        ),
        Case(
            "remote-routed", "pod to a pod of another node over the uplink, nothing loaded", nothing, where=Where.NODE2
        ),
        Case(
            "vip-remote",
            "pod to VIP, whose backend is a pod of another node; pydatapath on both nodes",
            _pydatapath,
            to_vip=True,
            where=Where.NODE2,
            beside=["remote-routed"],
            lack=lacks_pydatapath,
        ),
    )
}


def manifests(this: Node) -> dict[str, object]:
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
        "endpoints": [
            {"addresses": [ip], "conditions": {"ready": True}, "nodeName": this.server_node} for ip in this.backends
        ],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}
