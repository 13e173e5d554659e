"""The flow table as people read it: both directions of a flow as one line, as `conntrack -L` shows it; and its end."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

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
from pydatapath.kernel.maps import Map, Maps, wait_for_programs
from pydatapath.kernel.packing import unpack_ip
from pydatapath.kernel.tables import loaded_families
from pydatapath.views import Flow, Tuple

__all__ = [
    "BackendKey",
    "Ends",
    "TrackedFlow",
    "all_ends",
    "backends_in_use",
    "count_flows",
    "end_flows",
    "end_flows_of",
    "flows_by_backend",
    "read_flows",
]

# In the order in which a flow moves
TABLES = ("half_open", "flows")
ROUNDS: Final = 5
# A plain number: a flag's own operators are slow, and each entry is asked
REPLY: Final = int(FlowFlag.REPLY)
PAIRED: Final = int(FlowFlag.PAIRED)
ANSWERED: Final = int(FlowState.ANSWERED)
RETIRED: Final = 0  # a stamp, as in bpf/flow.h
# A struct flow: to, last_seen, packets, bytes, backend, generation, state, flags, awaited, granted, answer
Entry = tuple[bytes, int, int, int, int, int, int, int, bytes, bytes, int]
# The keys of both directions of a flow
Ends = tuple[bytes, bytes]
# A backend's number and generation; 0, 0: none
BackendKey = tuple[int, int]
_TUPLES: Final = {family: layout.tuple.struct for family, layout in LAYOUTS.items()}
_FLOWS: Final = {family: layout.flow.struct for family, layout in LAYOUTS.items()}
_NAMES: Final = {**PROTOCOL_NAMES, 1: "ICMP", 58: "ICMPv6"}


class TrackedFlow(NamedTuple):
    """A flow, the backend that it goes to, and where it stands in the maps."""

    flow: Flow
    backend: BackendKey
    ends: Ends


class _Live(NamedTuple):
    """A flow that is not over: its key, the entries of its client's direction and of the reply (None: not
    answered yet), its state, and the seconds that it has been idle and has left.
    """

    key: bytes
    original: Entry
    reply: Entry | None
    state: FlowState
    idle: float
    left: float


def read_flows(maps: Maps, timeouts: Mapping[str, int], having: int = 0) -> Iterator[TrackedFlow]:
    """Every live flow, in no order but by family; or only those whose original direction has these FlowFlags.

    `timeouts`: as layout.TIMEOUTS, those of the loaded programs.
    """
    for key, original, reply, state, idle, left in _live(maps, timeouts):
        to, _, packets, size, backend, generation, _, flags, *_ = original
        if flags & having != having:
            continue
        answered = _reverse(to)
        flow = Flow(
            protocol=_protocol(key),
            original=unpack_tuple(key),
            reply=unpack_tuple(answered),
            state=state.name.lower(),
            packets=(packets, reply[2] if reply else 0),
            bytes=(size, reply[3] if reply else 0),
            idle=round(idle, 1),
            expires=round(left, 1),
            family=int(_family(key)),
        )
        yield TrackedFlow(flow, (backend, generation), (key, answered))


def flows_by_backend(maps: Maps, timeouts: Mapping[str, int]) -> Tally[BackendKey]:
    """How many live flows each backend has."""
    return Tally((one.original[4], one.original[5]) for one in _live(maps, timeouts) if one.original[4])


def backends_in_use(maps: Maps) -> set[BackendKey]:
    """Every backend that an entry names, live or not."""
    return {(entry[4], entry[5]) for _, _, entry in _all_entries(maps) if entry[4]}


def count_flows(maps: Maps, timeouts: Mapping[str, int]) -> int:
    """How many live flows there are."""
    return sum(1 for _ in _live(maps, timeouts))


def all_ends(maps: Maps) -> set[Ends]:
    """Both keys of every flow, live or not, and of what is left of one."""
    return _ends_of(maps, lambda _: True)


def end_flows(maps: Maps, flows: Collection[Ends]) -> None:
    """Deletes both directions of these flows, wherever they stand.

    A program that had found one of them before may still make the other anew: what is alone afterwards goes, too.
    """
    if not flows:
        return
    for ends in flows:
        for table in _tables_of(maps, ends):
            table.delete_many(ends)
    wait_for_programs()
    for ends in flows:
        for table in _tables_of(maps, ends):
            table.delete_many([key for key in ends if _is_half(table, key)])


def end_flows_of(maps: Maps, timeouts: Mapping[str, int], backends: Collection[BackendKey]) -> int:
    """Ends all flows of backends that take no new ones. Returns how many live ones there were."""
    ended = sum(count for backend, count in flows_by_backend(maps, timeouts).items() if backend in backends)
    for _ in range(ROUNDS):
        # Until there are none: a program that had chosen before may enter its flow now
        # What is retired has no other half that is its own
        found = _ends_of(maps, lambda entry: entry[1] != RETIRED and (entry[4], entry[5]) in backends)
        if not found:
            break
        end_flows(maps, found)
    return ended


def _ends_of(maps: Maps, wanted: Callable[[Entry], bool]) -> set[Ends]:
    return {_sorted(key, _reverse(entry[0])) for _, key, entry in _all_entries(maps) if wanted(entry)}


def _standing(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """Without those that are retired: a stamp of 0, which is no time (see flow_retire in bpf/flow.h)."""
    return {key: entry for key, entry in entries.items() if entry[1] != RETIRED}


def _sorted(one: bytes, other: bytes) -> Ends:
    return (one, other) if one <= other else (other, one)


def _tables_of(maps: Maps, ends: Ends) -> list[Map]:
    """Where a flow may stand."""
    suffix = _family(ends[0]).suffix
    return [maps[table + suffix] for table in TABLES]


def _is_half(table: Map, key: bytes) -> bool:
    """Whether an entry is there without its other direction, as only TCP's claims of half-open flows are."""
    value = table.lookup(key)
    if value is None:
        return False
    unpack = _FLOWS[_family(key)].unpack
    entry = unpack(value)
    to, flags = entry[0], entry[7]
    if table.contract.in_c == "half_open" and _protocol(key) == "TCP" and flags & REPLY and not flags & PAIRED:
        return False
    other = table.lookup(_reverse(to))
    return other is None or unpack(other)[0] != _reverse(key)


