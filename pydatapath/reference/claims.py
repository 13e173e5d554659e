"""The answer's tuple, which no two live flows share: by it the datapath tells whose an answer is.

A client may use one port towards one backend directly and through services, all at once (N93, N94). Two of these leave
with equal tuples, and their answers would be one: the later one is given another source port, which only the backend
sees. Which port that is, is the kernel's to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import Flows, remove_both
from pydatapath.reference.packet import FlowTuple
from pydatapath.reference.services import Impossible
from pydatapath.reference.timers import State

__all__ = [
    "FREE_ENOUGH",
    "PORTS",
    "Claim",
    "begin",
    "claim",
    "claim_answer",
    "enter",
    "give_up",
    "is_taken",
    "with_port",
]

PORTS: Final = range(32_768, 65_536)  # what is tried where the caller's own is taken: above every well-known service
# N22: the kernel tries a hundred; where more than one of five is free it misses them all once in two thousand million
FREE_ENOUGH: Final = 5


class Claim(Enum):
    """TAKEN: a live flow has the tuple. BEFORE: it is this flow's own, of a first packet that was sent before."""

    TAKEN = auto()
    CLAIMED = auto()
    BEFORE = auto()


def claim(flows: Flows, key: FlowTuple, reply: Entry, moment: Moment, *, choosy: bool = False) -> Claim:
    """Enters the answer's direction of a new flow, where no live flow has its tuple in either table (N97).

    One that is over gives way with both its halves (N42, N95); `choosy`: another pod's not at once (N25).
    """
    flows.claimed.add(key)
    inside = reply.to.destination if choosy else ""
    found = _claim_half_open(flows, key, reply, moment, inside)
    holder = flows.main.get(key)
    if found is Claim.TAKEN or holder is None:
        return found
    if holder.to == reply.to:
        return Claim.CLAIMED  # this flow's own answer, whose other half was lost
    if _may_take(flows, holder, moment, inside):
        remove_both(flows.main, key, holder)
        return Claim.CLAIMED
    del flows.half_open[key]
    return Claim.TAKEN


def _claim_half_open(flows: Flows, key: FlowTuple, reply: Entry, moment: Moment, inside: str) -> Claim:
    holder = flows.half_open.get(key)
    if holder is None:
        flows.half_open[key] = reply
        return Claim.CLAIMED
    if holder.to == reply.to:
        answered = holder.state is State.ANSWERED  # then it counts its own packets only
        flows.half_open[key] = replace(
            holder,
            last_seen=reply.last_seen,
            backend=reply.backend,
            packets=holder.packets + (0 if answered else reply.packets),
            octets=holder.octets + (0 if answered else reply.octets),
        )
        return Claim.BEFORE
    if not _may_take(flows, holder, moment, inside):
        return Claim.TAKEN
    remove_both(flows.half_open, key, holder)
    flows.half_open[key] = reply
    return Claim.CLAIMED


def _may_take(flows: Flows, holder: Entry, moment: Moment, inside: str = "") -> bool:
    """`inside`: the pod that asks, where what was another pod's lately is not taken."""
    over = flows.is_over(holder, moment.world, moment.now, opens=moment.packet.opens)
    return over and not (inside and flows.is_kept(holder, inside, moment.world, moment.now))


def begin(flows: Flows, entry: Entry, moment: Moment, port: int | None) -> tuple[Entry, bool]:
    """Enters a new flow: as it leaves, and whether it is one indeed, not its first packet sent again (N103).

    N9, N15: the source port is kept where the tuple is free. Raises Impossible for a port that may not be.
    """
    entry = replace(entry, last_seen=moment.now).counting(moment.packet)
    found = claim_answer(flows, entry, moment)
    if found is not Claim.TAKEN and port not in {None, entry.to.source_port}:
        raise Impossible(f"the source port of {entry.to} is free, and must be kept (N9)")
    if found is Claim.TAKEN:
        entry = with_port(entry, _other_port(flows, entry, moment, port))
        found = claim_answer(flows, entry, moment)
        if found is Claim.TAKEN:
            raise Impossible(f"{entry.to} is a live flow's (N93)")
    return enter(flows, entry, moment, found)


