"""What a command may do is what its work needs: of root's capabilities(7) it keeps these, its children get no others.

A fault in a parser of ours then has no say over other processes' memory, kernel modules, clocks or raw disks. Only who
has them to give away drops any; a program that uses the package keeps what it has.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from pathlib import Path
from typing import Final

__all__ = ["NEEDED", "keep_needed", "what_is_missing"]

# Name to number (include/uapi/linux/capability.h), and what it is for
NEEDED: Final = {
    "CAP_DAC_OVERRIDE": 1,  # records and pins where root's own rights do not count, such as on a volume of a container
    "CAP_DAC_READ_SEARCH": 2,  # manifests in a user's home
    "CAP_NET_ADMIN": 12,  # tc, routes, sysctls, and programs of network
    "CAP_NET_RAW": 13,  # the socket by which we wait until no program runs that had begun before (kernel/maps.py)
    "CAP_SYS_PTRACE": 19,  # `--netns PID` of a container that runs as somebody else
    "CAP_SYS_ADMIN": 21,  # entering a namespace, mounting bpffs, and bpf(2) before Linux 5.8
    "CAP_SYS_RESOURCE": 24,  # memory for maps before Linux 5.11, and more file descriptors
    "CAP_PERFMON": 38,  # programs that compare pointers
    "CAP_BPF": 39,  # maps and programs
}
# What the kernel says no for; the rest is about files, limits and others' processes
OF_THE_KERNEL: Final = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF")
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 47, 4
ALL_USERS: Final = ["0", "0", str(2**32 - 1)]  # of the first user namespace (user_namespaces(7))
VERSION_3: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_SETS: Final = struct.Struct("=6I")  # effective, permitted, inheritable: bits 0 to 31, then those from 32 on


def keep_needed() -> None:
    """Drops all others, for good, in this process and for what it runs. Who may not drop any has none to drop."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):  # the kernel says -1 of those that it does not have
        if number not in NEEDED.values() and libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", VERSION_3, 0))
    sets = ctypes.create_string_buffer(_SETS.size)
    if libc.capget(header, sets) != 0:
        return
    kept = sum(1 << number for number in NEEDED.values())
    found = _SETS.unpack(sets.raw)
    wanted = [
        bits & (kept >> 32 * place & 0xFFFF_FFFF) for place in (0, 1) for bits in found[3 * place : 3 * place + 2]
    ]
    libc.capset(header, _SETS.pack(wanted[0], wanted[1], 0, wanted[2], wanted[3], 0))


def what_is_missing() -> str:
    """A hint for who was told that an operation is not permitted; "" where it is not for want of rights."""
    if os.geteuid() != 0:
        return "run it with sudo"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    have = int(found[1], 16) if found else ~0
    missing = [name for name in OF_THE_KERNEL if not have >> NEEDED[name] & 1]
    if missing:
        return f"root lacks {', '.join(missing)} here: give that to the container or service"
    if Path("/proc/self/uid_map").read_text().split() != ALL_USERS:
        return "this is the root of a user namespace, who may not: run it as the host's"
    return ""
