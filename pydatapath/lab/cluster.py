"""A lab that runs: brought up, looked at, used and taken down.

with Lab.up(LabSpec(name="t1", nodes=2, pods=2)) as lab:
    lab.pod(1, 2).exec(["ping", "-c1", lab.pod(2, 1).address])
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from pydatapath import interrupts
from pydatapath.errors import Conflict, DatapathError, LabError, NotFound
from pydatapath.kernel import links
from pydatapath.kernel import netns as namespaces
from pydatapath.lab import processes, topology
from pydatapath.lab.hosts import Host, Node, Pod
from pydatapath.lab.topology import LabSpec, Place, Topology

if TYPE_CHECKING:
    from pydatapath.instance import Instance

__all__ = ["Lab", "find_host", "labs"]

SomeHost = TypeVar("SomeHost", bound="Host")

IPV6_SECONDS = 5.0  # what interfaces get to be ready for IPv6; they need no millisecond


class Lab:
    """A cluster of network namespaces. As a context manager it is taken down at the end of the block."""

    def __init__(self, name: str, places: Sequence[Place]) -> None:
        """For a lab that exists; `Lab.up` makes one and `Lab.open` finds one."""
        self.name = name
        self.nodes = tuple(Node(place) for place in places if place.kind == "node")
        self.pods = tuple(Pod(place) for place in places if place.kind == "pod")
        self.outside = Host(Place(name, "outside"))

    @classmethod
    def up(cls, spec: LabSpec | None = None) -> Lab:
        """Bring a lab up; None is two nodes with two pods each, called `lab`.

        Raises LabError without root, Conflict when it exists, KernelError when the kernel refuses; then nothing is
        left of it.
        """
        spec = spec or LabSpec()
        processes.need_root()
        if Place(spec.name, "switch").netns in _namespace_names():
            hint = f"`pydatapath lab down --name {spec.name}` first, or choose another --name"
            raise Conflict(f"lab {spec.name!r} is up already", hint=hint)
        plan = topology.topology_of(spec)
        made: list[str] = []
        with interrupts.deferred() as interruptible:
            try:
                for namespace in plan.namespaces:
                    links.create_namespace(namespace.name)
                    made.append(namespace.name)
                    links.write_sysctls(namespace.name, namespace.sysctls)
                    links.write_sysctls(namespace.name, namespace.optional, optional=True)
                    with interruptible():
                        pass  # a Ctrl-C until here ends it now
                _connect(plan)
                _wait_for_ipv6(plan)
            except BaseException:
                _remove(made)
                raise
        return cls.open(spec.name)

    @classmethod
    def open(cls, name: str = "lab") -> Lab:
        """The lab called `name`. Raises NotFound when it is not up."""
        topology.check_name(name)
        places = topology.places_of(_namespace_names()).get(name)
        if places is None:
            raise NotFound(f"there is no lab {name!r}", hint="`pydatapath lab list` shows those that are up")
        return cls(name, places)

    def down(self) -> list[Instance]:
        """Take the lab away, with all processes and every datapath in it; gives these datapaths.

        Raises LabError without root, NotFound when it is down, Conflict when somebody holds a datapath for long.
        """
        processes.need_root()
        with interrupts.deferred():
            return _remove([host.netns for host in Lab.open(self.name).hosts])

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All its namespaces; the switch, which has no address, first."""
        return (Host(Place(self.name, "switch")), self.outside, *self.nodes, *self.pods)

    @property
    def dual_stack(self) -> bool | None:
        """Whether it has IPv6 beside IPv4, as its namespaces say; None when that cannot be found out: without root."""
        answers = [_has_ipv6(host) for host in (self.outside, *self.nodes)]
        return None if set(answers) == {None} else any(answers)

    def node(self, number: int) -> Node:
        """Node `number`, from 1. Raises NotFound."""
        return self._one(Node(Place(self.name, node=number)), self.nodes)

    def pod(self, node: int, number: int) -> Pod:
        """Pod `number` of node `node`, both from 1. Raises NotFound."""
        return self._one(Pod(Place(self.name, node=node, pod=number)), self.pods)

    def pods_of(self, node: Node) -> tuple[Pod, ...]:
        """The pods on `node`."""
        return tuple(pod for pod in self.pods if pod.place.node == node.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NotFound):  # taken down inside the block
            self.down()

    def _one(self, wanted: SomeHost, there: Sequence[SomeHost]) -> SomeHost:
        if wanted not in there:
            raise NotFound(f"lab {self.name!r} has no {wanted.name}", hint="`pydatapath lab show` draws what it has")
        return wanted


