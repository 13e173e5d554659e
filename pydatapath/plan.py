"""From objects to what the kernel must hold, as pure functions: the same for apply, dry runs and repairs.

    service + its slices  ->  PortPlan   where each of its ports is called in a family, and which backends serve it
    PortPlan + Live       ->  Change     the writes that turn what the maps hold into what is wanted, in a safe order

Rule numbers (S11...) are those of the project's table of service semantics.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pydatapath.guarding import Guard, GuardChange, Guards, guard_change, ranges_of
from pydatapath.kernel.layout import Family, ServiceFlag, VipKind
from pydatapath.model import Algorithm, EndpointSlice, Policy, Protocol, Service, ServicePort
from pydatapath.serving import (
    Address,
    Here,
    cluster_set,
    families_of,
    known_endpoints,
    local_set,
    resting,
    slices_of,
    used_endpoints,
)
from pydatapath.slots import OutOfRoom, Room, Run, slots_of

__all__ = [
    "Address",
    "Called",
    "Change",
    "Frontend",
    "FrontendKind",
    "Here",
    "Live",
    "LiveBackend",
    "OutOfRoom",
    "PortPlan",
    "Run",
    "change",
    "plan_service",
    "used_endpoints",
]

# What the programs carry
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP", "SCTP")

FrontendKind = Literal["cluster-ip", "node-port", "external-ip", "load-balancer-ip"]
EndpointSet = Literal["cluster", "local"]
NO_FLAG: Final = ServiceFlag(0)
_SETS: Final[Mapping[Policy, EndpointSet]] = {"Cluster": "cluster", "Local": "local"}


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address where a service port is called, and the sets that serve callers inside the cluster and outside it."""

    address: Address
    kind: FrontendKind = "cluster-ip"
    inside: EndpointSet = "cluster"
    outside: EndpointSet = "cluster"
    owned: bool = True  # the address is the service's, not this node's own

    @property
    def vip_kind(self) -> VipKind:
        """Whether its other ports are refused: a cluster IP has none but the service's (C2)."""
        return VipKind.CLUSTER if self.kind == "cluster-ip" else VipKind.EXTERNAL


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One service port in one family: where it is called, and its backends, all in order and none twice.

    `cluster` are those that serve it anywhere, `local` those on this node, empty where no policy asks for them.
    `affinity` is how many seconds a client keeps its backend, 0 for no affinity (S73). `sources` are the networks that
    may call its load balancer's addresses, None for all (S62); with no network of this family none may (C6). `weights`
    are those that are not 1; who has 0 drains, and is in none of the sets (C12).
    """

    namespace: str
    service: str
    port: str
    protocol: Protocol
    frontends: tuple[Frontend, ...]
    cluster: tuple[Address, ...]
    local: tuple[Address, ...] = ()
    affinity: int = 0
    sources: tuple[str, ...] | None = None
    algorithm: Algorithm = "random"
    weights: Mapping[Address, int] = field(default_factory=dict, hash=False)
    family: Family = Family.IPV4

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What names a service port: namespace, service, port name, protocol (S11), family (S8)."""
        return (self.namespace, self.service, self.port, self.protocol, f"IPv{int(self.family)}")

    @property
    def sets(self) -> dict[EndpointSet, tuple[Address, ...]]:
        """The backends of each set that an address of it uses."""
        used = {one for frontend in self.frontends for one in (frontend.inside, frontend.outside)}
        both: dict[EndpointSet, tuple[Address, ...]] = {"cluster": self.cluster, "local": self.local}
        return {name: backends for name, backends in both.items() if name in used}

    @property
    def slots(self) -> dict[EndpointSet, tuple[Address, ...]]:
        """What stands in the slots of each set; a set of the same backends has the same slots."""
        sets = self.sets
        runs = {
            backends: slots_of({at: self.weights.get(at, 1) for at in backends}, self.algorithm)
            for backends in {*sets.values()}
        }
        return {name: runs[backends] for name, backends in sets.items()}

    @property
    def draining(self) -> list[Address]:
        """The backends that only keep their open flows (C12, S90, S94)."""
        return [at for at, weight in self.weights.items() if not weight]

    def flags(self, frontend: Frontend) -> ServiceFlag:
        """Whose calls are dropped: nothing is here, but elsewhere (S36, S51), or not everybody may call (S62, S65)."""
        drops = not self.local and bool(self.cluster)
        wanted = {
            ServiceFlag.DROP_INSIDE: drops and frontend.inside == "local",
            ServiceFlag.DROP_OUTSIDE: drops and frontend.outside == "local",
            ServiceFlag.RANGES: self.sources is not None and frontend.kind == "load-balancer-ip",
        }
        return ServiceFlag(sum(flag for flag, is_set in wanted.items() if is_set))

    def guard(self, number: int) -> Guard:
        """What stands around the port of this number."""
        vips = {one.address.address: one.vip_kind for one in self.frontends if one.owned}
        return Guard(number, vips, self.sources or ())


