"""What time it is for the programs: jiffies, which nothing tells but an entry that they stamp."""

from __future__ import annotations

import struct
import time
from functools import lru_cache

from packetbed import Bed
from places import BACKEND, CLIENT, MAC
from wire import frame

from pydatapath.kernel import clock, packing, tables
from pydatapath.kernel.layout import Hook
from pydatapath.reference import Packet

__all__ = ["STILL", "Paused", "jiffies_ahead", "ticks"]

STILL = 0.1  # seconds that the machine may stand still: less than what histories.ODD leaves


class Paused(Exception):
    """The machine stood still, so that entries are older than the history says."""


def ticks() -> int:
    """The coarse clock in ticks: as fast as jiffies, but from another beginning."""
    return time.clock_gettime_ns(clock.CLOCK_MONOTONIC_COARSE) * clock.HZ // 1_000_000_000


def jiffies_ahead(bed: Bed) -> int:
    """How far jiffies are ahead of the coarse clock, which NTP may slow down: as it was some seconds ago at most."""
    return _jiffies_ahead(bed, ticks() // (5 * clock.HZ))


@lru_cache(maxsize=1)
def _jiffies_ahead(bed: Bed, _since: int) -> int:
    """By the stamp of a flow that begins now; it is forgotten again."""
    began, target = ticks(), packing.pack_address(tables.Address(BACKEND, 9, "TCP"))
    bed.maps["targets"].update(target, struct.pack("=I", 1))
    bed.run(Hook.FROM_POD, frame(Packet(CLIENT, 9, BACKEND, 9, flags="S"), MAC[CLIENT]))
    ahead = next(entry.last_seen for entry in bed.entries("half_open").values()) - ticks()
    bed.forget_flows()
    bed.maps["targets"].delete(target)
    if ticks() - began > clock.HZ * STILL / 2:
        raise Paused
    return ahead
