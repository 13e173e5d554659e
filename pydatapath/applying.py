"""Objects in, map writes out: what `apply`, `delete`, `service add` and a repair have in common.

objects -> claims, who is refused -> records (one transaction) -> plan of the services they touch -> difference to the
live maps -> writes
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pydatapath import plan, schema
from pydatapath.claims import Candidate, Claim, Claimant, ClaimKind, claimant, claims_of, refusals
from pydatapath.errors import DatapathError, KernelError, ManifestError, Refused
from pydatapath.forwarding import KIND as PORT_FORWARD
from pydatapath.forwarding import NAMESPACE as FORWARDS
from pydatapath.forwarding import Forward, plan_forward
from pydatapath.kernel import tables
from pydatapath.kernel.layout import Family
from pydatapath.kernel.maps import Maps
from pydatapath.model import EndpointSlice, Service
from pydatapath.plan import Address, Here, PortPlan
from pydatapath.records import Key, Records, ServiceKey, Stored

__all__ = [
    "Action",
    "Edit",
    "Outcome",
    "Wanted",
    "apply",
    "change_forwards",
    "edit",
    "here",
    "load_object",
    "refresh_all",
    "want",
]

Action = Literal["created", "configured", "unchanged", "deleted", "refused"]

UNFINISHED: Final = "unfinished"  # a fact: the records are ahead of the maps


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object, in kubectl's words; `error` says why where it is refused and stays as it was.

    `warnings` are sentences about addresses that a service claims and another one has (S70), this one or that.
    """

    kind: str
    namespace: str
    name: str
    action: Action
    error: DatapathError | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.namespace}/{self.name} {self.action}"


@dataclass(slots=True)
class Edit:
    """A change to the records on its way to the maps: the services it touches, the objects it brought, parsed; what
    became of each object.
    """

    touched: dict[ServiceKey, None] = field(default_factory=dict)
    parsed: dict[Key, Service | EndpointSlice] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(slots=True)
class Wanted:
    """What the records want of some service ports: their plans, their numbers, and the addresses that each number had
    until now, also of those that are over. `whole`: they are all there are, and the maps may hold anything.
    """

    ports: list[PortPlan]
    numbers: dict[tuple[str, ...], int]
    before: dict[int, list[Address]]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Given:
    """An object to be made, as it is recorded, what was recorded before, and what a service claims."""

    one: Service | EndpointSlice
    stored: Stored
    old: Stored | None
    claimant: Claimant | None


def load_object(stored: Stored) -> Service | EndpointSlice:
    """The model object of a record."""
    return schema.parse(json.loads(stored.manifest), "records")


def here(records: Records) -> Here:
    """The node that is planned for, as `load` found it, and what it was told."""
    name, zone, algorithm = records.get("node_name", ""), records.get("zone", ""), records.get("algorithm", "random")
    families = tuple(Family(number) for number in records.get("families", (Family.IPV4,)))
    return Here(name, tuple(records.get("node_port_addresses", ())), zone, algorithm, families)


def apply(
    records: Records,
    maps: Maps,
    objects: Iterable[Service | EndpointSlice],
    *,
    delete: Collection[Key] = (),
    prune: bool = False,
    dry_run: bool = False,
    keep_going: bool = False,
    faults: Sequence[ManifestError] = (),
) -> list[Outcome]:
    """Makes these objects, and deletes those keys, or with `prune` all that are not given.

    Raises Refused where one cannot be made, or `faults` says that one could not be read; with `keep_going` the others
    are made, and what is refused or could not be read stays as it was. Where it is not known what could not be read,
    nothing is pruned. Raises KernelError for a map that is full. Nothing is written where an error is raised before the
    maps are reached. `records` is in a transaction, which is committed before the maps are written.
    """
    made = edit(records, objects, delete=delete, prune=prune, keep_going=keep_going, faults=faults)
    whole = bool(records.get(UNFINISHED))
    if whole or made.touched:
        _program(records, maps, want(records, made, whole=whole), dry_run=dry_run)
    return _warned(records, made.outcomes)


