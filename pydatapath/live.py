"""What the maps hold of services, and what is written to change it: plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

from pydatapath.guarding import GuardChange, Guards
from pydatapath.kernel.layout import ServiceFlag
from pydatapath.membership import MemberChange
from pydatapath.serving import Address
from pydatapath.slots import Run

__all__ = ["Called", "Change", "Live", "LiveBackend", "Move"]

NO_FLAG: Final = ServiceFlag(0)


class Called(NamedTuple):
    """A service port at one address in the map: its runs for callers inside the cluster and outside, the number that
    names it, seconds of session affinity, whose calls are dropped, and the number by which its Service's ports share
    their clients, which is that of the oldest (C11); 0 where they do not.
    """

    inside: Run
    outside: Run
    number: int
    affinity: int = 0
    flags: ServiceFlag = NO_FLAG
    shared: int = 0

    @property
    def runs(self) -> set[Run]:
        """Its runs that have slots."""
        return {run for run in (self.inside, self.outside) if run.slot_count}


class LiveBackend(NamedTuple):
    """A backend in the map, at the place that is its number; one that is draining takes no new flows."""

    address: Address
    generation: int
    service: int
    draining: bool = False


@dataclass(slots=True)
class Live:
    """What the maps hold of the services that change, and where there is room.

    `services`: the addresses of the service ports that change, and what is there; `slots`: the backend numbers of their
    runs, by first slot; `backends`: the active backends in those, and those that drain, by number; `free_backends`:
    numbers that may be given, each with its generation, never-used ones first; `targets`: how many such backends listen
    at an address. What does not change is read where it is asked for: what is in a run (`other_slots`), what is at
    which address (`other_services`), all runs, whether a service that does not change is called at an address. The
    limits are the entries of the maps. `whole`: all services change, and `backends` are all that are active or drain,
    also those that a change which was killed gave to no run.
    """

    services: dict[Address, Called] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    backends: dict[int, LiveBackend] = field(default_factory=dict)
    free_backends: Iterator[tuple[int, int]] = field(default_factory=lambda: iter(()))
    targets: Mapping[Address, int] = field(default_factory=dict)
    guards: Guards = field(default_factory=Guards)
    other_slots: Callable[[Run], tuple[int, ...]] = lambda _: ()
    other_services: Callable[[], Mapping[Address, Called]] = dict
    other_runs: Callable[[], Iterable[tuple[int, int]]] = tuple
    is_called: Callable[[str], bool] = lambda _: False
    slot_limit: int = 0
    backend_limit: int = 0
    whole: bool = False

    @property
    def runs(self) -> set[Run]:
        """Those of `services` that have slots."""
        return {run for called in self.services.values() for run in called.runs}

    @property
    def taken(self) -> Iterator[tuple[int, int]]:
        """All that hold slots, each its first slot and their count; some twice."""
        return chain(self.runs, self.other_runs())

    def read_rest(self) -> None:
        """From now on `services` are those that do not change, too."""
        self.services |= {at: one for at, one in self.other_services().items() if at not in self.services}
        self.other_runs, self.other_services = tuple, dict

    def members(self, run: Run) -> tuple[int, ...]:
        """The backend numbers in a run, also in one of a service that does not change."""
        return self.slots.get(run.first_slot) or self.other_slots(run)

    def move(self, stage: Mapping[Run, Run], move: Move) -> None:
        """What the maps hold after a move."""
        self.services |= move.services
        moved = {
            to.first_slot: self.slots.pop(run.first_slot) for run, to in stage.items() if run.first_slot in self.slots
        }
        self.slots |= moved
        others = {to: move.slots[to.first_slot] for to in stage.values() if to.first_slot not in moved}
        read = self.other_slots
        self.other_slots = lambda run: others.get(run) or read(run)

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
class Move:
    """Runs that go elsewhere, with the addresses that lead to them: written, then switched. Their old slots are free
    when every packet that was on its way has passed.
    """

    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    services: dict[Address, Called] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """Writes in their order: runs that make room, one stage after the other; who is in the cluster; backends that are
    new or drain no longer, targets, runs, guards; then the services switch; then backends drain, and what is over goes.

    A packet between any two of these steps sees the old state of a service or the new one, never half of each.
    """

    moves: list[Move] = field(default_factory=list)
    members: MemberChange = field(default_factory=MemberChange)
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
