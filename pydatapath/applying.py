"""Objects in, map writes out: what `apply`, `delete`, `service add` and a repair have in common.

objects -> claims, who is refused -> records (one transaction) -> plan of the services they touch -> difference to the
live maps -> writes
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from pydatapath import membership, plan, schema
from pydatapath.claims import Candidate, Claim, Claimant, ClaimKind, claimant, claims_of, refusals
from pydatapath.cluster_ips import Places, unserved
from pydatapath.collecting import collector_resting
from pydatapath.errors import DatapathError, KernelError, ManifestError, Refused
from pydatapath.forwarding import KIND as PORT_FORWARD
from pydatapath.forwarding import NAMESPACE as FORWARDS
from pydatapath.forwarding import Forward, plan_forward
from pydatapath.interrupts import deferred
from pydatapath.kernel import table_writes, tables
from pydatapath.kernel.layout import Family, MemberKind
from pydatapath.kernel.maps import Maps
from pydatapath.kinds import split_key
from pydatapath.known_fields import unknown_fields
from pydatapath.membership import MemberChange, Members, member_change, members_of
from pydatapath.model import EndpointSlice, Manifested, Node, Service
from pydatapath.plan import Address, Here, PortPlan
from pydatapath.records import Key, PortKey, Records, ServiceKey, Stored

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
    "load_slices",
    "node_conflicts",
    "pending",
    "refresh_all",
    "want",
]

Action = Literal["created", "configured", "unchanged", "deleted", "refused"]

UNFINISHED: Final = "unfinished"  # a fact: the records are ahead of the maps
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)


class Outcome(NamedTuple):
    """What became of one object, in kubectl's words; `error` says why where it is refused and stays as it was.

    `warnings` are sentences about addresses that a service claims and another one has (S70), this one or that; about
    what two nodes say is their own; about a service that nobody serves; and about fields that its kind has not.
    """

    kind: str
    namespace: str
    name: str
    action: Action
    error: DatapathError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        within = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind.lower()}/{within}{self.name} {self.action}"


@dataclass(slots=True)
class Edit:
    """A change to the records on its way to the maps: the services that it touches, the networks of nodes that it does,
    as they were; the objects it brought, parsed; what became of each object.
    """

    touched: dict[ServiceKey, None] = field(default_factory=dict)
    members: dict[str, MemberKind | None] = field(default_factory=dict)
    parsed: dict[Key, Manifested] = field(default_factory=dict)
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


class _Given(NamedTuple):
    """An object to be made, as it is recorded, what was recorded before, and what a service claims."""

    one: Manifested
    stored: Stored
    old: Stored | None
    claimant: Claimant | None


def load_object(stored: Stored) -> Manifested:
    """The model object of a record."""
    return schema.parse(json.loads(stored.manifest), "records")


def load_slices(
    records: Records, services: Collection[ServiceKey], parsed: Mapping[Key, Manifested] = MappingProxyType({})
) -> dict[ServiceKey, list[EndpointSlice]]:
    """The slices of each of these services, by name; what is parsed already is not read."""
    keys = records.slices(services)
    stored = records.these(key for each in keys.values() for key in each if key not in parsed)
    found = {key: load_object(one) for key, one in stored.items()}
    slices = {key: [parsed.get(one) or found[one] for one in each] for key, each in keys.items()}
    return {key: [one for one in each if isinstance(one, EndpointSlice)] for key, each in slices.items()}


def here(records: Records) -> Here:
    """The node that is planned for, as `load` found it, and what it was told; its zone, where `load` was not told that,
    is its Node object's.
    """
    name, algorithm = records.get("node_name", ""), records.get("algorithm", "random")
    zone = records.get("zone", "") or _zone_of(records.object("Node", "", name))
    families = tuple(Family(number) for number in records.get("families", (Family.IPV4,)))
    return Here(name, tuple(records.get("node_port_addresses", ())), zone, algorithm, families)


def _zone_of(stored: Stored | None) -> str:
    node = load_object(stored) if stored else None
    return node.zone if isinstance(node, Node) else ""


@collector_resting()
def apply(
    records: Records,
    maps: Maps,
    objects: Iterable[Manifested],
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
    node, objects = here(records), list(objects)
    made = edit(records, objects, delete=delete, prune=prune, keep_going=keep_going, faults=faults)
    # S87: in another zone every service with hints may have other backends
    whole = bool(records.get(UNFINISHED)) or here(records) != node
    if whole or made.touched or made.members:
        _program(records, maps, made, whole=whole, dry_run=dry_run)
    elif not dry_run:
        records.keep_copy()
    return _warned(records, made.outcomes, objects)


@collector_resting()
def complete(records: Records) -> None:
    """Plans anew what follows from the objects, where records are a copy, which lacks that."""
    if records.incomplete:
        records.begin_anew()
        want(records, Edit(), whole=True)


@collector_resting()
def refresh_all(records: Records, maps: Maps) -> None:
    """Brings the maps to what the records say, whatever they hold: after an upgrade or an interrupted change."""
    complete(records)
    tables.remove_strays(maps)
    _program(records, maps, Edit(), whole=True)


@collector_resting()
def pending(records: Records, maps: Maps) -> tuple[plan.Change, plan.Live]:
    """What `refresh_all` would write, and what the maps hold; nothing is kept. Raises KernelError."""
    try:
        complete(records)
        change, live = _change(maps, want(records, Edit(), whole=True))
        change.members = _member_change(records, maps, Edit(), whole=True)
        return change, live
    finally:
        records.rollback()


def change_forwards(
    records: Records, maps: Maps, *, add: Collection[Forward] = (), delete: Collection[Forward] = ()
) -> None:
    """Makes and deletes forwards of ports, which nobody has checked here. Raises KernelError for a map that is full."""
    records.forget((PORT_FORWARD, FORWARDS, one.name) for one in delete)
    records.store(Stored(PORT_FORWARD, FORWARDS, one.name, None, one.text) for one in add)
    made = Edit(touched={(FORWARDS, one.name): None for one in (*delete, *add)})
    _program(records, maps, made, whole=bool(records.get(UNFINISHED)))


def edit(
    records: Records,
    objects: Iterable[Manifested],
    *,
    delete: Collection[Key] = (),
    prune: bool = False,
    keep_going: bool = False,
    faults: Sequence[ManifestError] = (),
) -> Edit:
    """The objects' part of `apply`: nothing but the records is changed. Raises Refused."""
    wished = {(type(one).__name__, one.namespace, one.name): one for one in map(_checked, objects)}
    errors: dict[Key, DatapathError] = {}
    given: dict[Key, _Given] = {}
    old, places = records.these(wished), _places(records)
    for key, one in wished.items():
        try:
            given[key] = _given(records, places, key, one, old.get(key))
        except ManifestError as error:
            errors[key] = error
    over = set(delete) | (_pruned(records, wished, faults) if prune else set())
    errors |= _refusals(records, given, over)
    if (errors or faults) and not keep_going:
        raise Refused([*faults, *(errors[key] for key in wished if key in errors)])
    made = Edit()
    for key in wished:
        made.outcomes.append(
            Outcome(*key, "refused", errors[key]) if key in errors else _change_object(made, given[key])
        )
    records.store(given[key].stored for key in made.parsed)
    for key, one in made.parsed.items():
        if isinstance(one, Node):
            _join(records, made, key[2], members_of(one))
    _forget(records, made, over)
    return made


