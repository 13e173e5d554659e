"""What load does to a host, and its undoing: programs at tc hooks, clsact, the node's routes to its services, a sysctl.

Each change is noted in the records before it is made, so that it is found after a crash, too; what may refuse is asked
before anything is exchanged. Everything here works in the namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pydatapath.errors import DatapathError, KernelError, NotFound
from pydatapath.instance import Instance
from pydatapath.kernel import host, libbpf, sysctl, tc
from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family, Hook
from pydatapath.node import Node
from pydatapath.record_faults import copy_of
from pydatapath.records import HostChange, Records
from pydatapath.wiring import ACCEPT_LOCAL, accept_local, gateway_of, needed, routes_of

if TYPE_CHECKING:
    from pydatapath.kernel.attach import Attacher
    from pydatapath.kernel.host import Interface
    from pydatapath.node import Attachment

__all__ = ["connected", "disconnect", "drop_others"]

# Descriptors of programs by their ids
Programs: TypeAlias = Callable[[], contextlib.AbstractContextManager[dict[int, int]]]


@contextlib.contextmanager
def connected(
    records: Records, instance: Instance, node: Node, programs: Path, at_last: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hangs the programs up and takes away what an earlier load hung where nothing belongs now, all in one exchange;
    `at_last`: what is done just before that.

    Raises Conflict where a place or a route is another's; then no program was exchanged. Whatever fails, in the block,
    too, the programs that hung there before do so again, before anything else is undone.
    """
    from pydatapath.kernel.attach import Attacher

    with Attacher() as attacher, _opened(programs, {one.hook for one in node.attachments}) as descriptors:
        for one in node.attachments:
            attacher.refuse_foreign(one.interface.index, one.interface.name, one.hook, instance.name)
        ids = {libbpf.program_info(one).id for one in descriptors.values()}
        with (
            _running(instance, ids) as (hanging, running),
            _taken_back(records, attacher),
            attacher.or_as_before(hanging, running, instance.name),
        ):
            _connect_routes(records, attacher, node)
            _connect_loopback(records, node)
            _hang_up(records, attacher, node, descriptors, instance, hanging, at_last)
            yield


@contextlib.contextmanager
def _running(instance: Instance, ids: Collection[int]) -> Iterator[tuple[list[tc.Filter], Programs]]:
    """The filters that are ours, by their names or their programs (pinned ones, and those of these ids), and what opens
    their programs: those that are pinned no sooner than then, of others all that can be had.
    """
    pins: dict[int, str] = {}
    for hook in Hook:
        pin = str(instance.program_pins / hook.program)
        with contextlib.suppress(KernelError), libbpf.opened(libbpf.open_pin(pin)) as descriptor:
            pins[libbpf.program_info(descriptor).id] = pin
    known = {*ids, *pins}
    own = [one for index, _ in socket.if_nameindex() for one in tc.own_filters(index, instance.name, known)]
    with contextlib.ExitStack() as stack:
        held: dict[int, int] = {}
        for number in {one.id for one in own} - pins.keys():
            with contextlib.suppress(KernelError):  # it may go with its interface
                held[number] = stack.enter_context(libbpf.opened(libbpf.open_program(number)))

        @contextlib.contextmanager
        def programs() -> Iterator[dict[int, int]]:
            with contextlib.ExitStack() as opened:
                pinned = {
                    number: opened.enter_context(libbpf.opened(libbpf.open_pin(pin))) for number, pin in pins.items()
                }
                yield held | pinned

        yield own, programs


def _hang_up(
    records: Records,
    attacher: Attacher,
    node: Node,
    descriptors: Mapping[Hook, int],
    instance: Instance,
    hanging: Sequence[tc.Filter],
    at_last: Callable[[], object],
) -> None:
    """All in one exchange. What hangs elsewhere is over: also at an interface that has another name since, and what
    somebody has hung up a second time.
    """
    from pydatapath.kernel.attach import Place

    places: dict[Place, Attachment] = {}
    for one in node.attachments:
        interface = one.interface
        with _unless_gone(records, one):
            records.note_host_change(HostChange.FILTER, f"{interface.name} {one.hook.name}")
            if not tc.has_clsact(interface.index):
                records.note_host_change(HostChange.CLSACT, f"{interface.name} {interface.index}")
                attacher.add_clsact(interface.index, interface.name)
            places[Place(interface.index, interface.name, one.hook, descriptors[one.hook])] = one
    belonging = {place.as_filter(instance.name).place for place in places}
    over = [one for one in hanging if one.place not in belonging]
    for place, error in attacher.exchange([*places], instance.name, over, at_last).items():
        with _unless_gone(records, places[place]):
            raise error


