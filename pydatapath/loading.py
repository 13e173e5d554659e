"""Loading a datapath into the kernel, exchanging it for another, and taking it away without a trace.

What is done to the host is written down before it is done, so that `unload` finds all of it after a crash, too.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from pydatapath import applying
from pydatapath.errors import DatapathError, KernelError, NotFound
from pydatapath.instance import Instance
from pydatapath.kernel import bpffs, compile, libbpf, netns
from pydatapath.kernel.layout import BACKEND, ENDPOINT, BackendState, EndpointKind, Hook
from pydatapath.kernel.maps import Maps
from pydatapath.node import Node, Options, resolve
from pydatapath.records import HostChange, Records
from pydatapath.version import __version__

if TYPE_CHECKING:
    from pydatapath.kernel.attach import Attacher
    from pydatapath.kernel.host import Host

__all__ = ["load", "unload"]


def load(instance: Instance, options: Options) -> Node:
    """Loads, or exchanges what is loaded for what the options say. A load that fails leaves all as it was.

    Raises DatapathError and what compiling, attaching and the maps raise.
    """
    require_root("load")
    bpffs.ensure_mounted()
    with netns.entered(instance.netns_path), instance.locked():
        fresh = not instance.records.exists()
        pinned = instance.pins.exists()  # where there are no records: another's pins, or a crash's
        try:
            with compile.Compiler() as compiler:
                from pydatapath.kernel import host

                seen = host.survey()
                node = resolve(options, seen, socket.gethostname())
                programs = _compile(compiler, instance, node, options)
            with Records(instance.records, create=True) as records, Maps(instance.map_pins) as maps:
                _remember(records, instance, node, options)
                _seed(maps, node, seen)
                applying.refresh_all(records, maps)
                _connect(records, instance, node, programs)
            _keep(instance, programs)
        except BaseException:
            bpffs.remove_tree(_staging(instance))
            if fresh:
                with contextlib.suppress(DatapathError):
                    _take_away(instance, pins=not pinned)
            raise
    return node


def unload(instance: Instance) -> bool:
    """Takes away all that load put there and nothing else. False: there was nothing."""
    require_root("unload")
    if not instance.exists:
        return False
    with netns.entered(instance.netns_path), instance.locked():
        _take_away(instance)
    return True


def require_root(command: str) -> None:
    """Raises KernelError where the process may not do it."""
    if os.geteuid() != 0:
        raise KernelError(f"{command} needs root: it changes the kernel's network", hint="run it with sudo")


def _staging(instance: Instance) -> Path:
    return instance.pins / "programs_new"


def _compile(compiler: compile.Compiler, instance: Instance, node: Node, options: Options) -> Path:
    """Compiles into a folder of its own, beside the programs that run now."""
    sizes = compile.Sizes(flows=options.max_flows, backends=options.max_backends)
    staging = _staging(instance)
    bpffs.remove_tree(staging)
    for folder in (instance.map_pins, staging):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Maps(instance.map_pins) as maps:
        maps.verify(sizes.definitions)
    compile.compile_programs(
        compiler,
        compile.Program(
            instance.map_pins,
            staging,
            node.masquerade_address,
            node.pod_networks,
            node.service_networks,
            tuple(dict.fromkeys(one.hook for one in node.attachments)),
            sizes,
        ),
    )
    for pin in instance.map_pins.iterdir():
        pin.chmod(0o600)
    return staging


def _remember(records: Records, instance: Instance, node: Node, options: Options) -> None:
    facts: Mapping[str, object] = {
        "netns": instance.netns if "/" not in instance.netns else str(Path(instance.netns).absolute()),
        "version": __version__,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "node_name": node.name,
        "node_ips": [str(address) for address in node.addresses],
        "pod_networks": [str(network) for network in node.pod_networks],
        "service_networks": [str(network) for network in node.service_networks],
        "options": options.as_mapping(),
    }
    records.put(facts)
    records.commit()


def _seed(maps: Maps, node: Node, seen: Host) -> None:
    """What the programs rely on: backend 0 means none; who answers to an address, as far as the host knows."""
    maps["backends"].update(bytes(4), BACKEND.pack(bytes(4), bytes(2), 0, BackendState.UNUSED, 0, 0))
    ports = {one.index for one in node.pods}
    entries = {
        neighbour.address.packed: ENDPOINT.pack(neighbour.port, _mac(neighbour.mac), EndpointKind.POD)
        for neighbour in seen.neighbours
        if neighbour.port in ports and any(neighbour.address in network for network in node.pod_networks)
    }
    # What comes for the node's own addresses comes in by the bridge, where its route to the services leads
    for bridge in node.bridges[:1]:
        for address in seen.addresses:
            entries[address.packed] = ENDPOINT.pack(bridge.index, _mac(bridge.mac), EndpointKind.NODE)
    maps["endpoints"].update_many(entries)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _connect(records: Records, instance: Instance, node: Node, programs: Path) -> None:
    """Hangs the programs up, and takes away what an earlier load hung where nothing belongs now."""
    from pydatapath.kernel.attach import Attacher

    with Attacher() as attacher, _opened(programs, node) as descriptors:
        for one in node.attachments:
            interface = one.interface
            records.note_host_change(HostChange.FILTER, f"{interface.name} {one.hook.name}")
            if attacher.add_clsact(interface.index, interface.name):
                records.note_host_change(HostChange.CLSACT, interface.name)
            attacher.attach(interface.index, interface.name, one.hook, descriptors[one.hook], instance.name)
        _connect_routes(records, attacher, node)
        wanted = {f"{one.interface.name} {one.hook.name}" for one in node.attachments}
        for subject in set(records.host_changes(HostChange.FILTER)) - wanted:
            _detach(records, attacher, instance, subject)
        names = {one.interface.name for one in node.attachments}
        for name in set(records.host_changes(HostChange.CLSACT)) - names:
            _delete_clsact(records, attacher, name)


def _connect_routes(records: Records, attacher: Attacher, node: Node) -> None:
    wanted = {f"{network} {bridge.name}" for network in node.service_networks for bridge in node.bridges[:1]}
    for subject in set(records.host_changes(HostChange.ROUTE)) - wanted:
        _delete_route(records, attacher, subject)
    for network in node.service_networks:
        for bridge in node.bridges[:1]:
            if attacher.has_service_route(network, bridge.index):
                continue
            records.note_host_change(HostChange.NEIGHBOUR, bridge.name)
            attacher.add_service_route(network, bridge.index, _source(node, bridge.index))
            records.note_host_change(HostChange.ROUTE, f"{network} {bridge.name}")


def _source(node: Node, bridge: int) -> IPv4Address:
    """The address that the node's own packets to services carry: the bridge's, else the node's."""
    own = [at.ip for one in node.bridges if one.index == bridge for at in one.addresses]
    return (own or [node.masquerade_address])[0]


