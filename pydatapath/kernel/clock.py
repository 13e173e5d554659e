"""The kernel's jiffies as user space can know them: the clock that flows are stamped with."""

from __future__ import annotations

import os
import struct
import time
from typing import Final

from pydatapath.errors import KernelError
from pydatapath.kernel import libbpf

__all__ = ["HZ", "age", "jiffies"]

CLOCK_MONOTONIC_COARSE: Final = 6
# Its resolution is one tick (TICK_NSEC, include/linux/jiffies.h): the only place that tells HZ
HZ: Final = round(1 / time.clock_getres(CLOCK_MONOTONIC_COARSE))

_SCHED_CLS: Final = 3
_FRAME: Final = bytes(64)
# call bpf_jiffies64 (118); exit
_INSTRUCTIONS: Final = struct.pack("=BBhi", 0x85, 0, 0, 118) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def jiffies() -> int:
    """The low 32 bits of jiffies, asked by a program of two instructions. Raises KernelError."""
    descriptor = libbpf.load_program(_SCHED_CLS, _INSTRUCTIONS, "jiffies")
    if descriptor < 0:
        raise KernelError(f"cannot read the kernel's clock: {os.strerror(-descriptor)}", errno=-descriptor)
    try:
        return libbpf.run(descriptor, _FRAME).verdict
    finally:
        os.close(descriptor)


def age(then: int, now: int) -> float:
    """Seconds between a stamp (64 bits) and `now` (32 bits); never negative, right for spans under 2^31 ticks."""
    ticks = (now - then) & 0xFFFFFFFF
    return 0.0 if ticks >= 1 << 31 else ticks / HZ