def _checked(one: object) -> Manifested:
    """The object, which a script may have taken for one. Raises ManifestError."""
    if isinstance(one, Service | EndpointSlice | Node):
        return one
    raise ManifestError(
        f"a Service, EndpointSlice or Node is expected, not {one!r:.60}",
        hint="`manifests.parse(document, source)` makes one of a dict, `manifests.read(paths)` of files",
    )


def _places(records: Records) -> Places:
    """Where this node and its pods are, as `load` found them."""
    known = ("node_ips", "egress_addresses", "node_port_addresses")
    return Places([address for name in known for address in records.get(name, ())], records.get("pod_networks", ()))


def _given(records: Records, places: Places, key: Key, one: Manifested, old: Stored | None) -> _Given:
    """An object and what it claims. Raises ManifestError."""
    text = _ENCODER.encode(one.manifest)
    if not isinstance(one, Service):
        if isinstance(one, Node):
            membership.check(one, records.get("service_networks", ()))
        service = one.service if isinstance(one, EndpointSlice) else None
        return _Given(one, Stored(*key, service, text), old, None)
    claiming = claimant(one)
    stored = Stored(*key, None, text, claiming.made)
    if stored != old:
        places.check(one)
    return _Given(one, stored, old, claiming)


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


def _change_object(made: Edit, given: _Given) -> Outcome:
    """Notes what an object touches where it is new or changed."""
    stored, old = given.stored, given.old
    if old == stored:
        return Outcome(*stored.key, "unchanged")
    made.parsed[stored.key] = given.one
    _touch(made, stored)
    if old is not None:
        _touch(made, old)
    return Outcome(*stored.key, "created" if old is None else "configured")


