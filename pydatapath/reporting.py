"""What `status` tells: where an instance hangs, how full its maps are, what has drifted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network

from pydatapath import applying, drift, forwarding, timers
from pydatapath.errors import Conflict, KernelError, LayoutError
from pydatapath.instance import Instance
from pydatapath.kernel import flowtable, libbpf, nattable, netfilter, netns, tables, tc
from pydatapath.kernel.layout import MAPS, Hook, MapType
from pydatapath.kernel.maps import Maps
from pydatapath.records import HostChange, Records
from pydatapath.views import InterfaceStatus, MapStatus, Status

__all__ = ["status", "translated_elsewhere"]

# So many objects are compared with the maps in some 20 ms
FEW = 250
REMEDY = "`pydatapath repair` mends it"
COUNTED = (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.DEVMAP_HASH)


def status(instance: Instance, maps: Maps, *, check: bool | None = None) -> Status:
    """All of it. `check`: whether entries of maps are compared with the records; None: where these are few."""
    with Records(instance.records) as records:
        times = timers.recorded(records)
        shown = Status(
            instance=instance.name,
            netns=instance.netns,
            loaded=True,
            version=records.get("version", ""),
            since=records.get("since", ""),
            node_name=records.get("node_name", ""),
            node_ips=tuple(records.get("node_ips", ())),
            interfaces=tuple(_interfaces(instance, records)),
            maps=tuple(_map_statuses(instance, maps, records)),
            services=records.count("Service"),
            backends=_counted(lambda: tables.count_backends(maps)),
            flows=_counted(lambda: flowtable.count_flows(maps, times)),
            timers=timers.named(times),
            pod_fast_path=records.get("pod_fast_path", "never"),
            conflicts=(
                *(str(one) for one in records.shadows()),
                *(sentence for _, sentence in applying.node_conflicts(records)),
                *forwarding.unreachable(forwarding.recorded(records), applying.here(records)),
                *translated_elsewhere(instance, records),
            ),
        )
        objects = records.count("Service") + records.count("EndpointSlice") + records.count("Node")
    with contextlib.suppress(KernelError):
        shown = replace(shown, counters=tables.counters(maps))
    entries = objects <= FEW if check is None else check
    try:
        with instance.locked(seconds=0), netns.entered(instance.netns_path), Records(instance.records) as records:
            found = [f"{one}: {REMEDY}" for one in drift.look(records, maps, instance, entries=entries).found]
            if entries and (wrong := records.damage()):
                found.append(f"the records are damaged ({wrong}): `pydatapath repair` takes their copy")
    # What is changing is not as it was, nor as it will be; and to compare, records must be written, and taken back
    except (Conflict, KernelError) as hindered:
        return replace(shown, unchecked=f"not all was looked at: {hindered}")
    unchecked = "" if entries else f"{objects:,} objects were not compared with the maps: `status --check` does"
    return replace(shown, drift=tuple(found), unchecked=unchecked)


def _counted(count: Callable[[], int]) -> int:
    """0 where the map is not there: that is drift."""
    try:
        return count()
    except KernelError:
        return 0


def translated_elsewhere(instance: Instance, records: Records) -> list[str]:
    """A sentence about each of netfilter's chains that translates what pods send, where we do (N89)."""
    masqueraded = records.get("masqueraded", ())
    networks = [ip_network(one) for one in records.get("pod_networks", ())]
    pods = [one for one in networks if one.version in masqueraded]
    if not pods:
        return []
    with netns.entered(instance.netns_path):
        return [str(one) for one in netfilter.translating(netfilter.ruleset(), pods)]


def _interfaces(instance: Instance, records: Records) -> list[InterfaceStatus]:
    """Those that are there, of those where `load` hung something."""
    found: dict[str, InterfaceStatus] = {}
    with netns.entered(instance.netns_path):
        for subject in records.host_changes(HostChange.FILTER):
            name, hook_name = subject.split()
            hook = Hook[hook_name]
            try:
                filters = tc.filters(socket.if_nametoindex(name))
            except OSError:
                continue
            wanted = (tc.filter_name(instance.name, hook), hook.direction)
            programs = tuple(
                {"hook": one.direction, "name": hook.program, "id": one.id, "tag": one.tag}
                for one in filters
                if (one.name, one.direction) == wanted
            )
            known = found.get(name, InterfaceStatus(name, hook.role, ()))
            found[name] = replace(known, programs=known.programs + programs)
    return list(found.values())


def _map_statuses(instance: Instance, maps: Maps, records: Records) -> Iterator[MapStatus]:
    families, masqueraded = applying.here(records).families, records.get("masqueraded", ())
    for name, contract in MAPS.items():
        if nattable.is_there(contract, families, masqueraded) and (instance.map_pins / name).exists():
            with contextlib.suppress(LayoutError):  # another's: drift
                table = maps[name]
                size = table.info.max_entries
                entries = len(table) if contract.type in COUNTED else size
                yield MapStatus(name, contract.type.name.lower(), entries, size, libbpf.map_memory(table.descriptor))