def plan_service(service: Service, slices: Iterable[EndpointSlice], here: Here) -> list[PortPlan]:
    """What a service needs in the kernel of a node, port by port; nothing for one that is not proxied (S1 to S4).

    A family is there only where the service has a ClusterIP of it (S7), with its own addresses, slices and ranges (S8).
    """
    if not service.proxied:
        return []
    slices = list(slices)
    ports = [port for port in service.ports if port.protocol in PROTOCOLS]
    return [
        _port_plan(service, port, family, frontends, slices_of(slices, family), here)
        for family in families_of(service, here)
        for port, frontends in _frontends_by_port(service, ports, family, here).items()
    ]


def _port_plan(
    service: Service,
    port: ServicePort,
    family: Family,
    frontends: list[Frontend],
    slices: list[EndpointSlice],
    here: Here,
) -> PortPlan:
    known = known_endpoints(port, slices)
    wants_local = any("local" in (one.inside, one.outside) for one in frontends)
    cluster, local = cluster_set(known, here), local_set(known, here) if wants_local else []
    used = dict([*cluster, *local])
    return PortPlan(
        service.namespace,
        service.name,
        port.name,
        port.protocol,
        frontends=tuple(frontends),
        cluster=tuple(address for address, _ in cluster),
        local=tuple(address for address, _ in local),
        affinity=service.affinity,
        sources=ranges_of(service.source_ranges, family) if service.source_ranges else None,
        algorithm=service.algorithm or here.algorithm,
        weights={at: one.weight for at, one in used.items() if one.weight != 1}
        | dict.fromkeys(resting(known, used), 0),
        family=family,
    )


def _frontends_by_port(
    service: Service, ports: list[ServicePort], family: Family, here: Here
) -> dict[ServicePort, list[Frontend]]:
    called: dict[ServicePort, list[Frontend]] = {port: [] for port in ports}
    for port, frontend in _frontends(service, ports, family, here):
        called[port].append(frontend)
    return called


def _frontends(
    service: Service, ports: list[ServicePort], family: Family, here: Here
) -> Iterator[tuple[ServicePort, Frontend]]:
    """Where each port is called in a family; of one address that is meant twice the first of these kinds counts (S48).

    A ClusterIP has the internal policy for all callers (S35). The other addresses have the external one, and that for
    callers outside the cluster only: those inside get the Cluster set, whatever the policy (S50, S52, S53). An address
    that is external and the load balancer's is the latter's (S69, C6).
    """
    internal, external = _SETS[service.internal_policy], _SETS[service.external_policy]
    ways: tuple[tuple[FrontendKind, tuple[str, ...], EndpointSet, EndpointSet], ...] = (
        ("cluster-ip", service.cluster_ips, internal, internal),
        ("load-balancer-ip", service.load_balancer_ips, "cluster", external),
        ("external-ip", service.external_ips, "cluster", external),
        ("node-port", here.addresses, "cluster", external),
    )
    taken: set[Address] = set()
    for kind, addresses, inside, outside in ways:
        own = [text for text in addresses if Family.of(text) is family]
        for port in ports:
            number = port.node_port if kind == "node-port" else port.port
            for text in own if number else ():
                at = Address(text, number or 0, port.protocol)
                if at not in taken:
                    taken.add(at)
                    yield port, Frontend(at, kind, inside, outside, owned=text not in here.addresses)