@contextlib.contextmanager
def _opened(programs: Path, node: Node) -> Iterator[dict[Hook, int]]:
    descriptors: dict[Hook, int] = {}
    try:
        for hook in {one.hook for one in node.attachments}:
            descriptors[hook] = libbpf.open_pin(str(programs / hook.program))
        yield descriptors
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _keep(instance: Instance, programs: Path) -> None:
    """The staged programs are the running ones now."""
    bpffs.remove_tree(instance.program_pins)
    programs.rename(instance.program_pins)


def _take_away(instance: Instance, *, pins: bool = True) -> None:
    """Undoes what the records say was done to the host, then removes records and pins."""
    if instance.records.exists():
        from pydatapath.kernel.attach import Attacher

        with contextlib.suppress(DatapathError), Records(instance.records) as records, Attacher() as attacher:
            for subject in records.host_changes(HostChange.FILTER):
                _detach(records, attacher, instance, subject)
            for subject in records.host_changes(HostChange.CLSACT):
                _delete_clsact(records, attacher, subject)
            for subject in records.host_changes(HostChange.ROUTE):
                _delete_route(records, attacher, subject)
            for subject in records.host_changes(HostChange.NEIGHBOUR):
                with contextlib.suppress(OSError):
                    attacher.delete_service_gateway(socket.if_nametoindex(subject))
    instance.remove(pins=pins)


def _detach(records: Records, attacher: Attacher, instance: Instance, subject: str) -> None:
    name, hook = subject.split()
    with contextlib.suppress(OSError):  # an interface that is gone has taken its filters along
        attacher.detach(socket.if_nametoindex(name), name, Hook[hook], instance.name)
    records.forget_host_change(HostChange.FILTER, subject)


def _delete_clsact(records: Records, attacher: Attacher, name: str) -> None:
    with contextlib.suppress(OSError):
        attacher.delete_clsact(socket.if_nametoindex(name), name)
    records.forget_host_change(HostChange.CLSACT, name)


def _delete_route(records: Records, attacher: Attacher, subject: str) -> None:
    network, bridge = subject.split()
    with contextlib.suppress(OSError, NotFound):
        attacher.delete_service_route(IPv4Network(network), socket.if_nametoindex(bridge))
    records.forget_host_change(HostChange.ROUTE, subject)