def refresh_all(records: Records, maps: Maps) -> None:
    """Brings the maps to what the records say, whatever they hold: after an upgrade or an interrupted change."""
    _program(records, maps, want(records, Edit(), whole=True), dry_run=False)


def change_forwards(
    records: Records, maps: Maps, *, add: Collection[Forward] = (), delete: Collection[Forward] = ()
) -> None:
    """Makes and deletes forwards of ports, which nobody has checked here. Raises KernelError for a map that is full."""
    records.forget((PORT_FORWARD, FORWARDS, one.name) for one in delete)
    records.store(Stored(PORT_FORWARD, FORWARDS, one.name, None, one.text) for one in add)
    made = Edit(touched={(FORWARDS, one.name): None for one in (*delete, *add)})
    _program(records, maps, want(records, made, whole=bool(records.get(UNFINISHED))), dry_run=False)


def edit(
    records: Records,
    objects: Iterable[Service | EndpointSlice],
    *,
    delete: Collection[Key] = (),
    prune: bool = False,
    keep_going: bool = False,
    faults: Sequence[ManifestError] = (),
) -> Edit:
    """The objects' part of `apply`: nothing but the records is changed. Raises Refused."""
    wished = {(type(one).__name__, one.namespace, one.name): one for one in objects}
    errors: dict[Key, DatapathError] = {}
    given: dict[Key, _Given] = {}
    for key, one in wished.items():
        try:
            given[key] = _given(records, key, one)
        except ManifestError as error:
            errors[key] = error
    over = set(delete) | (_pruned(records, wished, faults) if prune else set())
    errors |= _refusals(records, given, over)
    if (errors or faults) and not keep_going:
        raise Refused([*faults, *(errors[key] for key in wished if key in errors)])
    made = Edit()
    for key in wished:
        made.outcomes.append(
            Outcome(*key, "refused", errors[key]) if key in errors else _store(records, made, given[key])
        )
    made.outcomes += [_forget(records, made, key) for key in sorted(over)]
    return made


def _given(records: Records, key: Key, one: Service | EndpointSlice) -> _Given:
    """An object and what it claims. Raises ManifestError."""
    text = json.dumps(one.manifest, sort_keys=True, separators=(",", ":"))
    if isinstance(one, EndpointSlice):
        return _Given(one, Stored(*key, one.service, text), records.object(*key), None)
    claiming = claimant(one)
    return _Given(one, Stored(*key, None, text, claiming.made), records.object(*key), claiming)


def _pruned(records: Records, wished: Collection[Key], faults: Sequence[ManifestError]) -> set[Key]:
    """What is recorded and not given; nothing where something was given of which nobody knows what it is."""
    bad = {fault.key for fault in faults}
    if None in bad:
        return set()
    return {key for key in records.keys() - set(wished) - bad if key[0] != PORT_FORWARD}


def _refusals(records: Records, given: Mapping[Key, _Given], over: Collection[Key]) -> dict[Key, DatapathError]:
    """The services among these that claim what they cannot have, each with the reason."""
    keys, candidates = {}, []
    for key, each in given.items():
        if each.claimant is not None and each.stored != each.old:
            keys[each.claimant.service] = key
            candidates.append(Candidate(each.claimant, _claimant_before(each.old)))
    leaving = {*keys, *(f"{namespace}/{name}" for kind, namespace, name in over if kind == "Service")}
    claimed = records.holdings({claim for one in candidates for claim in one.new.claims})
    standing = {claim: [one for one in found if one.service not in leaving] for claim, found in claimed.items()}
    return {keys[service]: error for service, error in refusals(candidates, standing).items()}


def _claimant_before(stored: Stored | None) -> Claimant | None:
    if stored is None:
        return None
    service = load_object(stored)
    assert isinstance(service, Service)
    return Claimant(service.key, stored.made, claims_of(service))


def _store(records: Records, made: Edit, given: _Given) -> Outcome:
    stored, old = given.stored, given.old
    if old == stored:
        return Outcome(*stored.key, "unchanged")
    made.parsed[stored.key] = given.one
    _touch(made, stored)
    if old is not None:
        _touch(made, old)
    records.store([stored])
    return Outcome(*stored.key, "created" if old is None else "configured")


