"""From objects to what the kernel must hold, as pure functions: the same for apply, dry runs and repairs.

    service + its slices  ->  PortPlan   where each of its ports is called in a family, and which backends serve it
    PortPlan + Live       ->  Change     the writes that turn what the maps hold into what is wanted, in a safe order

Rule numbers (S11...) are those of the project's table of service semantics.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from pydatapath.compacting import stages
from pydatapath.guarding import Guard, GuardChange, guard_change, ranges_of
from pydatapath.kernel.layout import Family, ServiceFlag, VipKind
from pydatapath.live import NO_FLAG, Called, Change, Live, LiveBackend, Move
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
    "Move",
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
_FAMILIES: Final = {family: f"IPv{int(family)}" for family in Family}
_SETS: Final[Mapping[Policy, EndpointSet]] = {"Cluster": "cluster", "Local": "local"}


class Frontend(NamedTuple):
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


class PortPlan(NamedTuple):
    """One service port in one family: where it is called, and its backends, all in order and none twice.

    `cluster` are those that serve it anywhere, `local` those on this node, empty where no policy asks for them.
    `affinity` is how many seconds a client keeps its backend, 0 for no affinity (S73), and `shared` whether by any of
    its Service's ports (C11). `sources` are the networks that
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
    weights: Mapping[Address, int] = MappingProxyType({})
    family: Family = Family.IPV4
    shared: bool = False

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What names a service port: namespace, service, port name, protocol (S11), family (S8)."""
        return (self.namespace, self.service, self.port, self.protocol, _FAMILIES[self.family])

    @property
    def siblings(self) -> tuple[str, str, str]:
        """What names all ports of its Service in its family."""
        return (self.namespace, self.service, self.key[-1])

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
        if self.algorithm == "random" and not self.weights:
            return sets
        runs = {
            backends: slots_of({at: self.weights.get(at, 1) for at in backends}, self.algorithm, by_pod=self.shared)
            for backends in {*sets.values()}
        }
        return {name: runs[backends] for name, backends in sets.items()}

    @property
    def draining(self) -> list[Address]:
        """The backends that only keep their open flows (C12, S90, S94)."""
        return [at for at, weight in self.weights.items() if not weight]

    def flags(self, frontend: Frontend) -> ServiceFlag:
        """Whose calls are dropped: nothing is here, but elsewhere (S36, S51), or not everybody may call (S62, S65)."""
        found = NO_FLAG
        drops = bool(self.cluster) and not self.local
        if drops and frontend.inside == "local":
            found |= ServiceFlag.DROP_INSIDE
        if drops and frontend.outside == "local":
            found |= ServiceFlag.DROP_OUTSIDE
        if self.sources is not None and frontend.kind == "load-balancer-ip":
            found |= ServiceFlag.RANGES
        return found

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
        shared=service.affinity_scope == "service",
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
        for port in ports if own else ():
            number = port.node_port if kind == "node-port" else port.port
            for text in own if number else ():
                at = Address(text, number or 0, port.protocol)
                if at not in taken:
                    taken.add(at)
                    yield port, Frontend(at, kind, inside, outside, owned=text not in here.addresses)


class _Numbered(NamedTuple):
    """A service port with its number, and what shall stand in its slots."""

    number: int
    port: PortPlan
    slots: dict[EndpointSet, tuple[Address, ...]]


def change(
    wanted: Collection[PortPlan],
    before: Mapping[int, list[Address]],
    numbers: Mapping[tuple[str, ...], int],
    live: Live,
) -> Change:
    """The writes for some service ports.

    `before`: the numbers of all service ports that change or go, each with the addresses it had until now; `numbers`:
    the number of each wanted one. Ports that share their clients come with all of their Service. Raises OutOfRoom.
    """
    result = Change()
    own = [_Numbered(numbers[port.key], port, port.slots) for port in wanted]
    oldest = _oldest(own)
    stocks, room = _stocks(own, before, live, result)
    kept: set[Address] = set()
    staying: set[int] = set()
    for (number, port, slots), stock in zip(own, stocks, strict=True):
        runs = {name: stock.run(backends, room, result) for name, backends in slots.items()}
        stock.drain(port.draining, result)
        staying.update(stock.used)
        shared = oldest.get(port.siblings, 0) if port.shared and port.affinity else 0
        for frontend in port.frontends:
            inside, outside = runs[frontend.inside], runs[frontend.outside]
            service = Called(inside, outside, number, port.affinity, port.flags(frontend), shared)
            kept.add(frontend.address)
            if live.services.get(frontend.address) != service:
                result.services[frontend.address] = service
    was = [at for addresses in before.values() for at in addresses]
    result.removed_services = [at for at in was if at in live.services and at not in kept]
    result.gone_backends = {number: one for number, one in live.backends.items() if number not in staying}
    _count_targets(live, result)
    result.guards = _guards(own, before, live, result)
    return result


def _oldest(own: Collection[_Numbered]) -> dict[tuple[str, str, str], int]:
    """C11: of each Service whose ports share their clients the number under which they do."""
    found: dict[tuple[str, str, str], int] = {}
    for number, port, _ in own:
        if port.shared and port.affinity:
            found[port.siblings] = min(number, found.get(port.siblings, number))
    return found


def _stocks(
    own: Collection[_Numbered], before: Mapping[int, list[Address]], live: Live, result: Change
) -> tuple[list[_Stock], Room]:
    """What each port has, and where its new runs find room: others move for them where no gap is long enough.

    Raises OutOfRoom.
    """
    numbered = live.backends_by_service

    def stocks() -> list[_Stock]:
        return [_Stock(number, before.get(number, ()), live, numbered.get(number, {})) for number, *_ in own]

    found = stocks()
    needs = [count for stock, one in zip(found, own, strict=True) for count in stock.lacks(one.slots)]
    room = Room(live.taken if needs else (), live.slot_limit)
    if room.fits(needs):
        return found, room
    result.moves = _make_room(live, needs)
    return stocks(), Room(live.runs, live.slot_limit)


def _guards(own: Collection[_Numbered], before: Mapping[int, list[Address]], live: Live, result: Change) -> GuardChange:
    """What stands around the ports, once `result` is written: services' own addresses, and who may call."""
    called = {at.address for at in {*live.services, *result.services} - set(result.removed_services)}
    guards = [port.guard(number) for number, port, _ in own]
    changing = {*before, *(guard.number for guard in guards)}
    others = {at.address for at, one in live.services.items() if one.number not in changing}
    had = live.guards.vips if live.whole else {at.address for addresses in before.values() for at in addresses}
    others |= {address for address in {*had, *called} if live.is_called(address)}
    return guard_change(guards, changing, had, called | others, live.guards, whole=live.whole, others=others)


