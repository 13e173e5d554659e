"""Loading a datapath into the kernel, exchanging it for another, and taking it away without a trace.

What can fail comes first: compiling, then the maps, then asking whether each place is free. Only then are programs
exchanged, and Ctrl-C waits until they are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pydatapath import applying, connecting
from pydatapath.errors import DatapathError, KernelError
from pydatapath.instance import Instance
from pydatapath.interrupts import deferred
from pydatapath.kernel import bpffs, compile, netns
from pydatapath.kernel.layout import BACKEND, ENDPOINT, MAPS, BackendState, EndpointKind, Family
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.nattable import is_there
from pydatapath.node import Node, Options, Scope, resolve
from pydatapath.records import Records
from pydatapath.version import __version__

if TYPE_CHECKING:
    from pydatapath.kernel.host import Host

__all__ = ["clean_up", "load", "require_root", "unload"]

# The facts that a plan is made of (applying.here), and what they are before the first load
_PLACE: Final[Mapping[str, object]] = {
    "node_name": "",
    "node_port_addresses": [],
    "zone": "",
    "algorithm": "random",
    "families": [Family.IPV4],
    "masqueraded": [],
}
_U32: Final = struct.Struct("=I")


def load(instance: Instance, options: Options) -> Node:
    """Loads, or exchanges what is loaded for what the options say. A load that fails leaves all as it was.

    Raises DatapathError and what compiling, attaching and the maps raise.
    """
    require_root("load")
    bpffs.ensure_mounted()
    with netns.entered(instance.netns_path), instance.locked():
        fresh = not instance.records.exists()
        foreign_pins = fresh and instance.pins.exists()  # without records: another's, or a crash's
        # A name of its own for each load: a folder of one that was killed may hold the programs that run
        staging = instance.pins / f"{instance.program_pins.name}_{os.getpid()}_{time.monotonic_ns()}"
        try:
            with compile.Compiler() as compiler:
                from pydatapath.kernel import host

                seen = host.survey()
                node = resolve(options, seen, socket.gethostname())
                _compile(compiler, instance, node, options, staging)
            with deferred():
                _exchange(instance, node, seen, options, staging)
        except BaseException:
            _recover(instance, staging, fresh=fresh, foreign_pins=foreign_pins)
            raise
    return node


def _exchange(instance: Instance, node: Node, seen: Host, options: Options, staging: Path) -> None:
    """The compiled programs take the place of those that run, if any."""
    with Records(instance.records, create=True) as records, Maps(instance.map_pins) as maps:
        seeded = _seed(maps, node, seen)
        before = {name: records.get(name, default) for name, default in _PLACE.items()}
        records.put(
            {
                "node_name": node.name,
                "node_port_addresses": [str(address) for address in node.node_port_addresses],
                "zone": node.zone,
                "algorithm": options.algorithm,
                "families": node.families,
                "masqueraded": node.masqueraded,
            }
        )
        try:
            applying.refresh_all(records, maps)  # on another node, or at another address, the plan is another
            connecting.connect(records, instance, node, staging)
        except BaseException:
            _plan_as_before(records, maps, before)
            _write_back(maps, seeded)
            raise
        _forget_others(maps, node, seen)
        _remember(records, instance, node, options)
    _keep(instance, staging)
    _drop_maps(instance, node.families, node.masqueraded)


def _plan_as_before(records: Records, maps: Maps, place: Mapping[str, object]) -> None:
    """After an exchange that failed: the services are planned for the place that the node had."""
    records.rollback()
    # Where this fails, too, the next command that changes something goes on with it
    records.put({**place, applying.UNFINISHED: True})
    records.commit()
    with contextlib.suppress(DatapathError):
        applying.refresh_all(records, maps)
        records.commit()


def unload(instance: Instance) -> bool:
    """Takes away all that load put there and nothing else. False: there was nothing."""
    require_root("unload")
    if not instance.exists:
        return False
    with netns.entered(instance.netns_path), instance.locked():
        connecting.disconnect(instance)
        instance.remove()
    return True


def clean_up(instance: Instance) -> None:
    """Removes the pins and records of an instance whose namespace is gone, and touches nothing else."""
    require_root("unload")
    instance.remove()


def require_root(command: str) -> None:
    """Raises KernelError where the process may not do it."""
    if os.geteuid() != 0:
        raise KernelError(f"{command} needs root: it changes the kernel's network", hint="run it with sudo")


def _compile(compiler: compile.Compiler, instance: Instance, node: Node, options: Options, staging: Path) -> None:
    """Compiles into a folder of its own, beside the programs that run now."""
    sizes = compile.Sizes(flows=options.max_flows, backends=options.max_backends)
    for folder in (instance.map_pins, staging):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Maps(instance.map_pins) as maps:
        maps.verify(sizes.definitions)
    compile.compile_programs(
        compiler,
        compile.Program(
            instance.map_pins,
            staging,
            ipv4=_programs_scope(node.scopes[Family.IPV4]),
            ipv6=_programs_scope(node.scopes[Family.IPV6]) if Family.IPV6 in node.scopes else None,
            hooks=tuple(dict.fromkeys(one.hook for one in node.attachments)),
            sizes=sizes,
            uplink_index=node.uplinks[0].index if node.uplinks else 0,
            uplink_mac=node.uplinks[0].mac if node.uplinks else "00:00:00:00:00:00",
            masquerade=compile.Masquerade(**vars(node.masquerade)) if node.masqueraded else None,
        ),
    )
    for pin in instance.map_pins.iterdir():
        pin.chmod(0o600)


def _programs_scope(scope: Scope) -> compile.Scope:
    """What the programs of one family know of the node."""
    return compile.Scope(
        node_address=scope.masquerade_address,
        pod_networks=scope.pod_networks,
        service_networks=scope.service_networks,
        uplink_address=next(iter(scope.addresses), None),
        cluster_networks=scope.cluster_networks,
        exclusive_networks=scope.exclusive_networks,
        unmasqueraded_networks=scope.unmasqueraded_networks,
        egress=tuple(compile.Egress(**vars(one)) for one in scope.egress),
    )


def _remember(records: Records, instance: Instance, node: Node, options: Options) -> None:
    facts: Mapping[str, object] = {
        "netns": instance.netns if "/" not in instance.netns else str(Path(instance.netns).absolute()),
        "version": __version__,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "node_ips": [str(address) for address in node.addresses],
        "pod_networks": [str(network) for network in node.pod_networks],
        "egress_addresses": [*dict.fromkeys(str(one.address) for at in node.scopes.values() for one in at.egress)],
        "service_networks": [str(network) for network in node.service_networks],
        "options": options.as_mapping(),
    }
    records.put(facts)


# What some keys of maps had before: a value, or None for nothing
_Before: TypeAlias = dict[str, dict[bytes, bytes | None]]


def _seed(maps: Maps, node: Node, seen: Host) -> _Before:
    """What the programs rely on: backend 0 means none; which interfaces are pods'; who answers to an address, as far as
    the host knows. What is there from before stays until the exchange is done. Returns what to write back if it fails.
    """
    maps["backends"].update(bytes(4), BACKEND.pack(bytes(16), bytes(2), 0, BackendState.UNUSED, 0, 0))
    before: _Before = {}
    for name, entries in _told(node, seen).items():
        known = dict(maps[name].items())
        before[name] = {key: known.get(key) for key in entries}
        maps[name].update_many(entries)
    return before


def _write_back(maps: Maps, before: _Before) -> None:
    with contextlib.suppress(DatapathError):
        for name, entries in before.items():
            maps[name].update_many({key: value for key, value in entries.items() if value is not None})
            maps[name].delete_many(key for key, value in entries.items() if value is None)


def _forget_others(maps: Maps, node: Node, seen: Host) -> None:
    """What an earlier load told or packets taught, and no longer holds."""
    ports = {one.index for one in node.pods}
    for name, entries in _told(node, seen).items():
        over = [key for key, value in maps[name].items() if key not in entries and _is_stale(name, value, ports)]
        maps[name].delete_many(over)


def _told(node: Node, seen: Host) -> dict[str, dict[bytes, bytes]]:
    """The entries that a load writes, by their maps. The kernel looks interfaces up in the namespace that we are in."""
    interfaces = {_U32.pack(one.index): _U32.pack(one.index) for one in node.pods}
    endpoints = {f"endpoints{family.suffix}": _endpoints(node, seen, family) for family in node.families}
    return {"interfaces": interfaces, **endpoints}


def _endpoints(node: Node, seen: Host, family: Family) -> dict[bytes, bytes]:
    """Who answers to an address of a family: pods behind the ports of a bridge, and the node itself."""
    ports = {one.index for one in node.pods}
    networks = node.scopes[family].pod_networks
    entries = {
        one.address.packed: ENDPOINT.pack(one.port, _mac(one.mac), EndpointKind.POD)
        for one in seen.neighbours
        if one.address.version == family and one.port in ports and any(one.address in network for network in networks)
    }
    # What comes for the node's own addresses comes in by the bridge, where its route to the services leads
    for bridge in node.bridges[:1]:
        for address in seen.addresses:
            if address.version == family:
                entries[address.packed] = ENDPOINT.pack(bridge.index, _mac(bridge.mac), EndpointKind.NODE)
    return entries


def _is_stale(name: str, value: bytes, ports: set[int]) -> bool:
    """Of `interfaces` whatever a load has not told; of `endpoints` the host.s own, and what is behind no pod."""
    if name == "interfaces":
        return True
    interface, _, kind = ENDPOINT.unpack(value)
    return kind == EndpointKind.NODE or interface not in ports


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _keep(instance: Instance, programs: Path) -> None:
    """The staged programs are the running ones now, and all others are over; so are the maps of other layouts."""
    for folder in [*instance.pins.glob(f"{instance.program_pins.name}*"), *instance.pins.glob("maps_v*")]:
        if folder not in (programs, instance.map_pins):
            bpffs.remove_tree(folder)
    programs.rename(instance.program_pins)


def _drop_maps(instance: Instance, families: Collection[Family], masqueraded: Collection[Family]) -> None:
    """The maps that no program has any more, because their family is not loaded, or leaves as it is."""
    for contract in MAPS.values():
        if not is_there(contract, families, masqueraded):
            (instance.map_pins / contract.name).unlink(missing_ok=True)


def _recover(instance: Instance, programs: Path, *, fresh: bool, foreign_pins: bool) -> None:
    """After a load that failed: as it was before. The staged programs go last, when nothing runs them any more."""
    with contextlib.suppress(DatapathError):
        if fresh:
            connecting.disconnect(instance)
        else:
            with Records(instance.records) as records:
                # What a family that was to come had is nobody's; done first, for the programs may refuse
                before = [records.get(name, _PLACE[name]) for name in ("families", "masqueraded")]
                _drop_maps(instance, *before)
                connecting.reconnect(records, instance)
        bpffs.remove_tree(programs)
    if fresh:
        instance.remove(pins=not foreign_pins)