def _forget(records: Records, made: Edit, key: Key) -> Outcome:
    old = records.object(*key)
    if old is not None:
        _touch(made, old)
    records.forget([key])
    return Outcome(*key, "deleted")


def _warned(records: Records, outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes, those of services that claim one address with another with sentences about it (C7)."""
    told: dict[str, list[str]] = {}
    for shadow in records.shadows():
        for service in (shadow.service, shadow.holder):
            told.setdefault(service, []).append(str(shadow))
    if not told:
        return outcomes
    return [
        replace(one, warnings=tuple(told.get(f"{one.namespace}/{one.name}", ()))) if one.kind == "Service" else one
        for one in outcomes
    ]


def _touch(made: Edit, stored: Stored) -> None:
    name = stored.name if stored.kind == "Service" else stored.service
    if name is not None:
        made.touched[stored.namespace, name] = None


def want(records: Records, made: Edit, *, whole: bool = False) -> Wanted:
    """What the records want of the services that an edit touches, or of all; records what they claim and have."""
    touched = {**made.touched, **(dict.fromkeys(_all_services(records)) if whole else {})}
    before: dict[int, list[Address]] = {}
    for key in touched:
        before |= records.release(*key)
    node = here(records)
    plans: dict[ServiceKey, list[PortPlan]] = {}
    for key in touched:
        plans[key], claims = _planned(records, made, key, node)
        records.register(*key, plans[key])
        records.claim(*key, claims)
    moved = records.settle()
    for key in sorted(moved.keys() - plans.keys()):  # those that gain or lose an address by what is touched
        before |= moved[key]
        plans[key], _ = _planned(records, made, key, node)
    wanted = Wanted([], {}, before, whole)
    for key, ports in plans.items():
        wanted.numbers |= records.numbers_of(*key)
        wanted.ports += _called(ports, records.frontends_of(*key))
    return wanted


def _all_services(records: Records) -> Iterator[ServiceKey]:
    """Those that are there, and those of which a slice or a number is left."""
    for stored in records.objects():
        name = stored.name if stored.kind in ("Service", PORT_FORWARD) else stored.service
        if name is not None:
            yield stored.namespace, name
    for port in records.ports().values():
        yield port.namespace, port.service


def _planned(
    records: Records, made: Edit, key: ServiceKey, node: Here
) -> tuple[list[PortPlan], Mapping[Claim, ClaimKind]]:
    """What a service, or a forward of a port, needs on a node and claims; nothing where it is not there."""
    if key[0] == FORWARDS:
        stored = records.object(PORT_FORWARD, *key)
        return plan_forward(Forward.read(stored.manifest), node) if stored else [], {}
    service, slices = _load(records, made, key)
    return (plan.plan_service(service, slices, node), claims_of(service)) if service else ([], {})


def _load(records: Records, made: Edit, key: ServiceKey) -> tuple[Service | None, list[EndpointSlice]]:
    """A service and its slices."""
    stored = records.object("Service", *key)
    if stored is None:
        return None, []
    service = made.parsed.get(stored.key) or load_object(stored)
    slices = [made.parsed.get(one.key) or load_object(one) for one in records.slices(*key)]
    assert isinstance(service, Service)
    return service, [one for one in slices if isinstance(one, EndpointSlice)]


def _called(ports: Iterable[PortPlan], had: Mapping[int, Collection[Address]]) -> Iterator[PortPlan]:
    """The ports of a service, at the addresses that it has of those that it claims."""
    own = {at for addresses in had.values() for at in addresses}
    for port in ports:
        yield replace(port, frontends=tuple(one for one in port.frontends if one.address in own))


def _program(records: Records, maps: Maps, wanted: Wanted, *, dry_run: bool) -> None:
    """From what is wanted to the maps."""
    live = tables.read_live(maps, None if wanted.whole else {*wanted.before, *wanted.numbers.values()})
    before = live.called if wanted.whole else wanted.before
    try:
        change = plan.change(wanted.ports, before, wanted.numbers, live)
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