def enter(flows: Flows, entry: Entry, moment: Moment, found: Claim) -> tuple[Entry, bool]:
    """A new flow whose answer's tuple is claimed waits for that; as `begin`."""
    if "R" in moment.packet.flags:
        flows.half_open.pop(entry.to.reverse, None)  # given up: nothing is left to wait for
        return entry, False
    claimed = flows.half_open[entry.to.reverse] if found is Claim.BEFORE else entry
    if claimed.state is State.ANSWERED:
        # N5: it had two entries, of which this one was lost
        known = replace(entry, awaited=claimed.awaited, granted=claimed.granted)
        entry = replace(known, state=State.ANSWERED, opened=entry.opened or claimed.opened)
    if entry.is_paired:
        flows.half_open.setdefault(moment.packet.tuple, entry)
    return entry, found is Claim.CLAIMED


def give_up(flows: Flows, entries: Iterable[Entry], moment: Moment) -> Dropped:
    """N22, N23: not all ports are tried, so a new flow may find none; all others are unharmed.

    `entries`: the flow as it may be, one for each backend. Raises Impossible where enough were free.
    """
    held = {key.destination_port for table in (flows.half_open, flows.main) for key in table}
    for entry in entries:
        taken = {port for port in held if is_taken(flows, entry, port, moment)}
        free = len(PORTS) - len(taken.intersection(PORTS))
        if entry.to.source_port in taken and free * FREE_ENOUGH <= len(PORTS):
            return Dropped("drop_ports_taken")
    raise Impossible(f"{moment.packet.tuple} was dropped, though a port was free for it (N22)")


def claim_answer(flows: Flows, entry: Entry, moment: Moment, *, choosy: bool = False) -> Claim:
    """Claims the answer's tuple of a flow that would leave as this entry says; `choosy` as for `claim`."""
    return claim(flows, entry.to.reverse, _answer_of(entry, moment), moment, choosy=choosy)


def _answer_of(entry: Entry, moment: Moment) -> Entry:
    """What waits for the answer. A TCP flow has nothing else while it waits, so that counts the caller's packets."""
    reply = entry.opposite(moment.packet.tuple, moment.now)
    return reply if entry.is_paired else replace(reply, packets=entry.packets, octets=entry.octets)


def with_port(entry: Entry, port: int) -> Entry:
    """The entry of a flow that leaves by another source port."""
    return replace(entry, to=replace(entry.to, source_port=port), plain=False)


def _other_port(flows: Flows, entry: Entry, moment: Moment, port: int | None) -> int:
    """N103: the one that this flow has already, or one that another flow has left since; for a new flow any free one.

    The kernel tries its few in the same order again, so it may find one free that it had to pass over before.
    """
    own = set(_own_ports(flows, entry, moment))
    if port is None:
        return min(own, default=0) or next(one for one in PORTS if not is_taken(flows, entry, one, moment))
    left_since = with_port(entry, port).to.reverse in flows.claimed
    if port not in PORTS or (own and port not in own and not left_since):
        raise Impossible(f"{port} is no port for {entry.to}, which must be one of {own or PORTS} (N103)")
    return port


def _own_ports(flows: Flows, entry: Entry, moment: Moment) -> Iterator[int]:
    """The ports by which the flow's earlier first packets left, as far as they are still waited for."""
    answered = moment.packet.tuple.reverse
    for table in (flows.half_open, flows.main):
        for key, one in table.items():
            same = one.to == answered and replace(entry.to, source_port=key.destination_port) == key.reverse
            if same and not _may_take(flows, one, moment):
                yield key.destination_port


def is_taken(flows: Flows, entry: Entry, port: int, moment: Moment, *, choosy: bool = False) -> bool:
    """Whether a live flow has the tuple of the answer that would come to this port; `choosy` as for `claim`."""
    tried = with_port(entry, port)
    holders = (table.get(tried.to.reverse) for table in (flows.half_open, flows.main))
    answered = moment.packet.tuple.reverse
    inside = moment.packet.source if choosy else ""
    return any(one is not None and one.to != answered and not _may_take(flows, one, moment, inside) for one in holders)
