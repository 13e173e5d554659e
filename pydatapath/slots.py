"""The array of slots: which backends stand in a set's run, how often and in what order; and where a run finds room.

The kernel takes a new flow to the slot that its tuple's hash points at, so a backend's share of the flows is its share
of the slots: weights and algorithms are nothing else. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd

from pydatapath.maglev import maglev_table, table_size
from pydatapath.model import Algorithm
from pydatapath.serving import Address

__all__ = ["OutOfRoom", "Room", "Run", "slots_of"]


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """Slots one after the other, each the number of a backend."""

    first_slot: int = 0
    slot_count: int = 0


class OutOfRoom(Exception):
    """A map has no room left: its name and its size."""

    def __init__(self, table: str, size: int) -> None:
        super().__init__(table, size)
        self.table, self.size = table, size


def slots_of(weights: Mapping[Address, int], algorithm: Algorithm) -> tuple[Address, ...]:
    """The backend of each slot of a set's run; the weights are above 0 (S26, C12)."""
    if algorithm == "maglev":
        return maglev_table(weights, table_size(len(weights)))
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

    def __init__(self, runs: Iterable[Run], limit: int) -> None:
        self._limit = limit
        self._gaps: list[list[int]] = []
        end = 0
        for run in [*sorted(runs), Run(limit, 0)]:
            if run.first_slot > end:
                self._gaps.append([end, run.first_slot - end])
            end = max(end, run.first_slot + run.slot_count)

    def take(self, count: int) -> int:
        """The first slot of a free run of this many. Raises OutOfRoom."""
        for gap in self._gaps:
            if gap[1] >= count:
                first = gap[0]
                gap[0] += count
                gap[1] -= count
                return first
        raise OutOfRoom("slots", self._limit)