@dataclass(frozen=True, slots=True)
class Called:
    """A service port at one address in the map: its runs for callers inside the cluster and outside, the number that
    names it, seconds of session affinity, and whose calls are dropped.
    """

    inside: Run
    outside: Run
    number: int
    affinity: int = 0
    flags: ServiceFlag = NO_FLAG

    @property
    def runs(self) -> set[Run]:
        """Its runs that have slots."""
        return {run for run in (self.inside, self.outside) if run.slot_count}


@dataclass(frozen=True, slots=True)
class LiveBackend:
    """A backend in the map, at the place that is its number; one that is draining takes no new flows."""

    address: Address
    generation: int
    service: int
    draining: bool = False


@dataclass(slots=True)
class Live:
    """What the maps hold of the services that change, and where there is room.

    `services`: every called address and what is there; `slots`: the backend numbers of the changing services' runs, by
    first slot; `backends`: the active backends in those, and those that drain, by number; `free_backends`: numbers that
    may be given, each with its generation, never-used ones first; `targets`: how many such backends listen at an
    address; the limits are the entries of the maps. `whole`: all services change, and `backends` are all that are
    active or drain, also those that a change which was killed gave to no run.
    """

    services: dict[Address, Called] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    backends: dict[int, LiveBackend] = field(default_factory=dict)
    free_backends: Iterator[tuple[int, int]] = field(default_factory=lambda: iter(()))
    targets: dict[Address, int] = field(default_factory=dict)
    guards: Guards = field(default_factory=Guards)
    slot_limit: int = 0
    backend_limit: int = 0
    whole: bool = False

    @property
    def called(self) -> dict[int, list[Address]]:
        """The number of every service port that the map holds, with the addresses that call it."""
        found: dict[int, list[Address]] = {}
        for at, called in self.services.items():
            found.setdefault(called.number, []).append(at)
        return found

    @property
    def backends_by_service(self) -> dict[int, dict[Address, int]]:
        """The number of each backend, by its service port's number and its address."""
        found: dict[int, dict[Address, int]] = {}
        for number, one in self.backends.items():
            found.setdefault(one.service, {}).setdefault(one.address, number)
        return found


@dataclass(slots=True)
class Change:
    """Writes in their order: backends that are new or drain no longer, targets, runs, guards; then the services switch;
    then backends drain, and what is over goes.

    A packet between any two of these steps sees the old state of a service or the new one, never half of each.
    """

    backends: dict[int, LiveBackend] = field(default_factory=dict)
    targets: dict[Address, int] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    guards: GuardChange = field(default_factory=GuardChange)
    services: dict[Address, Called] = field(default_factory=dict)
    removed_services: list[Address] = field(default_factory=list)
    draining_backends: dict[int, LiveBackend] = field(default_factory=dict)
    gone_backends: dict[int, LiveBackend] = field(default_factory=dict)
    removed_targets: list[Address] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self == Change()


def change(
    wanted: Collection[PortPlan],
    before: Mapping[int, list[Address]],
    numbers: Mapping[tuple[str, ...], int],
    live: Live,
) -> Change:
    """The writes for some service ports.

    `before`: the numbers of all service ports that change or go, each with the addresses it had until now; `numbers`:
    the number of each wanted one. Raises OutOfRoom.
    """
    result = Change()
    room = Room({run for called in live.services.values() for run in called.runs}, live.slot_limit)
    backends = live.backends_by_service
    kept: set[Address] = set()
    staying: set[int] = set()
    for port in wanted:
        number = numbers[port.key]
        stock = _Stock(number, before.get(number, ()), live, backends.get(number, {}))
        runs = {name: stock.run(slots, room, result) for name, slots in port.slots.items()}
        stock.drain(port.draining, result)
        staying.update(stock.used)
        for frontend in port.frontends:
            inside, outside = runs[frontend.inside], runs[frontend.outside]
            service = Called(inside, outside, number, port.affinity, port.flags(frontend))
            kept.add(frontend.address)
            if live.services.get(frontend.address) != service:
                result.services[frontend.address] = service
    removed = [at for addresses in before.values() for at in addresses if at in live.services and at not in kept]
    result.removed_services = removed
    result.gone_backends = {number: one for number, one in live.backends.items() if number not in staying}
    _count_targets(live, result)
    called = {at.address for at in {*live.services, *result.services} - set(removed)}
    guards = [port.guard(numbers[port.key]) for port in wanted]
    changing = {*before, *(guard.number for guard in guards)}
    others = {at.address for at, one in live.services.items() if one.number not in changing}
    result.guards = guard_change(guards, changing, called, live.guards, whole=live.whole, others=others)
    return result


