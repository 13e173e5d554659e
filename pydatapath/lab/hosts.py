"""The namespaces of a lab as objects: their addresses, and what runs in them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from socket import AF_INET, SOCK_STREAM, AddressFamily, SocketKind
from socket import socket as new_socket
from typing import IO, NoReturn, TypeAlias

from pydatapath.errors import NotFound
from pydatapath.kernel import netns as namespaces
from pydatapath.lab import processes, topology
from pydatapath.lab.topology import Place

__all__ = ["Host", "Node", "Pod"]

Stream: TypeAlias = int | IO[str] | None


@dataclass(frozen=True)
class Host:
    """A network namespace of a lab with an address: the outside, and the base of nodes and pods."""

    place: Place

    @property
    def name(self) -> str:
        """The name within the lab: `node1-pod2`."""
        return self.place.short_name

    @property
    def netns(self) -> str:
        """The name of the namespace: `lab-node1-pod2`."""
        return self.place.netns

    @property
    def address(self) -> str:
        """The IPv4 address of eth0."""
        return self.place.address

    @property
    def address6(self) -> str:
        """The IPv6 address that eth0 has in a dual-stack lab, "" for the switch; `Lab.dual_stack` tells."""
        return self.place.address6

    @property
    def containers(self) -> tuple[str, ...]:
        """The names of its containers; (): it is not divided into any."""
        return topology.containers_of(self.place)

    def command(self, argv: Sequence[str], *, container: str = "") -> list[str]:
        """The command line that runs `argv` here. Raises NotFound when the namespace or the container is not there."""
        self._check(container)
        return processes.command_in(self.netns, container, argv)

    def exec(
        self,
        argv: Sequence[str],
        *,
        container: str = "",
        stdin: str | None = None,
        timeout: float | None = 30.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` here to its end; output is text, `timeout` in seconds.

        `stdin` is the text that it reads. Raises what subprocess.run raises, and NotFound as `command` does.
        """
        command = self.command(argv, container=container)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=check)

    def popen(
        self,
        argv: Sequence[str],
        *,
        container: str = "",
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[str]:
        """Start `argv` here; the process id is the command's own (or, in a container, that of its launcher)."""
        command = self.command(argv, container=container)
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, text=True)

    def become(self, argv: Sequence[str], *, container: str = "") -> NoReturn:
        """Replace this process by `argv`, here: for a command line. Comes back only by raising, also without root."""
        processes.need_root()
        self._check(container)
        processes.replace_this_process(self.netns, container, argv)

    def socket(self, family: AddressFamily = AF_INET, kind: SocketKind = SOCK_STREAM, protocol: int = 0) -> new_socket:
        """A socket of this process that lives here: it keeps the namespace that it was made in."""
        with self.entered():
            return new_socket(family, kind, protocol)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be here for the length of the block (this thread only)."""
        with namespaces.entered(namespaces.path_of(self.netns)):
            yield

    def _check(self, container: str) -> None:
        if container and container not in self.containers:
            known = ", ".join(self.containers) or "none"
            raise NotFound(f"{self.netns} has no container {container!r}", hint=f"its containers: {known}")


@dataclass(frozen=True)
class Node(Host):
    """A node: eth0 on the uplink network, br0 with its pods, routes to the other nodes' pods."""

    uplink = "eth0"
    bridge = "br0"

    @property
    def number(self) -> int:
        """Which node it is, from 1."""
        return self.place.node

    @property
    def pod_cidr(self) -> str:
        """The network of its pods: `10.244.1.0/24`."""
        return topology.pod_cidr(self.number)

    @property
    def gateway(self) -> str:
        """The address of its bridge: `10.244.1.1`."""
        return topology.pod_gateway(self.number)

    @property
    def pod_cidr6(self) -> str:
        """The IPv6 network of its pods in a dual-stack lab: `fd00:10:244:1::/64`."""
        return topology.pod_cidr6(self.number)

    @property
    def gateway6(self) -> str:
        """The IPv6 address of its bridge in a dual-stack lab: `fd00:10:244:1::1`."""
        return topology.pod_gateway6(self.number)


@dataclass(frozen=True)
class Pod(Host):
    """A pod: eth0, and a default route to its node's bridge."""

    @property
    def number(self) -> int:
        """Which pod of its node it is, from 1."""
        return self.place.pod

    @property
    def node(self) -> Node:
        """The node that it is on."""
        return Node(Place(self.place.lab, node=self.place.node))

    @property
    def interface(self) -> str:
        """The name of the node's end of its veth pair: `pod1`."""
        return f"pod{self.number}"