def _all_entries(maps: Maps) -> Iterator[tuple[Family, bytes, Entry]]:
    for family in loaded_families(maps):
        for table in TABLES:
            for key, entry in _entries(maps, table, family).items():
                yield family, key, entry


def _entries(maps: Maps, table: str, family: Family) -> dict[bytes, Entry]:
    unpack = _FLOWS[family].unpack
    return whole({key: unpack(value) for key, value in maps[table + family.suffix].items()})


def whole(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """A flow table in which each flow that was answered is two entries. In half_open a claim alone may say it (see
    bpf/opening.h): it counts its client's packets, and has the bytes of the one SYN-ACK beside.
    """
    both = dict(entries)
    for key, claim in entries.items():
        to, seen, packets, size, backend, generation, state, flags, awaited, granted, answer = claim
        if state == ANSWERED and not flags & PAIRED:
            flags |= PAIRED
            kept = backend, generation, state
            client = _reverse(key), seen, packets, size, *kept, flags & ~REPLY, awaited, granted, 0
            both.setdefault(_reverse(to), client)
            both[key] = to, seen, 1, answer, *kept, flags, awaited, granted, 0
    return both


def _live(maps: Maps, timeouts: Mapping[str, int]) -> Iterator[_Live]:
    """Every flow that is not over."""
    now = clock.jiffies()
    for family in loaded_families(maps):
        half_open, flows = (_standing(_entries(maps, table, family)) for table in TABLES)
        for key, original, reply, answered in _paired(half_open, flows):
            flags = FlowFlag(original[7])
            state = flow_state(FlowState(original[6]), flags, FlowFlag(reply[7]) if reply else flags)
            idle = clock.age(max(original[1], reply[1]) if reply else original[1], now)
            left = timeout(_protocol(key).removesuffix("v6"), state, timeouts) - idle
            if left > 0:
                yield _Live(key, original, reply if answered else None, state, idle, left)


def _paired(
    half_open: Mapping[bytes, Entry], flows: Mapping[bytes, Entry]
) -> Iterator[tuple[bytes, Entry, Entry | None, bool]]:
    """Each flow once: its key, both directions' entries (None: lost), and whether it is answered."""
    seen: set[bytes] = set()
    for entries, answered in ((flows, True), ({**_clients_of(half_open), **half_open}, False)):
        for key, original in entries.items():
            if not original[7] & REPLY and key not in seen:
                seen.add(key)
                yield key, original, entries.get(_reverse(original[0])), answered or original[6] == ANSWERED
    for entries, answered in ((flows, True), (half_open, False)):
        for key, original, reply in _lost(entries, seen):
            yield key, original, reply, answered


def _lost(entries: Mapping[bytes, Entry], seen: Collection[bytes]) -> Iterator[tuple[bytes, Entry, Entry]]:
    """The flows of which the reply's direction is left (N5): its next packet makes the client's anew."""
    for key, reply in entries.items():
        client = _reverse(reply[0])
        if reply[7] & REPLY and client not in seen:
            _, last_seen, _, _, backend, generation, state, flags, *_ = reply
            original = (_reverse(key), last_seen, 0, 0, backend, generation, state, flags & ~REPLY, *reply[8:])
            yield client, original, reply


def _clients_of(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """The client's direction of TCP flows that are their reply's claim alone, with the client's counts."""
    return {
        _reverse(claim[0]): (_reverse(key), *claim[1:7], claim[7] & ~REPLY, *claim[8:])
        for key, claim in entries.items()
        if _protocol(key) == "TCP" and claim[7] & REPLY and not claim[7] & PAIRED
    }


def _family(raw: bytes) -> Family:
    """Of a struct tuple: the two differ in size."""
    return Family.IPV4 if len(raw) == _TUPLES[Family.IPV4].size else Family.IPV6


def _protocol(raw: bytes) -> str:
    """Of a struct tuple, which ends in the protocol and three zeros."""
    return _NAMES[raw[-4]]


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
