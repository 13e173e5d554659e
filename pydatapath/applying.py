"""Objects in, map writes out: what `apply`, `delete`, `service add` and a repair have in common.

objects -> records (one transaction) -> plan of the services they touch -> difference to the live maps -> writes
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from pydatapath import plan, schema
from pydatapath.errors import KernelError
from pydatapath.kernel import tables
from pydatapath.kernel.maps import Maps
from pydatapath.model import EndpointSlice, Service
from pydatapath.plan import Address, Here, PortPlan
from pydatapath.records import Key, Records, Stored

__all__ = ["Action", "Outcome", "apply", "here", "load_object", "refresh_all"]

Action = Literal["created", "configured", "unchanged", "deleted"]
ServiceKey = tuple[str, str]

UNFINISHED: Final = "unfinished"  # a fact: the records are ahead of the maps


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object, in kubectl's words."""

    kind: str
    namespace: str
    name: str
    action: Action

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.namespace}/{self.name} {self.action}"


@dataclass(slots=True)
class _Edit:
    """A change to the records on its way to the maps: the services it touches, the objects it brought, parsed."""

    touched: dict[ServiceKey, None] = field(default_factory=dict)
    parsed: dict[Key, Service | EndpointSlice] = field(default_factory=dict)


def load_object(stored: Stored) -> Service | EndpointSlice:
    """The model object of a record."""
    return schema.parse(json.loads(stored.manifest), "records")


def here(records: Records) -> Here:
    """The node that is planned for, as `load` found it, and what it was told."""
    name, zone, algorithm = records.get("node_name", ""), records.get("zone", ""), records.get("algorithm", "random")
    return Here(name, tuple(records.get("node_port_addresses", ())), zone, algorithm)


def apply(
    records: Records,
    maps: Maps,
    objects: Iterable[Service | EndpointSlice],
    *,
    delete: Collection[Key] = (),
    prune: bool = False,
    dry_run: bool = False,
) -> list[Outcome]:
    """Makes these objects, and deletes those keys, or with `prune` all that are not given.

    Nothing is written where an error is raised before the maps are reached: Conflict for an address taken, KernelError
    for a map that is full. `records` is in a transaction, which is committed before the maps are written.
    """
    edit = _Edit()
    given = [(one, _to_stored(one)) for one in objects]
    outcomes = [_store(records, edit, one, stored) for one, stored in given]
    over = set(delete) | (records.keys() - {stored.key for _, stored in given} if prune else set())
    outcomes += [_forget(records, edit, key) for key in sorted(over)]
    _program(records, maps, edit, whole=bool(records.get(UNFINISHED)), dry_run=dry_run)
    return outcomes


def refresh_all(records: Records, maps: Maps) -> None:
    """Brings the maps to what the records say, whatever they hold: after an upgrade or an interrupted change."""
    _program(records, maps, _Edit(), whole=True, dry_run=False)


def _to_stored(one: Service | EndpointSlice) -> Stored:
    text = json.dumps(one.manifest, sort_keys=True, separators=(",", ":"))
    service = one.service if isinstance(one, EndpointSlice) else None
    return Stored(type(one).__name__, one.namespace, one.name, service, text)


def _store(records: Records, edit: _Edit, one: Service | EndpointSlice, stored: Stored) -> Outcome:
    old = records.object(*stored.key)
    if old == stored:
        return Outcome(*stored.key, "unchanged")
    edit.parsed[stored.key] = one
    _touch(edit, stored)
    if old is not None:
        _touch(edit, old)
    records.store([stored])
    return Outcome(*stored.key, "created" if old is None else "configured")


def _forget(records: Records, edit: _Edit, key: Key) -> Outcome:
    old = records.object(*key)
    if old is not None:
        _touch(edit, old)
    records.forget([key])
    return Outcome(*key, "deleted")


def _touch(edit: _Edit, stored: Stored) -> None:
    name = stored.name if stored.kind == "Service" else stored.service
    if name is not None:
        edit.touched[stored.namespace, name] = None


def _touch_all(records: Records, edit: _Edit) -> None:
    for stored in records.objects():
        _touch(edit, stored)
    for port in records.ports().values():
        edit.touched[port.namespace, port.service] = None


def _program(records: Records, maps: Maps, edit: _Edit, *, whole: bool, dry_run: bool) -> None:
    """From the touched services to the maps; with `whole` from all there are, and the maps may hold anything."""
    if whole:
        _touch_all(records, edit)
    elif not edit.touched:
        return
    before: dict[int, list[Address]] = {}
    for key in edit.touched:
        before |= records.release(*key)
    wanted: list[PortPlan] = []
    node = here(records)
    numbers: dict[tuple[str, ...], int] = {}
    for namespace, name in edit.touched:
        ports = _plan(records, edit, namespace, name, node)
        numbers |= records.register(namespace, name, ports)
        wanted += ports
    live = tables.read_live(maps, None if whole else {*before, *numbers.values()})
    try:
        change = plan.change(wanted, live.called if whole else before, numbers, live)
    except plan.OutOfRoom as full:
        raise KernelError(
            f"the map {full.table!r} has no room left: it holds {full.size:,} entries",
            hint="load again with a larger --max-backends",
        ) from None
    tables.check_room(maps, change)
    if dry_run:
        return
    if not change.empty:
        records.put({UNFINISHED: True})
        records.commit()
        tables.write(maps, change)
    records.put({UNFINISHED: False})


def _plan(records: Records, edit: _Edit, namespace: str, name: str, node: Here) -> list[PortPlan]:
    stored = records.object("Service", namespace, name)
    if stored is None:
        return []
    service = edit.parsed.get(stored.key) or load_object(stored)
    slices = [edit.parsed.get(one.key) or load_object(one) for one in records.slices(namespace, name)]
    assert isinstance(service, Service)
    return plan.plan_service(service, [one for one in slices if isinstance(one, EndpointSlice)], node)
