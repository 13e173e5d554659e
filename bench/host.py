"""Who else used the machine: without it, a burst of foreign load looks like a property of the path."""

from __future__ import annotations

import os
import time
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


def _steal_s() -> float:
    """CPU seconds that the hypervisor gave to others."""
    return int(Path("/proc/stat").read_text().split("\n")[0].split()[8]) * TICK_S


class ForeignLoad:
    """From its making on: how many cores others took."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._cpu_s = _foreign_cpu_s() + _steal_s()

    def cores(self) -> float:
        """Cores that other processes and the hypervisor took, on average since the making."""
        elapsed = time.monotonic() - self._since
        return max(0.0, round((_foreign_cpu_s() + _steal_s() - self._cpu_s) / elapsed, 3))


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
