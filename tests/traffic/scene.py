"""What the traffic tests play on: a lab, its echo servers and its datapaths, services, and the command line."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from measuring import measured

from pydatapath import Datapath, EndpointSlice, Options, Service, schema
from pydatapath.lab import Host, Lab, LabSpec, Pod

__all__ = [
    "BIG",
    "EMULATED",
    "PATIENCE",
    "PORT",
    "VIP_PORT",
    "Cluster",
    "cluster_up",
    "is_readable",
    "objects",
    "pydatapath",
]

BIG = bool(os.environ.get("PYDATAPATH_BIG"))  # the figures of the "must show", for a run by hand
EMULATED = "PYDATAPATH_EMULATED" in os.environ  # some thirty times slower
PATIENCE = 600 if EMULATED else 60  # seconds for a command, which may have to compile
VIP_PORT = 80
PORT = 8080
SERVER = Path(__file__).with_name("echo_server.py")
PYDATAPATH = Path(sys.executable).with_name("pydatapath")
AS_NOBODY = Path(__file__).parents[1] / "as_nobody.py"
READY_SECONDS = 10.0


def objects(
    name: str,
    vip: str,
    pods: Iterable[Pod],
    *,
    port: int = VIP_PORT,
    target: int = PORT,
    node_port: int | None = None,
    balancer: str = "",
    **spec: object,
) -> list[Service | EndpointSlice]:
    """A service at `vip`, over TCP and UDP, and the slice of its backends, of the family of `vip`.

    `spec`: more of Service.spec.
    """
    six = ":" in vip
    kinds = [{"name": kind.lower(), "protocol": kind} for kind in ("TCP", "UDP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "clusterIP": vip,
            "ports": [{**kind, "port": port, "targetPort": target, "nodePort": node_port} for kind in kinds],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": balancer}] if balancer else []}},
    }
    backends = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if six else "IPv4",
        "ports": [{**kind, "port": target} for kind in kinds],
        "endpoints": [
            {"addresses": [pod.address6 if six else pod.address], "nodeName": pod.node.netns} for pod in pods
        ],
    }
    return [schema.parse(service, "test"), schema.parse(backends, "test")]


def pydatapath(*arguments: str, stdin: str = "", as_nobody_in: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, as a user runs it; or as one without root, in the namespace of this name."""
    command = [str(PYDATAPATH), *arguments]
    if as_nobody_in:
        command = ["nsenter", f"--net=/run/netns/{as_nobody_in}", "--", sys.executable, str(AS_NOBODY), *arguments]
    return measured(command, stdin=stdin, timeout=PATIENCE)


def is_readable(file: IO[Any], seconds: float) -> bool:
    """Waits until there is something to read. By poll(2): select(2) knows no descriptors over 1,023."""
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))


class Cluster:
    """A lab whose nodes are loaded, each with an instance of its own, and whose pods may serve."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.datapaths: dict[int, Datapath] = {}
        self._servers: dict[str, subprocess.Popen[str]] = {}

    def load(self, *nodes: int, **more: Any) -> None:
        """Load the datapath on these nodes. `more`: of Options, or other values for what stands here."""
        for number in nodes:
            name = self.lab.node(number).netns
            options = Options(**{"node_name": name, "cluster_cidr": ("10.244.0.0/16",), "masquerade": False, **more})
            loaded = Datapath.load(options, netns=name)
            if number in self.datapaths:
                self.datapaths[number].close()
            self.datapaths[number] = loaded

    def apply(self, name: str, vip: str, pods: Iterable[Pod], **more: Any) -> None:
        """Make a service, or change it, on all loaded nodes. `more` as in `objects`."""
        made = objects(name, vip, pods, **more)
        for datapath in self.datapaths.values():
            datapath.apply(made)

    def serve(self, *pods: Pod, ports: Iterable[int] = (PORT,)) -> None:
        """Start echo servers, and wait until they listen."""
        for pod in pods:
            command = [sys.executable, "-I", "-S", str(SERVER), pod.name, *map(str, ports)]
            self._servers[pod.name] = pod.popen(command, stdout=subprocess.PIPE)
        for pod in pods:
            output = self._servers[pod.name].stdout
            assert output is not None
            assert is_readable(output, READY_SECONDS), f"{pod.name} does not get ready"
            assert output.readline() == "ready\n"

    def kill(self, pod: Pod) -> None:
        """End the server of a pod, as a crash does."""
        server = self._servers.pop(pod.name)
        server.kill()
        server.communicate(timeout=READY_SECONDS)

    def close(self) -> None:
        """End all servers and unload."""
        for pod in self.lab.pods:
            if pod.name in self._servers:
                self.kill(pod)
        for datapath in self.datapaths.values():
            datapath.unload()

    def hosts(self) -> tuple[Host, ...]:
        """All namespaces of the lab."""
        return self.lab.hosts


@contextlib.contextmanager
def cluster_up(
    name: str,
    *,
    nodes: int = 2,
    pods: int = 3,
    loaded: Iterable[int] = (1,),
    dual_stack: bool = False,
    **options: Any,
) -> Iterator[Cluster]:
    """A cluster for the length of the block; nothing of it stays. `options`: as in `Cluster.load`."""
    with Lab.up(LabSpec(name, nodes=nodes, pods=pods, dual_stack=dual_stack)) as lab:
        cluster = Cluster(lab)
        try:
            cluster.load(*loaded, **options)
            yield cluster
        finally:
            cluster.close()