def labs() -> list[Lab]:
    """All labs that are up, by name."""
    return [Lab(name, places) for name, places in sorted(topology.places_of(_namespace_names()).items())]


def find_host(name: str) -> Host:
    """The host called `name`: a namespace (`lab-node1-pod1`) or, when only one lab has it, a short name (`node1-pod1`).

    Raises NotFound when there is none, Conflict when several labs have one.
    """
    hosts = [host for lab in labs() for host in lab.hosts]
    found = [host for host in hosts if host.netns == name] or [host for host in hosts if host.name == name]
    if not found:
        raise NotFound(f"no lab has a namespace {name!r}", hint="`pydatapath lab list` shows what there is")
    if len(found) > 1:
        candidates = " or ".join(host.netns for host in found)
        raise Conflict(f"several labs have a {name}", hint=f"say which: {candidates}")
    return found[0]


def _connect(plan: Topology) -> None:
    """Put bridges, veths, addresses and routes into the namespaces of `plan`; one netlink socket is open at a time."""
    _plug(plan)
    _configure(plan)


def _plug(plan: Topology) -> None:
    """Bridges with their addresses, and veths."""
    for netns in {bridge.netns: None for bridge in plan.bridges}:
        with links.Links(netns) as inside:
            for bridge in plan.bridges:
                if bridge.netns == netns:
                    inside.bridge(bridge.name, bridge.mac)
                    for address in bridge.addresses:
                        inside.address(bridge.name, address)
            for veth in plan.veths:
                if veth.netns == netns:
                    inside.veth(veth.port, "eth0", veth.peer_netns, peer_mac=veth.mac, bridge=veth.bridge)


def _configure(plan: Topology) -> None:
    """The addresses of all eth0, and routes."""
    for space in plan.namespaces:
        with links.Links(space.name) as inside:
            inside.up("lo")
            for veth in plan.veths:
                if veth.peer_netns == space.name:
                    for address in veth.addresses:
                        inside.address("eth0", address)
                    inside.up("eth0")
            for route in plan.routes:
                if route.netns == space.name:
                    inside.route(route.destination, via=route.via)


def _wait_for_ipv6(plan: Topology) -> None:
    """Wait until the interfaces of a dual-stack lab can ask for neighbours: that takes a link-local address.

    The kernel gives it when it has noticed that the cable is plugged in. Raises LabError where that does not happen.
    """
    deadline = time.monotonic() + IPV6_SECONDS
    for veth in plan.veths:
        for netns, device in ((veth.netns, veth.bridge), (veth.peer_netns, "eth0")) if veth.address6 else ():
            while not _is_ready(netns, device):
                if time.monotonic() > deadline:
                    raise LabError(f"{device} of {netns} is not ready for IPv6 after {IPV6_SECONDS:.0f} s")
                time.sleep(0.001)


def _is_ready(netns: str, device: str) -> bool:
    found = [one for one in links.addresses6(netns) if one.device == device]
    return any(one.address.is_link_local for one in found) and not any(one.tentative for one in found)


def _has_ipv6(host: Host) -> bool | None:
    """Whether a host has its address of a dual-stack lab, None when it cannot be asked."""
    try:
        return any(str(one.address) == host.address6 for one in links.addresses6(host.netns))
    except DatapathError:
        return None


def _remove(names: Sequence[str]) -> list[Instance]:
    """End what runs in the namespaces called `names`, unload the datapaths there, and take the namespaces away.

    The switch, the first, goes last. Gives the datapaths that were loaded: their pins would outlive the namespaces.
    """
    from pydatapath.lab import instances  # who only looks at labs does not wait for it

    processes.end_processes(names)
    unloaded = instances.unload(names)
    for name in reversed(names):
        with contextlib.suppress(NotFound):  # somebody was quicker
            links.delete_namespace(name)
    return unloaded


def _namespace_names() -> list[str]:
    """The names of all named network namespaces of this machine."""
    try:
        return os.listdir(namespaces.RUN_NETNS)
    except FileNotFoundError:
        return []
