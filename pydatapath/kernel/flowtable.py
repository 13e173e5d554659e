"""The flow table as people read it: both directions of a flow as one line, as `conntrack -L` shows it."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import Final

from pydatapath.kernel import clock
from pydatapath.kernel.layout import (
    LAYOUTS,
    PROTOCOL_NAMES,
    Family,
    FlowFlag,
    FlowState,
    flow_state,
    timeout,
)
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.tables import loaded_families, unpack_ip
from pydatapath.views import Flow, Tuple

__all__ = ["count_flows", "flows_by_backend", "read_flows"]

TABLES = ("flows", "half_open")
# A struct flow: to, last_seen, packets, bytes, backend, generation, state, flags
Entry = tuple[bytes, int, int, int, int, int, int, int]
_TUPLES: Final = {family: layout.tuple.struct for family, layout in LAYOUTS.items()}
_FLOWS: Final = {family: layout.flow.struct for family, layout in LAYOUTS.items()}


def read_flows(maps: Maps) -> Iterator[tuple[Flow, int, int]]:
    """Every live flow, with the number and generation of its backend (0, 0: none), in no order but by family."""
    for key, original, reply, state, idle, left in _live(maps):
        to, _, packets, size, backend, generation, _, _ = original
        flow = Flow(
            protocol=_protocol(key),
            original=unpack_tuple(key),
            reply=unpack_tuple(_reverse(to)),
            state=state.name.lower(),
            packets=(packets, reply[2] if reply else 0),
            bytes=(size, reply[3] if reply else 0),
            idle=round(idle, 1),
            expires=round(left, 1),
            family=int(_family(key)),
        )
        yield flow, backend, generation


def flows_by_backend(maps: Maps) -> Tally[tuple[int, int]]:
    """How many live flows each backend (number, generation) has."""
    return Tally((original[4], original[5]) for _, original, *_ in _live(maps) if original[4])


def count_flows(maps: Maps) -> int:
    """How many live flows there are."""
    return sum(1 for _ in _live(maps))


def _live(maps: Maps) -> Iterator[tuple[bytes, Entry, Entry | None, FlowState, float, float]]:
    """Key, both directions' entries (None: lost), state, idle and remaining seconds of each flow that is not over."""
    now = clock.jiffies()
    for family in loaded_families(maps):
        yield from _live_of(maps, family, now)


def _live_of(
    maps: Maps, family: Family, now: int
) -> Iterator[tuple[bytes, Entry, Entry | None, FlowState, float, float]]:
    """Those of one family."""
    seen: set[bytes] = set()
    unpack = _FLOWS[family].unpack
    for table in TABLES:
        entries = {key: unpack(value) for key, value in maps[table + family.suffix].items()}
        if table == "half_open":
            entries |= _clients_of(entries)
        for key, original in entries.items():
            to, last_seen, *_, stored, flags = original
            if flags & FlowFlag.REPLY or key in seen:
                continue
            seen.add(key)
            reply = entries.get(_reverse(to))
            state = flow_state(FlowState(stored), FlowFlag(flags), FlowFlag(reply[7] if reply else flags))
            idle = clock.age(max(last_seen, reply[1]) if reply else last_seen, now)
            left = timeout(_protocol(key), state) - idle
            if left > 0:
                yield key, original, None if table == "half_open" else reply, state, idle, left


def _clients_of(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """The client's direction of half-open TCP flows, which are their reply's claim alone, with the client's counts."""
    return {
        _reverse(claim[0]): (_reverse(key), *claim[1:7], claim[7] & ~FlowFlag.REPLY)
        for key, claim in entries.items()
        if _protocol(key) == "TCP" and claim[7] & FlowFlag.REPLY
    }


def _family(raw: bytes) -> Family:
    """Of a struct tuple: the two differ in size."""
    return Family.IPV4 if len(raw) == _TUPLES[Family.IPV4].size else Family.IPV6


def _protocol(raw: bytes) -> str:
    """Of a struct tuple, which ends in the protocol and three zeros."""
    return PROTOCOL_NAMES[raw[-4]]


def unpack_tuple(raw: bytes) -> Tuple:
    """The readable form of a struct tuple."""
    source, destination, source_port, destination_port, _ = _TUPLES[_family(raw)].unpack(raw)
    return Tuple(
        unpack_ip(source),
        int.from_bytes(source_port, "big"),
        unpack_ip(destination),
        int.from_bytes(destination_port, "big"),
    )


def _reverse(raw: bytes) -> bytes:
    """The tuple of the answer: addresses and ports exchanged."""
    ports = len(raw) - 8
    middle = ports // 2
    return raw[middle:ports] + raw[:middle] + raw[ports + 2 : ports + 4] + raw[ports : ports + 2] + raw[-4:]
