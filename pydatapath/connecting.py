"""What load does to a host, and its undoing: programs at tc hooks, clsact, the node's routes to its services, a sysctl.

Each change is noted in the records before it is made, so that it is found after a crash, too; what may refuse is asked
before anything is exchanged. Everything here works in the namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydatapath.errors import DatapathError, KernelError, NotFound
from pydatapath.instance import Instance
from pydatapath.kernel import libbpf, sysctl, tc
from pydatapath.kernel.compile import SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family, Hook
from pydatapath.node import Node
from pydatapath.records import HostChange, Records

if TYPE_CHECKING:
    from pydatapath.kernel.attach import Attacher
    from pydatapath.kernel.host import Interface
    from pydatapath.node import Network

__all__ = ["connect", "disconnect", "reconnect"]

# The value of net.ipv4.conf.lo.accept_local that we need: answers for the node's own calls of its node ports come in by
# the loopback from an address of the node's own, which the kernel takes for forged otherwise (fib_validate_source)
ACCEPT_LOCAL: Final = "1"


def connect(records: Records, instance: Instance, node: Node, programs: Path) -> None:
    """Hangs the programs up, each in one exchange, and takes away what an earlier load hung where nothing belongs now.

    Raises Conflict where a place or a route is another's; then no program was exchanged.
    """
    from pydatapath.kernel.attach import Attacher

    with Attacher() as attacher, _opened(programs, {one.hook for one in node.attachments}) as descriptors:
        for one in node.attachments:
            attacher.refuse_foreign(one.interface.index, one.interface.name, one.hook, instance.name)
        with _taken_back(records, attacher):
            _connect_routes(records, attacher, node)
            _connect_loopback(records, node)
            for one in node.attachments:
                interface = one.interface
                records.note_host_change(HostChange.FILTER, f"{interface.name} {one.hook.name}")
                if not tc.has_clsact(interface.index):
                    records.note_host_change(HostChange.CLSACT, f"{interface.name} {interface.index}")
                    attacher.add_clsact(interface.index, interface.name)
                attacher.attach(interface.index, interface.name, one.hook, descriptors[one.hook], instance.name)
        _drop_others(records, attacher, instance, node)


def reconnect(records: Records, instance: Instance) -> None:
    """After an exchange that failed half-way: the programs that ran before hang everywhere again."""
    from pydatapath.kernel.attach import Attacher

    pinned = {hook for hook in Hook if (instance.program_pins / hook.program).exists()}
    with Attacher() as attacher, _opened(instance.program_pins, pinned) as descriptors:
        for subject in records.host_changes(HostChange.FILTER):
            name, hook = subject.split()
            with contextlib.suppress(OSError):
                index = socket.if_nametoindex(name)
                if Hook[hook] in descriptors and attacher.ours(index, Hook[hook], instance.name):
                    attacher.attach(index, name, Hook[hook], descriptors[Hook[hook]], instance.name)


def disconnect(instance: Instance) -> None:
    """Takes everything of ours from the host: by the filters' own names, for the rest by the records.

    Goes on where a step fails, and raises the first KernelError at the end.
    """
    from pydatapath.kernel.attach import Attacher

    failed: list[KernelError] = []
    changes = _recorded(instance)
    with Attacher() as attacher:
        for index, name in socket.if_nameindex():
            for hook in Hook:
                with _collected(failed):
                    attacher.detach(index, name, hook, instance.name)
        if changes is None:
            with _collected(failed):
                attacher.delete_all_service_routes()
            changes = {}
        for kind, undo in UNDOING.items():
            for subject in changes.get(kind, ()):
                with _collected(failed):
                    undo(attacher, subject)
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _collected(failed: list[KernelError]) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        failed.append(error)


def _recorded(instance: Instance) -> dict[HostChange, list[str]] | None:
    """The noted changes; None where there are no records that can be read."""
    with contextlib.suppress(DatapathError), Records(instance.records) as records:
        return {kind: records.host_changes(kind) for kind in HostChange}
    return None


@contextlib.contextmanager
def _taken_back(records: Records, attacher: Attacher) -> Iterator[None]:
    """Where the block fails, what it did is undone. Filters are `reconnect`'s business, and clsact stays with them."""
    before = {kind: set(records.host_changes(kind)) for kind in UNDOING if kind is not HostChange.CLSACT}
    try:
        yield
    except BaseException:
        for kind, known in before.items():
            for subject in set(records.host_changes(kind)) - known:
                with contextlib.suppress(DatapathError):
                    UNDOING[kind](attacher, subject)
                    records.forget_host_change(kind, subject)
        records.commit()
        raise


def _drop_others(records: Records, attacher: Attacher, instance: Instance, node: Node) -> None:
    """What an earlier load did and nobody needs now."""
    filters = {f"{one.interface.name} {one.hook.name}" for one in node.attachments}
    for subject in set(records.host_changes(HostChange.FILTER)) - filters:
        name, hook = subject.split()
        with contextlib.suppress(OSError):  # an interface that is gone has taken its filters along
            attacher.detach(socket.if_nametoindex(name), name, Hook[hook], instance.name)
        records.forget_host_change(HostChange.FILTER, subject)
    needed = _needed(node)
    for kind, undo in UNDOING.items():
        for subject in records.host_changes(kind):
            if not needed[kind](subject):
                undo(attacher, subject)
                records.forget_host_change(kind, subject)


