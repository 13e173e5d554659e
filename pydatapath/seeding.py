"""What the maps are told of the host by a load: which interfaces are pods', and who answers to an address."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from pydatapath.errors import DatapathError, KernelError
from pydatapath.kernel.layout import BACKEND, ENDPOINT, BackendState, EndpointKind, Family
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.packing import unpack_ip
from pydatapath.node import Node

if TYPE_CHECKING:
    from pydatapath.kernel.host import Host

__all__ = ["forget_others", "seed", "untold", "write_back"]

_U32: Final = struct.Struct("=I")

# What some keys of maps had before: a value, or None for nothing
Before: TypeAlias = dict[str, dict[bytes, bytes | None]]


def seed(maps: Maps, node: Node, seen: Host) -> Before:
    """What the programs rely on: backend 0 means none; which interfaces are pods'; who answers to an address, as far as
    the host knows. What is there from before stays until the exchange is done. Returns what to write back if it fails.
    """
    maps["backends"].update(bytes(4), BACKEND.pack(bytes(16), bytes(2), 0, BackendState.UNUSED, 0, 0))
    before: Before = {}
    for name, entries in _told(node, seen).items():
        known = dict(maps[name].items())
        new = {key: value for key, value in entries.items() if known.get(key) != value}
        before[name] = {key: known.get(key) for key in new}
        if name == "interfaces":
            _enter_interfaces(maps, new)
        else:
            if 2 * (len(known) + len(new)) > maps[name].info.max_entries:
                maps[name].delete_many(_made_up(known, entries))
            maps[name].update_many(new)
    return before


def _made_up(known: Mapping[bytes, bytes], entries: Mapping[bytes, bytes]) -> list[bytes]:
    """What packets alone have taught: a pod may send from all addresses of its network. Others, of whom the host knows
    nothing just now, are learned again.
    """
    return [key for key, value in known.items() if key not in entries and not _is_own(value)]


def _enter_interfaces(maps: Maps, entries: Mapping[bytes, bytes]) -> None:
    """The kernel takes none that is not there: a pod that is deleted meanwhile needs no entry."""
    for key, value in entries.items():
        try:
            maps["interfaces"].update(key, value)
        except KernelError as error:
            if error.errno != errno.EINVAL or _U32.unpack(key)[0] in dict(socket.if_nameindex()):
                raise


def write_back(maps: Maps, before: Before) -> None:
    """Undoes `seed`, as far as that goes."""
    with contextlib.suppress(DatapathError):
        for name, entries in before.items():
            maps[name].update_many({key: value for key, value in entries.items() if value is not None})
            maps[name].delete_many(key for key, value in entries.items() if value is None)


def forget_others(maps: Maps, node: Node, seen: Host) -> None:
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
    """Of `interfaces` whatever a load has not told; of `endpoints` the host's own, and what is behind no pod."""
    if name == "interfaces":
        return True
    interface, _, kind = ENDPOINT.unpack(value)
    return kind == EndpointKind.NODE or interface not in ports


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def untold(maps: Maps, node: Node, seen: Host) -> list[str]:
    """What of this the maps do not hold, or hold and nobody has told, in sentences."""
    found = []
    names = {one.index: one.name for one in node.pods}
    for name, entries in _told(node, seen).items():
        had = dict(maps[name].items())
        own = {key for key, value in had.items() if name == "interfaces" or _is_own(value)}
        wanted = {key for key, value in entries.items() if name == "interfaces" or _is_own(value)}
        for key in sorted(own ^ wanted | {key for key in own & wanted if had[key] != entries[key]}):
            what = f"address {unpack_ip(key)}" if name != "interfaces" else _pod(_U32.unpack(key)[0], names)
            word = "lacks" if key not in had else "is wrong about" if key in entries else "still has"
            found.append(f"the map {name} {word} {what}")
    return found


def _pod(index: int, names: dict[int, str]) -> str:
    return f"pod interface {names[index]}" if index in names else f"an interface {index} that is no pod's"


def _is_own(endpoint: bytes) -> bool:
    """Whether an entry is of the node itself: those of pods are learned from what they send, too."""
    return bool(ENDPOINT.unpack(endpoint)[2] == EndpointKind.NODE)
