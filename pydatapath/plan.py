"""From objects to what the kernel must hold, as pure functions: the same for apply, dry runs and repairs.

    service + its slices  ->  Wanted     which backends serve which of its ports, and at which addresses they are called
    Wanted + Live         ->  Change     the writes that turn what the maps hold into what is wanted, in a safe order

Rule numbers (S11...) are those of the project's table of service semantics.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from pydatapath.model import Endpoint, EndpointSlice, Protocol, Service, ServicePort

__all__ = ["Address", "Change", "Live", "LiveBackend", "PortPlan", "Run", "change", "plan_service", "used_endpoints"]

# What this version's programs carry; a service port of another protocol or family is kept but not programmed
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where something is called or listens: canonical IPv4 text, port in host order."""

    address: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.address}:{self.port}/{self.protocol.lower()}"


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One service port: the addresses that call it, and its backends in order, none twice."""

    namespace: str
    service: str
    port: str
    protocol: Protocol
    frontends: tuple[Address, ...]
    backends: tuple[Address, ...]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names a service port: namespace, service, port name, protocol (S11)."""
        return (self.namespace, self.service, self.port, self.protocol)


def plan_service(service: Service, slices: Iterable[EndpointSlice]) -> list[PortPlan]:
    """What a service needs in the kernel, port by port; nothing for one that is not proxied (S1 to S4)."""
    if not service.proxied:
        return []
    own = [one for one in slices if one.proxied and one.address_type == "IPv4"]
    cluster_ips = [address for address in service.cluster_ips if _is_ipv4(address)]
    return [
        PortPlan(
            service.namespace,
            service.name,
            port.name,
            port.protocol,
            tuple(Address(address, port.port, port.protocol) for address in cluster_ips),
            tuple(address for address, _ in used_endpoints(port, own)),
        )
        for port in service.ports
        if port.protocol in PROTOCOLS and cluster_ips
    ]


def used_endpoints(port: ServicePort, slices: Iterable[EndpointSlice]) -> list[tuple[Address, Endpoint]]:
    """The endpoints behind a service port: all ready ones (S20), else those that serve while they terminate (S21).

    Of one address and port in several slices a record that is not terminating wins, else the last one (S17).
    """
    known: dict[Address, Endpoint] = {}
    for address, endpoint in _endpoints(port, slices):
        if address not in known or known[address].terminating or not endpoint.terminating:
            known[address] = endpoint
    ready = [(address, endpoint) for address, endpoint in known.items() if endpoint.ready]
    serving = [(address, one) for address, one in known.items() if one.serving and one.terminating]
    return sorted(ready or serving, key=lambda pair: pair[0])


def _endpoints(port: ServicePort, slices: Iterable[EndpointSlice]) -> Iterator[tuple[Address, Endpoint]]:
    """Those of the slices' ports with the same name and protocol (S11), whatever their number (S12)."""
    for one in slices:
        for slice_port in one.numbered_ports:
            if (slice_port.name, slice_port.protocol) == (port.name, port.protocol) and slice_port.port:
                for endpoint in one.endpoints:
                    yield Address(endpoint.address, slice_port.port, port.protocol), endpoint


def _is_ipv4(address: str) -> bool:
    try:
        IPv4Address(address)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Run:
    """A service port in the map: its run of slots, and the number that names it."""

    first_slot: int
    slot_count: int
    number: int


@dataclass(frozen=True, slots=True)
class LiveBackend:
    """A backend in the map, at the place that is its number."""

    address: Address
    generation: int
    service: int