def _forget(records: Records, made: Edit, over: Collection[Key]) -> None:
    for old in records.these(over).values():
        _touch(made, old)
    records.forget(over)
    for key in sorted(over):
        made.parsed.pop(key, None)
        made.outcomes.append(Outcome(*key, "deleted"))
        if key[0] == "Node":
            _join(records, made, key[2], {})


def _warned(records: Records, outcomes: list[Outcome], objects: Iterable[Manifested]) -> list[Outcome]:
    """The outcomes, those of services that claim one address with another with sentences about it (C7), as of nodes;
    of services that nobody serves; and of fields that nobody knows.
    """
    told: dict[Key, list[str]] = {}
    for one in objects:
        if isinstance(one, Service) and (sentence := unserved(one)):
            told.setdefault(("Service", one.namespace, one.name), []).append(sentence)
    for key, sentence in unknown_fields(objects):
        told.setdefault(key, []).append(sentence)
    for shadow in records.shadows():
        for service in (shadow.service, shadow.holder):
            told.setdefault(("Service", *split_key(service)), []).append(str(shadow))
    if changed := [one.name for one in outcomes if one.kind == "Node"]:
        for nodes, sentence in node_conflicts(records, changed):
            for node in nodes:
                told.setdefault(("Node", "", node), []).append(sentence)
    return [one._replace(warnings=tuple(told.get(one.key, ()))) for one in outcomes] if told else outcomes


def node_conflicts(records: Records, nodes: Collection[str] | None = None) -> list[tuple[list[str], str]]:
    """What several nodes, or some of these and others, say is their own: who, and a sentence.

    It counts as long as one of them says so.
    """
    found = []
    for member, names in records.shared_members(nodes).items():
        stored = (records.object("Node", "", name) for name in names)
        those = [node for one in stored if one and isinstance(node := load_object(one), Node)]
        first, *others = [one.name for one in those if membership.claims(one, member)] or [""]
        found += [
            (
                [first, other],
                f"Node {other}: {membership.shown(member)} is Node {first}'s, too, and counts until neither has it",
            )
            for other in others
        ]
    return found


def _touch(made: Edit, stored: Stored) -> None:
    name = stored.name if stored.kind == "Service" else stored.service
    if name is not None:
        made.touched[stored.namespace, name] = None


def _join(records: Records, made: Edit, node: str, members: Members) -> None:
    """A node is changed, and brings these from now on."""
    touched = [one for one in {*members, *records.members_of(node)} if one not in made.members]
    known = records.members(touched)
    made.members |= {one: known.get(one) for one in touched}
    records.join(node, members)


def want(records: Records, made: Edit, *, whole: bool = False) -> Wanted:
    """What the records want of the services that an edit touches, or of all; records what they claim and have."""
    touched = {**made.touched, **(dict.fromkeys(_all_services(records)) if whole else {})}
    node, before = here(records), records.release(touched)
    plans, claims = _planned(records, made, touched, node)
    numbers = records.register(plans)
    records.claim(claims)
    moved = records.settle()
    others = sorted(moved.keys() - plans.keys())  # those that gain or lose an address by what is touched
    for key in others:
        before |= moved[key]
    plans |= _planned(records, made, others, node)[0]
    numbers |= records.numbers_of(others)
    return Wanted([*_called(plans, numbers, records.shadowed())], numbers, before, whole)