@contextlib.contextmanager
def _unless_gone(records: Records, one: Attachment) -> Iterator[None]:
    """A pod that is deleted meanwhile takes its interface along: there is nothing left to do there."""
    interface = one.interface
    try:
        yield
    except KernelError:
        if one.hook is not Hook.FROM_POD or _is_there(interface.index):
            raise
        records.forget_host_change(HostChange.FILTER, f"{interface.name} {one.hook.name}")
        records.forget_host_change(HostChange.CLSACT, f"{interface.name} {interface.index}")


def _is_there(index: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_indextoname(index))
    return False


def disconnect(instance: Instance) -> None:
    """Takes everything of ours from the host: by the filters' own names, for the rest by the records.

    Goes on where a step fails, and raises the first KernelError at the end.
    """
    from pydatapath.kernel.attach import Attacher

    failed: list[KernelError] = []
    changes = _recorded(instance)
    with Attacher() as attacher:
        with _collected(failed), _running(instance, ()) as (hanging, _):
            attacher.remove(hanging)
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
    """The noted changes; None where there are no records that can be read, and no copy."""
    for path in (instance.records, copy_of(instance.records)):
        with contextlib.suppress(DatapathError), Records(path) as records:
            return {kind: records.host_changes(kind) for kind in HostChange}
    return None


@contextlib.contextmanager
def _taken_back(records: Records, attacher: Attacher) -> Iterator[None]:
    """Where the block fails, what it did is undone. Filters are `or_as_before`'s business; clsact stays with them."""
    before = {kind: set(records.host_changes(kind)) for kind in UNDOING if kind is not HostChange.CLSACT}
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            records.rollback()  # what was recorded of a load that has failed
        for kind, known in before.items():
            for subject in set(records.host_changes(kind)) - known:
                with contextlib.suppress(DatapathError):
                    UNDOING[kind](attacher, subject)
                    records.forget_host_change(kind, subject)
        with contextlib.suppress(sqlite3.Error):  # on a disk that is full they stay noted
            records.commit()
        raise


def drop_others(records: Records, node: Node) -> None:
    """What an earlier load did to the host and nobody needs now that the programs hang where they belong."""
    from pydatapath.kernel.attach import Attacher

    filters = {f"{one.interface.name} {one.hook.name}" for one in node.attachments}
    for subject in set(records.host_changes(HostChange.FILTER)) - filters:
        records.forget_host_change(HostChange.FILTER, subject)
    wanted = needed(node)
    with Attacher() as attacher:
        for kind, undo in UNDOING.items():
            for subject in records.host_changes(kind):
                if not wanted[kind](subject):
                    undo(attacher, subject)
                    records.forget_host_change(kind, subject)


def _connect_routes(records: Records, attacher: Attacher, node: Node) -> None:
    routes, gateways = host.service_routes(), host.service_gateways()
    for network, bridge in routes_of(node):
        # Noted before it is made; deleting it goes by our protocol number, so another's route is never meant
        records.note_host_change(HostChange.NEIGHBOUR, f"{bridge.name} {gateway_of(network)}")
        records.note_host_change(HostChange.ROUTE, f"{network} {bridge.name}")
        if (network, bridge.index) in routes:
            if (gateway_of(network), bridge.index) not in gateways:
                attacher.set_service_gateway(gateway_of(network), bridge.index)
        else:
            attacher.add_service_route(network, bridge.index, _source(node, bridge, Family(network.version)))


def _source(node: Node, bridge: Interface, family: Family) -> IPv4Address | IPv6Address:
    """The address that the node's own packets to services carry: the bridge's, else the node's."""
    shown = node.scopes[family].masquerade_address
    assert shown is not None, "a family with service networks has an address"
    return next((at.ip for at in bridge.addresses if at.version == family), shown)


def _connect_loopback(records: Records, node: Node) -> None:
    """Lets the answers for the node's own calls of its IPv4 node ports in."""
    name = accept_local(node)
    before = sysctl.read(name) if name else None
    if name and before not in (ACCEPT_LOCAL, None):
        records.note_host_change(HostChange.SYSCTL, f"{name}={before}")
        sysctl.write(name, ACCEPT_LOCAL)


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