class _Stock:
    """What a service port has in the maps and gets: the numbers of its backends, one pool for all its runs; its runs
    that are whole, by their slots. `used` are the numbers that stay: they take new flows, or drain.
    """

    def __init__(self, number: int, addresses: Iterable[Address], live: Live, backends: Mapping[Address, int]) -> None:
        self._number, self._live = number, live
        self._backends: dict[Address, int] = {}
        self._runs: dict[tuple[Address, ...], Run] = {}
        self.used: set[int] = set()
        called = [live.services[at] for at in addresses if at in live.services]
        for run in sorted({run for one in called if one.number == number for run in one.runs}):
            slots = live.slots[run.first_slot]
            have = {one: live.backends[one].address for one in slots if one in live.backends}
            for backend, address in have.items():
                self._backends.setdefault(address, backend)
            if all(one in have and self._backends[have[one]] == one for one in {*slots}):
                self._runs.setdefault(tuple(have[one] for one in slots), run)
        self._backends = {**backends, **self._backends}  # of two with one address that which is in a run

    def run(self, wanted: tuple[Address, ...], room: Room, result: Change) -> Run:
        """A run of these slots: one that is there, or a fresh one. Raises OutOfRoom."""
        if not wanted:
            return Run()
        numbers = {address: self._backend(address, result) for address in dict.fromkeys(wanted)}
        self.used.update(numbers.values())
        if wanted not in self._runs:
            self._runs[wanted] = Run(room.take(len(wanted)), len(wanted))
            result.slots[self._runs[wanted].first_slot] = tuple(numbers[address] for address in wanted)
        return self._runs[wanted]

    def drain(self, addresses: Iterable[Address], result: Change) -> None:
        """These keep the numbers that they have. Who has none has no flows, and needs none."""
        for number in [self._backends[address] for address in addresses if address in self._backends]:
            self.used.add(number)
            if not self._live.backends[number].draining:
                result.draining_backends[number] = replace(self._live.backends[number], draining=True)

    def _backend(self, address: Address, result: Change) -> int:
        """The number of a backend that takes new flows: its own, drained or not, or a fresh one."""
        if address not in self._backends:
            backend, generation = _next_backend(self._live)
            result.backends[backend] = LiveBackend(address, generation + 1, self._number)
            self._backends[address] = backend
        elif (live := self._live.backends.get(self._backends[address])) and live.draining:
            result.backends[self._backends[address]] = replace(live, draining=False)
        return self._backends[address]


def _count_targets(live: Live, result: Change) -> None:
    """How many backends listen where some come or go; counted anew where all services are looked at."""
    by = Tally(one.address for number, one in result.backends.items() if number not in live.backends)
    by.subtract(one.address for one in result.gone_backends.values())
    have = Tally(one.address for one in live.backends.values()) if live.whole else live.targets
    for address in {**have, **by, **live.targets} if live.whole else by:
        count = have.get(address, 0) + by[address]
        if count <= 0 and address in live.targets:
            result.removed_targets.append(address)
        elif count > 0 and count != live.targets.get(address):
            result.targets[address] = count


def _next_backend(live: Live) -> tuple[int, int]:
    for backend, generation in live.free_backends:
        return backend, generation
    raise OutOfRoom("backends", live.backend_limit)
