"""Who else used the machine: without it, a burst of foreign load looks like a property of the path."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["QUIET_CORES", "ForeignLoad", "wait_for_quiet"]

KTHREADD = 2
QUIET_CORES = 0.1  # more than this beside a measurement disturbs it visibly
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def _foreign_cpu_s() -> float:
    """CPU seconds of all processes but the benchmark and its children, those that ended included (by their parents).

    Kernel threads are left out: what ksoftirqd does is our packets.
    """
    own = os.getpid()
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid, parent = int(path.parent.name), int(fields[1])
        if own not in (pid, parent) and KTHREADD not in (pid, parent):
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5), fields 14 to 17
    return ticks * TICK_S


@dataclass(frozen=True)
class _Clocks:
    """What has gone by at one moment, in seconds: of the wall's clock, and of all processors together."""

    at: float
    foreign: float  # others on this machine
    steal: float  # the hypervisor gave it to other machines
    idle: float
    processors: int

    @classmethod
    def now(cls) -> _Clocks:
        foreign = _foreign_cpu_s()  # first: to look at all processes takes some milliseconds, which are ours
        lines = Path("/proc/stat").read_text().splitlines()
        ticks = [int(field) for field in lines[0].split()[1:]]  # proc(5): idle, iowait and steal are 4, 5 and 8
        processors = sum(line.startswith("cpu") for line in lines) - 1
        return cls(time.monotonic(), foreign, ticks[7] * TICK_S, (ticks[3] + ticks[4]) * TICK_S, processors)


class ForeignLoad:
    """From its making on: how busy others kept the processors, and we.

    What is ours is all that was not idle, less what others took. It is not the sum of our processes' times, because
    the kernel does most of a packet's work in soft interrupts, which it books to whoever runs at the moment, or to
    nobody where a core was idle. And it is not the sum of /proc/stat's busy times, which are sampled tick by tick, for
    idle time is measured. With others on the machine it is as wrong as what is known of them: their soft interrupts
    count as ours. It includes the tool's own start, the same in all cases.
    """

    def __init__(self) -> None:
        self._since = _Clocks.now()

    def seconds(self) -> tuple[float, float, float]:
        """Since the making, by the wall's clock; and of all processors, for others (the hypervisor included) and us."""
        now, since = _Clocks.now(), self._since
        elapsed = now.at - since.at
        others = now.foreign - since.foreign + now.steal - since.steal
        ours = elapsed * now.processors - (now.idle - since.idle) - others
        return elapsed, max(0.0, others), max(0.0, ours)

    def cores(self) -> float:
        """Processors that others took, on average since the making."""
        elapsed, others, _ours = self.seconds()
        return round(others / elapsed, 3)


def wait_for_quiet(budget_s: float) -> float:
    """Wait until others take no more than QUIET_CORES for a second, `budget_s` seconds at most; return what is left.

    It looks at the load before a measurement and never at a result, so it cannot favour one.
    """
    deadline = time.monotonic() + budget_s
    while budget_s > 0 and time.monotonic() < deadline:
        others = ForeignLoad()
        time.sleep(1)
        if others.cores() <= QUIET_CORES:
            break
    return max(0.0, deadline - time.monotonic())
