"""The flow table as people read it: both directions of a flow as one line, as `conntrack -L` shows it."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from ipaddress import IPv4Address

from pydatapath.kernel import clock
from pydatapath.kernel.layout import FLOW, PROTOCOL_NAMES, TUPLE, FlowFlag, FlowState, timeout
from pydatapath.kernel.maps import Maps
from pydatapath.views import Flow, Tuple

__all__ = ["flows_by_backend", "read_flows"]

TABLES = ("flows", "half_open")
Raw = tuple[tuple[int, ...], bytes]


def read_flows(maps: Maps) -> Iterator[tuple[Flow, int, int]]:
    """Every live flow, with the number and generation of its backend (0, 0: none), in no order."""
    now = clock.jiffies()
    for table in TABLES:
        entries = dict(maps[table].items())
        for key, value in entries.items():
            to, last_seen, packets, size, backend, generation, state, flags = FLOW.unpack(value)
            if flags & FlowFlag.REPLY:
                continue
            answer = entries.get(_reverse(to))
            reply = FLOW.unpack(answer) if answer else (b"", 0, 0, 0)
            original = unpack_tuple(key)
            protocol = PROTOCOL_NAMES[TUPLE.unpack(key)[4]]
            idle = clock.age(max(last_seen, reply[1]), now)
            left = timeout(protocol, FlowState(state)) - idle
            if left <= 0:
                continue
            flow = Flow(
                protocol=protocol,
                original=original,
                reply=unpack_tuple(_reverse(to)),
                state=FlowState(state).name.lower(),
                packets=(packets, reply[2]),
                bytes=(size, reply[3]),
                idle=round(idle, 1),
                expires=round(left, 1),
            )
            yield flow, backend, generation


def flows_by_backend(maps: Maps) -> Tally[tuple[int, int]]:
    """How many flows each backend (number, generation) has."""
    tally: Tally[tuple[int, int]] = Tally()
    for table in TABLES:
        for value in _each(maps[table].values(), FLOW.size):
            _, _, _, _, backend, generation, _, flags = FLOW.unpack(value)
            if backend and not flags & FlowFlag.REPLY:
                tally[backend, generation] += 1
    return tally


def _each(values: bytes, size: int) -> Iterator[bytes]:
    return (values[place : place + size] for place in range(0, len(values), size))


def unpack_tuple(raw: bytes) -> Tuple:
    """The readable form of a struct tuple."""
    source, destination, source_port, destination_port, _ = TUPLE.unpack(raw)
    return Tuple(
        str(IPv4Address(source)),
        int.from_bytes(source_port, "big"),
        str(IPv4Address(destination)),
        int.from_bytes(destination_port, "big"),
    )


def _reverse(raw: bytes) -> bytes:
    """The tuple of the answer: addresses and ports exchanged."""
    return raw[4:8] + raw[0:4] + raw[10:12] + raw[8:10] + raw[12:]
