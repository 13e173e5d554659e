"""The array of slots: which backends stand in a set's run, how often and in what order; and where a run finds room.

The kernel takes a new flow to the slot that its tuple's hash points at, so a backend's share of the flows is its share
of the slots: weights and algorithms are nothing else. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from operator import itemgetter
from typing import NamedTuple

from pydatapath.maglev import maglev_table, table_size
from pydatapath.model import Algorithm
from pydatapath.serving import Address

__all__ = ["OutOfRoom", "Room", "Run", "slots_of"]


class Run(NamedTuple):
    """Slots one after the other, each the number of a backend."""

    first_slot: int = 0
    slot_count: int = 0


class OutOfRoom(Exception):
    """A map has no room left: its name and its size."""

    def __init__(self, table: str, size: int) -> None:
        super().__init__(table, size)
        self.table, self.size = table, size


def slots_of(weights: Mapping[Address, int], algorithm: Algorithm, *, by_pod: bool = False) -> tuple[Address, ...]:
    """The backend of each slot of a set's run; the weights are above 0 (S26, C12).

    `by_pod`: the same pods have the same slots for each port, since in a long run the pod that a client keeps is looked
    for where it was for another port (C11).
    """
    if algorithm == "maglev":
        return maglev_table(weights, table_size(len(weights)), by_pod=by_pod)
    return _repeated(weights)


def _repeated(weights: Mapping[Address, int]) -> tuple[Address, ...]:
    """Each backend as often as its weight says, in the fewest slots.

    All of them stand once before any stands again: a backend that a client has kept is searched for in the first slots.
    """
    divisor = gcd(*weights.values())
    rounds = max(weights.values(), default=0) // (divisor or 1)
    return tuple(at for place in range(rounds) for at, weight in weights.items() if place * divisor < weight)


class Room:
    """Free runs of slots, first fit: what lies between the runs that services hold now."""

    def __init__(self, runs: Iterable[tuple[int, int]], limit: int) -> None:
        self._limit = limit
        self._gaps: list[list[int]] = []
        self._passed: dict[int, int] = {}  # by length: how many of the first gaps are too short
        end = 0
        for first, count in [*sorted(runs, key=itemgetter(0)), (limit, 0)]:
            if first > end:
                self._gaps.append([end, first - end])
            if first + count > end:  # noqa: PLR1730 - max() takes twice as long, for each of ten thousand runs
                end = first + count

    def fits(self, needs: Iterable[int]) -> bool:
        """Whether runs of these lengths can be taken, in this order; none is."""
        gaps = [gap.copy() for gap in self._gaps]
        try:
            return all(self.take_before(need, self._limit) is not None for need in needs)
        finally:
            self._gaps = gaps
            self._passed.clear()

    def take(self, count: int) -> int:
        """The first slot of a free run of this many. Raises OutOfRoom."""
        first = self.take_before(count, self._limit)
        if first is None:
            raise OutOfRoom("slots", self._limit)
        return first

    def take_before(self, count: int, end: int) -> int | None:
        """The first slot of a free run of this many, where one begins before `end`."""
        gap = self._fit(count)
        if gap is None or gap[0] >= end:
            return None
        first = gap[0]
        gap[0] += count
        gap[1] -= count
        return first

    @property
    def gaps(self) -> list[Run]:
        """The free runs, each as long as it is."""
        return [Run(first, count) for first, count in self._gaps if count]

    def _fit(self, count: int) -> list[int] | None:
        """The first gap of so many slots or more. Gaps only get shorter: what was too short for a length stays so."""
        place = self._passed.get(count, 0)
        while place < len(self._gaps) and self._gaps[place][1] < count:
            place += 1
        self._passed[count] = place
        return self._gaps[place] if place < len(self._gaps) else None