@dataclass(slots=True)
class Live:
    """What the maps hold of the services that change, and where there is room.

    `services`: every called address and its run; `slots`: the backend numbers of the changing services' runs, by first
    slot; `backends`: the active backends in those, by number; `free_backends`: numbers that may be given, each with its
    generation, never-used ones first; `targets`: how many active backends listen at an address. `whole`: all services
    change, and `backends` are all that are active, also those that a change which was killed gave to no run.
    """

    services: dict[Address, Run] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    backends: dict[int, LiveBackend] = field(default_factory=dict)
    free_backends: Iterator[tuple[int, int]] = field(default_factory=lambda: iter(()))
    targets: dict[Address, int] = field(default_factory=dict)
    slot_limit: int = 0
    whole: bool = False

    @property
    def called(self) -> dict[int, list[Address]]:
        """The number of every service port that the map holds, with the addresses that call it."""
        found: dict[int, list[Address]] = {}
        for at, run in self.services.items():
            found.setdefault(run.number, []).append(at)
        return found


@dataclass(slots=True)
class Change:
    """Writes in their order: new backends, targets, runs; then the services switch; then what is over goes.

    A packet between any two of these steps sees the old state of a service or the new one, never half of each.
    """

    backends: dict[int, LiveBackend] = field(default_factory=dict)
    targets: dict[Address, int] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    services: dict[Address, Run] = field(default_factory=dict)
    removed_services: list[Address] = field(default_factory=list)
    gone_backends: dict[int, LiveBackend] = field(default_factory=dict)
    removed_targets: list[Address] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self == Change()


class OutOfRoom(Exception):
    """A map has no room left: its name and its size."""

    def __init__(self, table: str, size: int) -> None:
        super().__init__(table, size)
        self.table, self.size = table, size


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
    room = _SlotRoom(live)
    kept: set[Address] = set()
    staying: set[int] = set()
    for port in wanted:
        number = numbers[port.key]
        runs = (live.services.get(at) for at in before.get(number, ()))
        old = next((one for one in runs if one and one.number == number), Run(0, 0, number))
        run, members = _run_of(port, old, live, result)
        if run is None:
            run = Run(room.take(len(members)), len(members), number)
            result.slots[run.first_slot] = members
        staying.update(members)
        for frontend in port.frontends:
            kept.add(frontend)
            if live.services.get(frontend) != run:
                result.services[frontend] = run
    removed = [at for addresses in before.values() for at in addresses if at in live.services and at not in kept]
    result.removed_services = removed
    result.gone_backends = {number: one for number, one in live.backends.items() if number not in staying}
    _count_targets(live, result)
    return result


def _run_of(port: PortPlan, old: Run, live: Live, result: Change) -> tuple[Run | None, tuple[int, ...]]:
    """The run of a service port, None where it takes a fresh one, and its backends: those it has, and new ones."""
    slots = live.slots[old.first_slot] if old.slot_count else ()
    have = {live.backends[one].address: one for one in slots if one in live.backends}
    if tuple(have) == port.backends and len(slots) == len(have):
        return old, slots
    members = []
    for address in port.backends:
        backend = have.get(address)
        if backend is None:
            backend, generation = _next_backend(live)
            result.backends[backend] = LiveBackend(address, generation + 1, old.number)
        members.append(backend)
    return (None if members else Run(0, 0, old.number)), tuple(members)


def _count_targets(live: Live, result: Change) -> None:
    """How many backends listen where some come or go; counted anew where all services are looked at."""
    by = Tally(one.address for one in result.backends.values())
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
    raise OutOfRoom("backends", live.slot_limit // 2)


class _SlotRoom:
    """Free runs of slots, first fit: what lies between the runs that services hold now."""

    def __init__(self, live: Live) -> None:
        self._limit = live.slot_limit
        self._gaps: list[list[int]] = []
        end = 0
        runs = sorted({(run.first_slot, run.slot_count) for run in live.services.values() if run.slot_count})
        for first, count in [*runs, (self._limit, 0)]:
            if first > end:
                self._gaps.append([end, first - end])
            end = max(end, first + count)

    def take(self, count: int) -> int:
        """The first slot of a free run of this many. Raises OutOfRoom."""
        for gap in self._gaps:
            if gap[1] >= count:
                first = gap[0]
                gap[0] += count
                gap[1] -= count
                return first
        raise OutOfRoom("slots", self._limit)
