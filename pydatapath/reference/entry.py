"""One direction of a flow, and how long it lives."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydatapath.reference.packet import FlowTuple, Packet
from pydatapath.reference.timers import State, Timeouts
from pydatapath.reference.world import Backend, World

__all__ = ["Dropped", "Entry", "Moment"]


class Dropped(Exception):
    """A packet that goes no further; `reason` is the counter that says why (N108). `refused`: its sender is told."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.refused = reason, refused


@dataclass(frozen=True, slots=True)
class Moment:
    """What an entry is held against: a packet, the time in seconds, and the world as it is then."""

    packet: Packet
    now: float
    world: World


@dataclass(frozen=True, slots=True)
class Entry:
    """What becomes of packets with one tuple. Its other direction has the key `to.reverse`: always two, or a claim.

    `reply`: the answering direction; `plain`: nothing is rewritten (N93); `masqueraded`: one of its ends is hidden
    behind the node's address (nat.py); `fin`, `rst`: this direction has sent one (N38, N39). `opened`: it was begun by
    a SYN, and not found in the middle. `by_chance`: its source port is, whoever is hidden. `awaited`, `granted`: after
    a SYN-ACK, the number that its caller must acknowledge, and the one that it did. `backend` is None for a flow of no
    service. `packets` and `octets` of layer 3 are this direction's.
    """

    to: FlowTuple
    last_seen: float = 0
    backend: Backend | None = None
    state: State = State.NEW
    reply: bool = False
    plain: bool = False
    masqueraded: bool = False
    fin: bool = False
    rst: bool = False
    opened: bool = False
    by_chance: bool = False
    awaited: int = 0
    granted: int = 0
    packets: int = 0
    octets: int = 0

    @property
    def is_paired(self) -> bool:
        """Whether it waits as two entries, one for each direction; of TCP there is the claim alone until its SYN-ACK.

        A SYN that is sent again finds its claim by a hash, but not by a port that was chosen by chance.
        """
        by_chance = self.masqueraded or self.by_chance
        return self.to.protocol != "TCP" or by_chance or self.state is not State.NEW

    def opposite(self, key: FlowTuple, now: float) -> Entry:
        """The entry that the other direction must have (N5): it turns the answer's tuple into the caller's reversed."""
        return Entry(
            key.reverse,
            now,
            self.backend,
            self.state,
            reply=not self.reply,
            plain=self.plain,
            masqueraded=self.masqueraded,
            opened=self.opened,
            by_chance=self.by_chance,
            awaited=self.awaited,
            granted=self.granted,
        )

    def counting(self, packet: Packet) -> Entry:
        """One packet more."""
        return replace(self, packets=self.packets + 1, octets=self.octets + packet.length)

    def noting_its_end(self, packet: Packet) -> Entry:
        """N38, N39: what ends the connection is noted where it was sent."""
        return replace(self, fin=self.fin or "F" in packet.flags, rst=self.rst or "R" in packet.flags)

    def doubting_its_reset(self, packet: Packet) -> Entry:
        """N38, N101: whoever goes on sending over a second after a RST has not sent it: the connection lives."""
        return self if packet.is_syn or "R" in packet.flags else replace(self, rst=False)

    def is_closing(self, other: Entry) -> bool:
        """FIN from both sides, or RST from one (N38, N39)."""
        return (self.fin and other.fin) or self.rst or other.rst

    def timeout(self, timeouts: Timeouts, *, closing: bool) -> float:
        """Seconds of silence that it outlives (N34 to N39)."""
        ended = closing and self.state is State.ESTABLISHED
        return timeouts[self.to.protocol, State.CLOSING if ended else self.state]

    def has_lost_its_backend(self, world: World) -> bool:
        """C9: a UDP flow belongs to nobody once its backend no longer serves. C8: TCP and SCTP connections go on."""
        return self.to.protocol == "UDP" and not world.serves(self.backend)

    def chooses_again(self, world: World) -> bool:
        """C9: it is the caller's packet that chooses; an answer that comes late is still the service's."""
        return not self.reply and self.has_lost_its_backend(world)

    def is_forsaken(self, world: World) -> bool:
        """C8: the caller's direction, of any protocol, whose backend is gone from its service: is its pod gone, too?"""
        return not self.reply and not world.serves(self.backend)