def _needed(node: Node) -> dict[HostChange, Callable[[str], bool]]:
    """Whether a node needs what was done to the host, by kind and subject."""
    routes = list(_routes(node))
    loopback = _loopback(node)
    neighbours = {f"{bridge.name} {_gateway(network)}" for network, bridge in routes}
    # Records of an earlier version, which knew IPv4 only, name the bridge alone
    neighbours |= {bridge.name for network, bridge in routes if isinstance(network, IPv4Network)}
    return {
        HostChange.CLSACT: {f"{one.interface.name} {one.interface.index}" for one in node.attachments}.__contains__,
        HostChange.ROUTE: {f"{network} {bridge.name}" for network, bridge in routes}.__contains__,
        HostChange.NEIGHBOUR: neighbours.__contains__,
        HostChange.SYSCTL: lambda subject: loopback is not None and subject.startswith(f"{_accept_local(loopback)}="),
    }


def _routes(node: Node) -> Iterator[tuple[Network, Interface]]:
    """The networks that the node reaches by the datapath, each with the bridge that the way leads over."""
    for bridge in node.bridges[:1]:
        for family, scope in node.scopes.items():
            if scope.service_networks:
                # The next hop is a source, too, where the node calls itself by a service: its answers go there
                for network in (*scope.service_networks, ip_network(SERVICE_GATEWAYS[family])):
                    yield network, bridge


def _gateway(network: Network) -> IPv4Address | IPv6Address:
    return SERVICE_GATEWAYS[Family(network.version)]


def _connect_routes(records: Records, attacher: Attacher, node: Node) -> None:
    for network, bridge in _routes(node):
        # Noted before it is made; deleting it goes by our protocol number, so another's route is never meant
        records.note_host_change(HostChange.NEIGHBOUR, f"{bridge.name} {_gateway(network)}")
        records.note_host_change(HostChange.ROUTE, f"{network} {bridge.name}")
        if not attacher.has_service_route(network, bridge.index):
            attacher.add_service_route(network, bridge.index, _source(node, bridge, Family(network.version)))


def _source(node: Node, bridge: Interface, family: Family) -> IPv4Address | IPv6Address:
    """The address that the node's own packets to services carry: the bridge's, else the node's."""
    shown = node.scopes[family].masquerade_address
    assert shown is not None, "a family with service networks has an address"
    return next((at.ip for at in bridge.addresses if at.version == family), shown)


def _connect_loopback(records: Records, node: Node) -> None:
    """Lets the answers for the node's own calls of its IPv4 node ports in."""
    loopback = _loopback(node)
    if loopback is None:
        return
    name = _accept_local(loopback)
    before = sysctl.read(name)
    if before not in (ACCEPT_LOCAL, None):
        records.note_host_change(HostChange.SYSCTL, f"{name}={before}")
        sysctl.write(name, ACCEPT_LOCAL)


def _loopback(node: Node) -> Interface | None:
    """Where node ports of IPv4 are called."""
    return node.loopback if node.scopes[Family.IPV4].node_port_addresses else None


def _accept_local(loopback: Interface) -> str:
    return f"net/ipv4/conf/{loopback.name}/accept_local"


@contextlib.contextmanager
def _opened(programs: Path, hooks: set[Hook]) -> Iterator[dict[Hook, int]]:
    descriptors: dict[Hook, int] = {}
    try:
        for hook in hooks:
            descriptors[hook] = libbpf.open_pin(str(programs / hook.program))
        yield descriptors
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _delete_clsact(attacher: Attacher, subject: str) -> None:
    """By the interface's index: it may have been renamed, and another may have its name."""
    index = int(subject.split()[1])
    with contextlib.suppress(OSError):
        attacher.delete_clsact(index, socket.if_indextoname(index))


def _delete_route(attacher: Attacher, subject: str) -> None:
    network, bridge = subject.split()
    with contextlib.suppress(OSError, NotFound):
        attacher.delete_service_route(ip_network(network), socket.if_nametoindex(bridge))


def _delete_neighbour(attacher: Attacher, subject: str) -> None:
    """By bridge and next hop; records of an earlier version, which knew IPv4 only, name the bridge alone."""
    bridge, _, gateway = subject.partition(" ")
    with contextlib.suppress(OSError):
        index = socket.if_nametoindex(bridge)
        attacher.delete_service_gateway(ip_address(gateway or str(SERVICE_GATEWAYS[Family.IPV4])), index)


def _restore_sysctl(_: Attacher, subject: str) -> None:
    """As it was before us, unless somebody has set it to something else since."""
    name, before = subject.rsplit("=", 1)
    if sysctl.read(name) == ACCEPT_LOCAL:
        sysctl.write(name, before)


# How each kind of change to the host is taken back, in this order
UNDOING: Final[Mapping[HostChange, Callable[[Attacher, str], None]]] = {
    HostChange.CLSACT: _delete_clsact,
    HostChange.ROUTE: _delete_route,
    HostChange.NEIGHBOUR: _delete_neighbour,
    HostChange.SYSCTL: _restore_sysctl,
}
