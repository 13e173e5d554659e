"""The flow tables, and a packet of a flow that was answered.

Two tables, so that a flood of first packets pushes out no live flow. `main`: answered flows, both directions of each.
`half_open`: what still waits for its answer, and TCP's for its client's word after that: of a flood of SYNs all may be
answered. A TCP flow is there its answer's entry alone, the claim, until its SYN-ACK: a SYN that is sent again is chosen
for anew, the same way (N103). UDP's and SCTP's are there as both: one-way traffic keeps its backend (N105).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydatapath.reference.entry import Entry, Moment
from pydatapath.reference.packet import FlowTuple, Packet
from pydatapath.reference.world import World

__all__ = ["FRESH", "Flows", "Table"]

Table = dict[FlowTuple, Entry]

FRESH = 1.0  # seconds for which a stamp is not written again


class Flows:
    """Both tables. Keys are the tuples of packets as they arrive. `claimed`: all tuples that ever were an answer's."""

    def __init__(self) -> None:
        self.main: Table = {}
        self.half_open: Table = {}
        self.claimed: set[FlowTuple] = set()

    def forget(self, key: FlowTuple) -> None:
        """Drops one direction, as an LRU that is full may do (N5)."""
        self.main.pop(key, None)
        self.half_open.pop(key, None)

    def end(self, key: FlowTuple, entry: Entry) -> None:
        """Both directions are over, wherever they stand (C8)."""
        for table in (self.main, self.half_open):
            remove_both(table, key, entry)

    def live(self, world: World, now: float) -> Iterator[tuple[FlowTuple, FlowTuple]]:
        """Of every flow that is not over: the caller's tuple as it came, and as it leaves (N42)."""
        for table in (self.main, self.half_open):
            for key, entry in table.items():
                if not self.is_over(entry, world, now):
                    yield (entry.to.reverse, key.reverse) if entry.reply else (key, entry.to)

    def has_ended(self, entry: Entry, world: World, now: float, *, opens: bool = False) -> bool:
        """N42: silent for too long, whoever collects it. N95: or closing, where a new connection opens."""
        closing = entry.is_closing(self.main.get(entry.to.reverse, entry))
        return (closing and opens) or now - entry.last_seen > entry.timeout(world.timeouts, closing=closing)

    def is_over(self, entry: Entry, world: World, now: float, *, opens: bool = False) -> bool:
        """Whether its tuple may be given to another flow (N42, N95): never that of a live connection (C8)."""
        return entry.has_lost_its_backend(world) or self.has_ended(entry, world, now, opens=opens)

    def is_kept(self, entry: Entry, inside: str, world: World, now: float) -> bool:
        """N25: the outside end of a pod's flow is not another pod's (`inside`) until some time after its end."""
        if not entry.masqueraded or entry.to.destination == inside:
            return False
        closing = entry.is_closing(self.main.get(entry.to.reverse, entry))
        life = 0 if closing else entry.timeout(world.timeouts, closing=False)
        return now - entry.last_seen <= life + world.quarantine

    def begins_anew(self, entry: Entry, moment: Moment) -> bool:
        """Whether this packet of the flow begins a new one: by C9, N42, N95, or N102: a SYN to one gone or draining."""
        opens = moment.packet.opens
        return (
            entry.chooses_again(moment.world)
            or self.has_ended(entry, moment.world, moment.now, opens=opens)
            or (opens and not moment.world.takes_new_flows(entry.backend))
        )

    def meets_known_answer(self, packet: Packet) -> bool:
        """N93: whether it begins what would be answered by the tuple that answers a flow, over or not.

        Of datagrams only those flows count that were answered.
        """
        answer = packet.tuple.reverse
        if packet.protocol == "TCP" and not packet.opens:
            return False
        waiting = self.half_open.get(answer) if packet.protocol == "TCP" else None
        entry = waiting or self.main.get(answer)
        return entry is not None and entry.reply

    def quick(self, moment: Moment) -> Entry | None:
        """The flow of a packet that needs no more than being counted, rewritten and sent; else None.

        Any SYN needs more, all SCTP, whose checksum is work, all ICMP, all fragments, and what has extension headers.
        The first packet after a second refreshes the entry, or heals it (N5). What is sent to a backend that is gone is
        chosen for again (C9), or may be refused (C8).
        """
        packet = moment.packet
        if not packet.is_plain or packet.extended or packet.is_syn or packet.protocol == "SCTP":
            return None
        key = moment.packet.tuple
        entry = self.main.get(key)
        if entry is None or moment.now - entry.last_seen >= FRESH:
            return None
        if entry.is_forsaken(moment.world):
            return None
        self.main[key] = entry.counting(moment.packet).noting_its_end(moment.packet)
        return self.main[key]

    def follow(self, moment: Moment) -> Entry | None:
        """The answered flow of a packet that is looked at with care; None: there is none, or none that still holds.

        Either direction refreshes both, so one-way traffic keeps both; but what has sent a RST must speak for itself
        (N101). One that is missing is made anew (N5), unless another flow has its tuple by now: then this flow must
        find itself another port.
        """
        key = moment.packet.tuple
        entry = self.main.get(key)
        if entry is None:
            return None
        other_key = entry.to.reverse
        other = self.main.get(other_key)
        if other.to != key.reverse if other else other_key in self.half_open:
            del self.main[key]
            return None
        if self.begins_anew(entry, moment):
            remove_both(self.main, key, entry)
            return None
        if moment.now - entry.last_seen >= FRESH:
            entry = entry.doubting_its_reset(moment.packet)
        entry = replace(entry, last_seen=moment.now).counting(moment.packet).noting_its_end(moment.packet)
        self.main[key] = entry
        # Of itself it may be the other direction: what a socket sends to its own address and port
        other = self.main.get(other_key)
        if other is None:
            self.main[other_key] = entry.opposite(key, moment.now)
        elif not other.rst:
            self.main[other_key] = replace(other, last_seen=moment.now)
        return entry


def remove_both(table: Table, key: FlowTuple, entry: Entry) -> None:
    """N5: both directions die together, or the one that stays would be taken for a flow. A claim alone has no other."""
    if entry.is_paired:
        table.pop(entry.to.reverse, None)
    table.pop(key, None)
