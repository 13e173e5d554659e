"""What load does to a host, and its undoing: programs at tc hooks, clsact, the node's routes to its services.

Each change is noted in the records before it is made, so that it is found after a crash, too; what may refuse is asked
before anything is exchanged. Everything here works in the namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from pydatapath.errors import DatapathError, KernelError, NotFound
from pydatapath.instance import Instance
from pydatapath.kernel import libbpf, tc
from pydatapath.kernel.compile import SERVICE_GATEWAY
from pydatapath.kernel.layout import Hook
from pydatapath.node import Node
from pydatapath.records import HostChange, Records

if TYPE_CHECKING:
    from pydatapath.kernel.attach import Attacher

__all__ = ["connect", "disconnect", "reconnect"]


def connect(records: Records, instance: Instance, node: Node, programs: Path) -> None:
    """Hangs the programs up, each in one exchange, and takes away what an earlier load hung where nothing belongs now.

    Raises Conflict where a place or a route is another's; then no program was exchanged.
    """
    from pydatapath.kernel.attach import Attacher

    with Attacher() as attacher, _opened(programs, {one.hook for one in node.attachments}) as descriptors:
        for one in node.attachments:
            attacher.refuse_foreign(one.interface.index, one.interface.name, one.hook, instance.name)
        _connect_routes(records, attacher, node)
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
        for subject in changes.get(HostChange.CLSACT, ()):
            with _collected(failed):
                _delete_clsact(attacher, subject)
        for subject in changes.get(HostChange.ROUTE, ()):
            with _collected(failed):
                _delete_route(attacher, subject)
        for subject in changes.get(HostChange.NEIGHBOUR, ()):
            with _collected(failed), contextlib.suppress(OSError):
                attacher.delete_service_gateway(socket.if_nametoindex(subject))
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


def _drop_others(records: Records, attacher: Attacher, instance: Instance, node: Node) -> None:
    """What an earlier load hung where nothing belongs now."""
    filters = {f"{one.interface.name} {one.hook.name}" for one in node.attachments}
    for subject in set(records.host_changes(HostChange.FILTER)) - filters:
        name, hook = subject.split()
        with contextlib.suppress(OSError):  # an interface that is gone has taken its filters along
            attacher.detach(socket.if_nametoindex(name), name, Hook[hook], instance.name)
        records.forget_host_change(HostChange.FILTER, subject)
    used = {f"{one.interface.name} {one.interface.index}" for one in node.attachments}
    for subject in set(records.host_changes(HostChange.CLSACT)) - used:
        _delete_clsact(attacher, subject)
        records.forget_host_change(HostChange.CLSACT, subject)


def _connect_routes(records: Records, attacher: Attacher, node: Node) -> None:
    bridges = node.bridges[:1]
    # The next hop is a source, too, where the node calls itself by a service: its answers go there
    networks = [*node.service_networks, IPv4Network(SERVICE_GATEWAY)] if node.service_networks else []
    wanted = {f"{network} {bridge.name}" for network in networks for bridge in bridges}
    for network in networks:
        for bridge in bridges:
            subject = f"{network} {bridge.name}"
            if attacher.has_service_route(network, bridge.index):
                records.note_host_change(HostChange.ROUTE, subject)
                continue
            records.note_host_change(HostChange.NEIGHBOUR, bridge.name)
            # Noted before it is made; deleting it goes by our protocol number, so another's route is never meant
            records.note_host_change(HostChange.ROUTE, subject)
            attacher.add_service_route(network, bridge.index, _source(node, bridge.index))
    for subject in set(records.host_changes(HostChange.ROUTE)) - wanted:
        _delete_route(attacher, subject)
        records.forget_host_change(HostChange.ROUTE, subject)


def _source(node: Node, bridge: int) -> IPv4Address:
    """The address that the node's own packets to services carry: the bridge's, else the node's."""
    own = [at.ip for one in node.bridges if one.index == bridge for at in one.addresses]
    return (own or [node.masquerade_address])[0]


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
        attacher.delete_service_route(IPv4Network(network), socket.if_nametoindex(bridge))
