"""What is masqueraded, as people read it: flows that leave behind the node's address, and mappings of UDP."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from pydatapath.kernel import clock
from pydatapath.kernel.flowtable import read_flows
from pydatapath.kernel.layout import (
    LAYOUTS,
    PROTOCOL_NAMES,
    Family,
    FlowFlag,
    FlowState,
    MapContract,
    MappingSide,
    timeout,
)
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.packing import unpack_ip
from pydatapath.views import End, Flow, NatMapping, PortsUsed

__all__ = ["is_there", "ports_used", "read_mappings", "top_sources"]

TOP: Final = 10
# Family, protocol, inside, outside
_Key = tuple[int, str, End, End]


def is_there(contract: MapContract, families: Collection[Family], masqueraded: Collection[Family]) -> bool:
    """Whether a map is there where these families are loaded, and these of them masqueraded."""
    return contract.is_of(families) and (contract.in_c != "mappings" or contract.is_of(masqueraded))


def read_mappings(maps: Maps, timeouts: Mapping[str, int]) -> list[NatMapping]:
    """Everything that is masqueraded now, by family, protocol and inside end."""
    found: dict[_Key, NatMapping] = {}
    for one in (*_of_flows(maps, timeouts), *_of_udp(maps, timeouts)):
        key = (one.family, one.protocol, one.inside, one.outside)
        found[key] = _joined(found[key], one) if key in found else one
    return [found[key] for key in sorted(found)]


def _joined(one: NatMapping, other: NatMapping) -> NatMapping:
    """Two findings of one mapping: it lives as long as the one that is over last."""
    remotes = tuple(sorted({*one.remotes, *other.remotes}))
    idle, expires = min(one.idle, other.idle), max(one.expires, other.expires)
    return NatMapping(one.family, one.protocol, one.inside, one.outside, remotes, idle, expires)


def _of_flows(maps: Maps, timeouts: Mapping[str, int]) -> Iterator[NatMapping]:
    for flow, _, _ in read_flows(maps, timeouts, FlowFlag.MASQUERADED):
        inside, outside, remote = ends_of(flow)
        yield NatMapping(flow.family, flow.protocol.lower(), inside, outside, (remote,), flow.idle, flow.expires)


def ends_of(flow: Flow) -> tuple[End, End, End]:
    """The inside, outside and remote end of a masqueraded flow. One that came from outside keeps its source."""
    original, reply = flow.original, flow.reply
    if (original.src, original.sport) == (reply.dst, reply.dport):
        return End(reply.src, reply.sport), End(original.dst, original.dport), End(original.src, original.sport)
    return End(original.src, original.sport), End(reply.dst, reply.dport), End(reply.src, reply.sport)


def _of_udp(maps: Maps, timeouts: Mapping[str, int]) -> Iterator[NatMapping]:
    now, life = clock.jiffies(), timeout("UDP", FlowState.ESTABLISHED, timeouts)
    for family, layout in LAYOUTS.items():
        name = f"mappings{family.suffix}"
        for key, value in maps[name].items() if (maps.directory / name).exists() else ():
            address, port, protocol, side = layout.mapping_key.struct.unpack(key)
            last_seen, outside, outside_port = layout.mapping.struct.unpack(value)
            idle = clock.age(last_seen, now)
            if side not in {MappingSide.OUTSIDE, MappingSide.BUDGET} and idle <= life:
                yield NatMapping(
                    int(family),
                    PROTOCOL_NAMES.get(protocol, str(protocol)).lower(),
                    _end(address, port),
                    _end(outside, outside_port),
                    (),
                    round(idle, 1),
                    round(life - idle, 1),
                )


def _end(address: bytes, port: bytes) -> End:
    return End(unpack_ip(address), int.from_bytes(port, "big"))


def ports_used(
    mappings: Iterable[NatMapping],
    addresses: Iterable[str],
    looked_for: Callable[[str, str], AbstractSet[int]],
) -> list[PortsUsed]:
    """By outside address, also those where nothing is used yet, and protocol. `looked_for` says of which ports."""
    used: dict[tuple[str, str], set[int]] = {(at, kind): set() for at in addresses for kind in ("tcp", "udp")}
    for one in mappings:
        used.setdefault((one.outside.address, one.protocol), set()).add(one.outside.port)
    return [
        _ports_used(address, protocol, found, looked_for(address, protocol))
        for (address, protocol), found in sorted(used.items(), key=lambda one: (":" in one[0][0], one[0]))
    ]


def _ports_used(address: str, protocol: str, found: AbstractSet[int], room: AbstractSet[int]) -> PortsUsed:
    return PortsUsed(address, protocol, len(found & room), len(room), len(found - room))


def top_sources(mappings: Sequence[NatMapping]) -> list[tuple[str, int]]:
    """The pods with the most flows, each with their number, at most ten."""
    flows = Tally[str]()
    for one in mappings:
        flows[one.inside.address] += len(one.remotes)
    return sorted(((at, count) for at, count in flows.items() if count), key=lambda one: (-one[1], one[0]))[:TOP]