def _make_room(live: Live, needs: list[int]) -> list[Move]:
    """Moves runs so that these lengths fit in, in `live`, too. Raises OutOfRoom."""
    moves = []
    live.read_rest()
    for stage in stages(live.runs, live.slot_limit, needs):
        move = Move(slots={to.first_slot: live.members(run) for run, to in stage.items()})
        for at, called in live.services.items():
            inside, outside = (stage.get(run, run) for run in (called.inside, called.outside))
            if (inside, outside) != (called.inside, called.outside):
                move.services[at] = called._replace(inside=inside, outside=outside)
        live.move(stage, move)
        moves.append(move)
    return moves


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
            is_whole = len(slots) == run.slot_count  # else somebody wrote a run that ends behind the map
            if is_whole and all(one in have and self._backends[have[one]] == one for one in {*slots}):
                self._runs.setdefault(tuple(have[one] for one in slots), run)
        self._backends = {**backends, **self._backends}  # of two with one address that which is in a run

    def lacks(self, wanted: Mapping[EndpointSet, tuple[Address, ...]]) -> list[int]:
        """The lengths of those of these runs that are not there."""
        return [len(slots) for slots in dict.fromkeys(wanted.values()) if slots and slots not in self._runs]

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
                result.draining_backends[number] = self._live.backends[number]._replace(draining=True)

    def _backend(self, address: Address, result: Change) -> int:
        """The number of a backend that takes new flows: its own, drained or not, or a fresh one."""
        if address not in self._backends:
            backend, generation = _next_backend(self._live)
            result.backends[backend] = LiveBackend(address, generation + 1, self._number)
            self._backends[address] = backend
        elif (live := self._live.backends.get(self._backends[address])) and live.draining:
            result.backends[self._backends[address]] = live._replace(draining=False)
        return self._backends[address]


def _count_targets(live: Live, result: Change) -> None:
    """How many backends listen where some come or go; counted anew where all services are looked at."""
    by = Tally(one.address for number, one in result.backends.items() if number not in live.backends)
    by.subtract(one.address for one in result.gone_backends.values())
    have = Tally(one.address for one in live.backends.values()) if live.whole else Tally()
    for address in {**have, **by, **live.targets} if live.whole else by:
        told = live.targets.get(address)
        count = (have[address] if live.whole else told or 0) + by[address]
        if count <= 0 and told is not None:
            result.removed_targets.append(address)
        elif count > 0 and count != told:
            result.targets[address] = count


def _next_backend(live: Live) -> tuple[int, int]:
    for backend, generation in live.free_backends:
        return backend, generation
    raise OutOfRoom("backends", live.backend_limit)
