"""What is not as `load` and `apply` left it: pins, filters, routes, sysctls, the host itself, and entries of maps; and
what a load that was killed has left.

Whether there is drift is asked of the same functions that mend it: what `load` would hang up where, and what a refresh
of all maps would write. Whoever looks is in the instance's namespace and holds its lock.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydatapath import applying, leftovers, plan, seeding
from pydatapath.errors import DatapathError
from pydatapath.fields import printable
from pydatapath.instance import Instance
from pydatapath.kernel import host, libbpf, restoring, sysctl, tables, tc
from pydatapath.kernel.layout import Hook
from pydatapath.kernel.maps import Maps
from pydatapath.node import Node, options_of, resolve
from pydatapath.records import Records
from pydatapath.wiring import ACCEPT_LOCAL, accept_local, facts_of, gateway_of, maps_of, place_of, places_of, routes_of

__all__ = ["Look", "look", "pins", "programs_by_hook"]

TOLD = 10  # of one kind; a longer list hides the rest


class Look:
    """One look at the host, and what was found.

    `found` are sentences. `node`: what `load` would make of the host with the options that it was given, None where it
    would refuse; `is_whole`: the programs are pinned and made for that, and so are all maps: nothing needs a compiler.
    """

    def __init__(self, seen: host.Host, node: Node | None) -> None:
        self.seen, self.node = seen, node
        self.found: list[str] = []
        self.is_whole = False


def look(records: Records, maps: Maps, instance: Instance, *, entries: bool = True) -> Look:
    """What has drifted; `entries`: also in the maps, which takes as long as planning all services."""
    options = options_of(records)
    seen = host.survey(between_pods=options.pod_fast_path != "never")
    try:
        node = resolve(options, seen, socket.gethostname())
    except DatapathError as error:
        result = Look(seen, None)
        result.found.append(f"the host is not as it was at load: {error}")
        return result
    result = Look(seen, node)
    programs = leftovers.programs_of(records, instance)
    result.found += _facts(records.get("made_for", {}), node)
    if not result.found:  # else what is pinned and routed is for the host as it was
        result.found += pins(instance, programs, node)
        known = records.get("made_for") is not None and leftovers.are_known(records, instance)
        result.is_whole = known and not result.found
        result.found += _place(records, place_of(node, options.algorithm))
        result.found += _host(node)
    result.found += _filters(instance, programs, node)
    result.found += (f"a load that was killed has left {one.name} behind" for one in leftovers.folders(instance))
    if result.is_whole:
        result.found += seeding.untold(maps, node, seen)
        if records.incomplete:
            result.found.append("the records are a copy, by which services have not been planned yet")
        elif records.get(applying.UNFINISHED):
            result.found.append("a change was interrupted before it reached the maps")
        elif entries:
            result.found += _entries(records, maps)
    return result


def _facts(made_for: Mapping[str, str], node: Node) -> Iterator[str]:
    now = facts_of(node)
    for name in dict.fromkeys((*made_for, *now)) if made_for else ():
        old, new = (facts.get(name, "none") for facts in (made_for, now))
        if old != new:
            yield f"the node's {name} was {printable(old)} at load, and is {printable(new)} now"


def _place(records: Records, wanted: Mapping[str, object]) -> Iterator[str]:
    """A load that is killed before it has recorded its options may have planned for them."""
    for name, value in wanted.items():
        planned = records.get(name)  # None: an earlier version did not record it
        if planned not in (None, value):
            what = name.replace("_", " ")
            yield f"services are planned for the {what} {planned!r}, which no load that was finished was told"


def pins(instance: Instance, programs: Path, node: Node) -> Iterator[str]:
    """What is not pinned as these programs, and the maps that they use, should be."""
    places = places_of(node)
    names = dict.fromkeys((*(one.hook.program for one in node.attachments), *places))
    lost = restoring.lost_programs(programs, names)
    yield from (f"the program {name} is no longer pinned" for name in lost)
    for name, wrong in restoring.lost_maps(instance.map_pins, programs, maps_of(node)).items():
        yield f"the map {name} {wrong}"
    if not lost:
        for name in restoring.lost_tails(programs, places):
            yield f"the array of tail calls does not lead to {name}"


def _filters(instance: Instance, programs: Path, node: Node) -> Iterator[str]:
    """Each program hangs where it belongs, the pinned one, once, and nowhere else."""
    pinned = programs_by_hook(programs)
    wanted = {(one.interface.index, one.hook) for one in node.attachments}
    for index, name in socket.if_nameindex():
        shown = printable(name)
        filters = tc.own_filters(index, instance.name, [*pinned.values()])
        for hook in Hook:
            here = [one for one in filters if tc.is_at_its_place(one, instance.name, hook)]
            filters = [one for one in filters if one not in here]
            if (index, hook) not in wanted:
                yield from (f"interface {shown} has a {hook.program} filter that it should not have" for _ in here)
            elif not here:
                yield f"interface {shown} has no {hook.program} filter"
            elif hook in pinned and here[0].id != pinned[hook]:
                yield f"the {hook.program} filter of interface {shown} runs another program, {here[0].id}"
        for one in filters:
            where = f"{one.direction} at priority {one.priority}"
            yield f"interface {shown} has a filter of ours a second time: {printable(one.name)}, {where}"


def programs_by_hook(programs: Path) -> dict[Hook, int]:
    """The ids of the programs that are pinned for the hooks."""
    found = {}
    for hook in Hook:
        if (programs / hook.program).exists():
            with libbpf.opened(libbpf.open_pin(str(programs / hook.program))) as descriptor:
                found[hook] = libbpf.program_info(descriptor).id
    return found


def _host(node: Node) -> Iterator[str]:
    """Routes, the next hop's neighbour entry, the sysctl."""
    routes, gateways = host.service_routes(), host.service_gateways()
    for network, bridge in routes_of(node):
        if (network, bridge.index) not in routes:
            yield f"the route to {network} over {printable(bridge.name)} is gone"
    for gateway, bridge in dict.fromkeys((gateway_of(network), bridge) for network, bridge in routes_of(node)):
        if (gateway, bridge.index) not in gateways:
            yield f"the neighbour entry of {gateway} at {printable(bridge.name)} is gone"
    name = accept_local(node)
    if name and sysctl.read(name) not in (ACCEPT_LOCAL, None):
        yield f"the sysctl {name.replace('/', '.')} is no longer {ACCEPT_LOCAL}"