def _all_services(records: Records) -> Iterator[ServiceKey]:
    """Those that are there, and those of which a slice or a number is left."""
    for stored in records.objects():
        name = stored.name if stored.kind in ("Service", PORT_FORWARD) else stored.service
        if name is not None:
            yield stored.namespace, name
    for port in records.ports().values():
        yield port.namespace, port.service


def _planned(
    records: Records, made: Edit, keys: Collection[ServiceKey], node: Here
) -> tuple[dict[ServiceKey, list[PortPlan]], dict[ServiceKey, Mapping[Claim, ClaimKind]]]:
    """What services, and forwards of ports, need on a node, and claim; nothing where they are not there."""
    heads: dict[ServiceKey, Key] = {key: (PORT_FORWARD if key[0] == FORWARDS else "Service", *key) for key in keys}
    stored = records.these(head for head in heads.values() if head not in made.parsed)
    slices = load_slices(records, keys, made.parsed)
    plans: dict[ServiceKey, list[PortPlan]] = {key: [] for key in keys}
    claims: dict[ServiceKey, Mapping[Claim, ClaimKind]] = {key: {} for key in keys}
    for key, head in heads.items():
        if key[0] == FORWARDS:
            plans[key] = plan_forward(Forward.read(stored[head].manifest), node) if head in stored else []
            continue
        service = made.parsed.get(head) or (load_object(stored[head]) if head in stored else None)
        if isinstance(service, Service):
            plans[key] = plan.plan_service(service, slices[key], node)
            claims[key] = claims_of(service)
    return plans, claims


def _called(
    plans: Mapping[ServiceKey, list[PortPlan]],
    numbers: Mapping[PortKey, int],
    shadowed: Mapping[int, Collection[Address]],
) -> Iterator[PortPlan]:
    """The ports of services, at the addresses that they have of those that they claim."""
    for port in chain.from_iterable(plans.values()):
        if lost := shadowed.get(numbers[port.key]):
            yield port._replace(frontends=tuple(one for one in port.frontends if one.address not in lost))
        else:
            yield port


def _program(records: Records, maps: Maps, made: Edit, *, whole: bool, dry_run: bool = False) -> None:
    """From an edit to the maps; `whole`: whatever they hold."""
    touched = whole or made.touched
    change, live = _change(maps, want(records, made, whole=whole)) if touched else (plan.Change(), plan.Live())
    change.members = _member_change(records, maps, made, whole=whole)
    if change.members.written:
        table_writes.check_members(maps, records.members_bound(), records.count_members)
    table_writes.check_room(maps, change, live)
    if dry_run:
        return
    # A signal waits until records and maps say the same
    with deferred():
        if not change.empty:
            records.put({UNFINISHED: True})
            records.commit()
            table_writes.write(maps, change)
        records.put({UNFINISHED: False})
        records.commit()


def _change(maps: Maps, wanted: Wanted) -> tuple[plan.Change, plan.Live]:
    """The services' part of the difference between what is wanted and what the maps hold, and the latter.

    Raises KernelError.
    """
    live = tables.read_live(maps, None if wanted.whole else {*wanted.before, *wanted.numbers.values()})
    before = live.called if wanted.whole else wanted.before
    try:
        return plan.change(wanted.ports, before, wanted.numbers, live), live
    except plan.OutOfRoom as full:
        raise KernelError(
            f"the map {full.table!r} has no room left: it holds {full.size:,} entries",
            hint="load again with a larger --max-backends",
        ) from None


def _member_change(records: Records, maps: Maps, made: Edit, *, whole: bool) -> MemberChange:
    """The nodes' part. What a node touches is known from the records: the maps have an entry for each of thousands."""
    if whole:
        families = tables.loaded_families(maps)
        wanted = {one: kind for one, kind in records.members().items() if Family.of(one) in families}
        return member_change(tables.read_members(maps), wanted)
    before = {one: kind for one, kind in made.members.items() if kind is not None}
    return member_change(before, records.members(made.members))
