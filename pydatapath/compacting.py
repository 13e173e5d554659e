"""Room in the array of slots where free slots are enough and lie apart: runs move, so that a new one fits in; pure.

A run moves by being written elsewhere, after which each address that leads to it is switched; only then are its old
slots free, so a move goes to slots that were free before. Moves that depend on each other's old slots are in different
stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias

from pydatapath.slots import OutOfRoom, Room, Run

__all__ = ["Stage", "stages"]

# Where each run that moves goes
Stage: TypeAlias = dict[Run, Run]
STAGES: Final = 64  # no state is known that needs more than a few
WINDOWS: Final = 64


def stages(runs: Collection[Run], limit: int, needs: Sequence[int]) -> Iterator[Stage]:
    """The moves after which runs of these lengths find room, taken in this order; none where they do already.

    Raises OutOfRoom where that is not to be had.
    """
    here = set(runs)
    for _ in range(STAGES):
        lacking = _lacking(here, limit, needs)
        if lacking is None:
            return
        stage = _closer(here, limit) or _window(here, limit, lacking)
        if not stage:
            break
        yield stage
        here = {stage.get(run, run) for run in here}
    raise OutOfRoom("slots", limit)


def _lacking(runs: Collection[Run], limit: int, needs: Sequence[int]) -> int | None:
    """The first length that finds no room; None: all do. Raises OutOfRoom where moving is of no use."""
    room = Room(runs, limit)
    if sum(needs) > sum(gap.slot_count for gap in room.gaps):
        raise OutOfRoom("slots", limit)
    for need in needs:
        if room.take_before(need, limit) is None:
            return need
    return None


def _closer(runs: Collection[Run], limit: int) -> Stage:
    """The last runs into the first gaps."""
    room = Room(runs, limit)
    stage: Stage = {}
    for run in sorted(runs, reverse=True):
        first = room.take_before(run.slot_count, run.first_slot)
        if first is not None:
            stage[run] = Run(first, run.slot_count)
    return stage


def _window(runs: Collection[Run], limit: int, count: int) -> Stage:
    """The first gap that becomes long enough when the runs behind it find room elsewhere."""
    ordered = sorted(runs)
    for gap in Room(runs, limit).gaps[:WINDOWS]:
        end = gap.first_slot + count
        if end > limit:
            break
        inside = [one for one in ordered if gap.first_slot <= one.first_slot < end]
        room = Room([*ordered, Run(gap.first_slot, count)], limit)
        stage: Stage = {}
        for run in sorted(inside, key=lambda one: -one.slot_count):
            first = room.take_before(run.slot_count, limit)
            if first is None:
                break
            stage[run] = Run(first, run.slot_count)
        else:
            return stage
    return {}
