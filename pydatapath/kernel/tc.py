"""What hangs at tc hooks. Reading only; pydatapath.kernel.attach changes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from pydatapath.kernel.layout import Hook
from pydatapath.kernel.rtnetlink import attributes, dump

__all__ = [
    "HANDLE",
    "PRIORITY",
    "Filter",
    "filter_name",
    "filters",
    "has_clsact",
    "is_at_its_place",
    "own_filters",
    "queues",
]

# include/uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h
RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 36, 38, 44, 45, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_NAME, TCA_BPF_TAG, TCA_BPF_ID = 7, 10, 11
# Our place among the filters of a hook
PRIORITY: Final = 7
HANDLE: Final = 1
ETH_P_ALL: Final = 3
ROOT: Final = 0xFFFFFFFF  # TC_H_ROOT
PARENTS: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_TCMSG = struct.Struct("=BxxxiIII")


class Filter(NamedTuple):
    """One tc filter. `name`, `id` and `tag` are those of its BPF program ("" and 0 for other kinds). `protocol`: of
    Ethernet's, in network byte order.
    """

    interface: int
    direction: str
    priority: int
    handle: int
    kind: str
    name: str
    id: int
    tag: str
    protocol: int = socket.htons(ETH_P_ALL)

    @property
    def place(self) -> tuple[int, str, int, int]:
        """Where only one filter can hang: interface, direction, priority, handle."""
        return self[:4]


def filter_name(instance: str, hook: Hook) -> str:
    """What our filter is called, in `tc filter show` and for telling instances apart."""
    return f"pydatapath/{instance}/{hook.program}"


def filters(interface: int) -> list[Filter]:
    """All filters at both clsact hooks of an interface (its index) of the current namespace."""
    found = []
    for direction, parent in PARENTS.items():
        for kind, body in dump(RTM_GETTFILTER, _TCMSG.pack(0, interface, 0, parent, 0)):
            if kind == RTM_NEWTFILTER:
                one = _filter(body, direction)
                # The kernel also lists a head without a handle for each priority
                if one.handle:
                    found.append(one)
    return found


def own_filters(interface: int, instance: str, programs: Collection[int]) -> list[Filter]:
    """The filters at an interface (its index) that are an instance's by their name, or run one of these programs (by
    their ids), wherever they hang.
    """
    prefix = f"pydatapath/{instance}/"
    return [one for one in filters(interface) if one.name.startswith(prefix) or one.id in programs]


def is_at_its_place(one: Filter, instance: str, hook: Hook) -> bool:
    """Whether a filter is that of a hook, where `load` puts it."""
    wanted = (hook.direction, PRIORITY, HANDLE, filter_name(instance, hook))
    return (one.direction, one.priority, one.handle, one.name) == wanted


def has_clsact(interface: int) -> bool:
    """Whether the interface has a clsact qdisc, ours or another's."""
    for kind, body in dump(RTM_GETQDISC, _TCMSG.pack(0, interface, 0, 0, 0)):
        if kind == RTM_NEWQDISC and _TCMSG.unpack_from(body)[1] == interface:
            given = dict(attributes(body[_TCMSG.size :]))
            if given.get(TCA_KIND, b"").rstrip(b"\0") == b"clsact":
                return True
    return False


def queues() -> Iterator[tuple[int, str]]:
    """The kind of each interface's qdisc on its way out, by the interface's index."""
    for kind, body in dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        if kind == RTM_NEWQDISC:
            _, interface, _, parent, _ = _TCMSG.unpack_from(body)
            if parent == ROOT:
                given = dict(attributes(body[_TCMSG.size :]))
                yield interface, given.get(TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")


def _filter(body: bytes, direction: str) -> Filter:
    _, interface, handle, _, info = _TCMSG.unpack_from(body)
    given = dict(attributes(body[_TCMSG.size :]))
    options = dict(attributes(given.get(TCA_OPTIONS, b"")))
    kind = given.get(TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    if kind != "bpf":
        return Filter(interface, direction, info >> 16, handle, kind, "", 0, "", info & 0xFFFF)
    return Filter(
        interface,
        direction,
        info >> 16,
        handle,
        kind,
        options.get(TCA_BPF_NAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        int.from_bytes(options.get(TCA_BPF_ID, b""), "little"),
        options.get(TCA_BPF_TAG, b"").hex(),
        info & 0xFFFF,
    )
