"""What hangs at tc hooks, read by rtnetlink without pyroute2: its import (150 ms) would cost `status` its speed.

Reading only; pydatapath.kernel.attach changes.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pydatapath.errors import KernelError
from pydatapath.kernel.layout import Hook

__all__ = ["Filter", "filter_name", "filters", "has_clsact"]

# include/uapi/linux/rtnetlink.h, netlink.h, pkt_sched.h, pkt_cls.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 44, 46
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_NAME, TCA_BPF_TAG, TCA_BPF_ID = 7, 10, 11
PARENTS: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")


class Filter(NamedTuple):
    """One tc filter. `name`, `id` and `tag` are those of its BPF program ("" and 0 for other kinds)."""

    interface: int
    direction: str
    priority: int
    handle: int
    kind: str
    name: str
    id: int
    tag: str


def filter_name(instance: str, hook: Hook) -> str:
    """What our filter is called, in `tc filter show` and for telling instances apart."""
    return f"pydatapath/{instance}/{hook.program}"


def filters(interface: int) -> list[Filter]:
    """All filters at both clsact hooks of an interface (its index) of the current namespace."""
    found = []
    for direction, parent in PARENTS.items():
        for kind, body in _dump(RTM_GETTFILTER, _TCMSG.pack(0, interface, 0, parent, 0)):
            if kind == RTM_NEWTFILTER:
                one = _filter(body, direction)
                # The kernel also lists a head without a handle for each priority
                if one.handle:
                    found.append(one)
    return found


def has_clsact(interface: int) -> bool:
    """Whether the interface has a clsact qdisc, ours or another's."""
    for kind, body in _dump(RTM_GETQDISC, _TCMSG.pack(0, interface, 0, 0, 0)):
        if kind == RTM_NEWQDISC and _TCMSG.unpack_from(body)[1] == interface:
            attributes = dict(_attributes(body[_TCMSG.size :]))
            if attributes.get(TCA_KIND, b"").rstrip(b"\0") == b"clsact":
                return True
    return False


def _filter(body: bytes, direction: str) -> Filter:
    _, interface, handle, _, info = _TCMSG.unpack_from(body)
    attributes = dict(_attributes(body[_TCMSG.size :]))
    options = dict(_attributes(attributes.get(TCA_OPTIONS, b"")))
    kind = attributes.get(TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    if kind != "bpf":
        return Filter(interface, direction, info >> 16, handle, kind, "", 0, "")
    return Filter(
        interface,
        direction,
        info >> 16,
        handle,
        kind,
        options.get(TCA_BPF_NAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        int.from_bytes(options.get(TCA_BPF_ID, b""), "little"),
        options.get(TCA_BPF_TAG, b"").hex(),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _dump(request: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one dump request."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        header = _HEADER.pack(_HEADER.size + len(body), request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        channel.send(header + body)
        while True:
            data = channel.recv(1 << 17)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    raise KernelError(f"reading tc filters failed: {os.strerror(code)}", errno=code)
                yield kind, message