def _entries(records: Records, maps: Maps) -> Iterator[str]:
    """What a refresh would write, in the words of who reads it."""
    change, live = applying.pending(records, maps)
    names = records.ports()

    def port(number: int) -> str:
        return str(names[number]) if number in names else f"service port {number}, which is none"

    told = {one.number for one in change.services.values()}
    kinds: tuple[Iterable[str], ...] = (
        (f"{port(one.number)} is not in the maps as it is recorded, at {at}" for at, one in change.services.items()),
        (f"the maps have a service at {at}, where none is" for at in change.removed_services),
        (
            f"the backend {one.address} of {port(one.service)} is not in the maps as it is recorded"
            for one in (*change.backends.values(), *change.draining_backends.values())
            if one.service not in told
        ),
        (
            f"the maps have a backend {one.address} of {port(one.service)}, which is none"
            for one in change.gone_backends.values()
            if one.service not in told
        ),
        _targets(change, live),
        (f"the map vips is wrong about {at}" for at in (*change.guards.vips, *change.guards.removed_vips)),
        (
            f"the map ranges is wrong about {one.network} and {port(one.service)}"
            for one in (*change.guards.ranges, *change.guards.removed_ranges)
        ),
        (f"the map networks is wrong about {one}" for one in (*change.members.written, *change.members.removed)),
        (f"the map {name} has an entry that no version writes" for name, _ in tables.strays(maps)),
    )
    for kind in kinds:
        yield from _some(list(dict.fromkeys(kind)))


def _targets(change: plan.Change, live: plan.Live) -> Iterator[str]:
    """Those that are wrong by themselves, and not because backends come or go with this change."""
    moved = {one.address for one in (*change.backends.values(), *change.gone_backends.values())}
    for at in (*change.targets, *change.removed_targets):
        if at not in moved:
            yield f"the map targets is wrong about {at}: {live.targets.get(at, 0)} backends listen there to it"


def _some(sentences: list[str]) -> Iterator[str]:
    more = len(sentences) - TOLD
    yield from sentences[: TOLD if more > 0 else None]
    if more > 0:
        yield f"and {more} more like that: {sentences[TOLD]}"
