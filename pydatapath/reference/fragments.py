"""Later fragments follow the first, which alone has the ports.

A datagram that is too long for a link travels in several packets. The first has the ports by which its flow is known,
and is a packet as others. What its addresses became is noted by what all fragments of a datagram have in common; the
later ones get the same addresses, and nothing else of them is touched (N63, N66).

One that comes before its first is known by nobody here (N64). The table is one of its own, so that a flood of fragments
pushes out fragments only (N65); here it has no end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pydatapath.reference.packet import FlowTuple, Packet, version_of

__all__ = ["TIMEOUT", "Datagram", "Fragments", "Noted"]

TIMEOUT: Final = 30  # seconds behind the first (N63): as long as Linux waits for the rest of a datagram


class Datagram(NamedTuple):
    """What all fragments of a datagram have in common.

    `protocol` is "" in IPv6, where a later fragment need not name the first one's (RFC 8200 4.5, N68).
    """

    source: str
    destination: str
    identification: int
    protocol: str

    @classmethod
    def of(cls, packet: Packet) -> Datagram:
        """The datagram of a fragment."""
        if packet.fragment is None:
            raise ValueError(f"{packet.tuple} is no fragment")
        protocol = packet.protocol if version_of(packet.source) == 4 else ""
        return cls(packet.source, packet.destination, packet.fragment.identification, protocol)


@dataclass(frozen=True, slots=True)
class Noted:
    """What the addresses of a first fragment became, and when it was seen, in seconds."""

    source: str
    destination: str
    first_seen: float


class Fragments:
    """The datagrams whose first fragment was seen."""

    def __init__(self) -> None:
        self.noted: dict[Datagram, Noted] = {}

    def note(self, first: Packet, to: FlowTuple, now: float) -> None:
        """The first fragment of a datagram leaves with these addresses."""
        self.noted[Datagram.of(first)] = Noted(to.source, to.destination, now)

    def follow(self, later: Packet, now: float) -> FlowTuple | None:
        """The addresses with which a later fragment leaves; None: its first was not seen (N64), or is forgotten.

        Not only until the last one: that may come before others (N63).
        """
        noted = self.noted.get(Datagram.of(later))
        if noted is None or now - noted.first_seen > TIMEOUT:
            return None
        return replace(later.tuple, source=noted.source, destination=noted.destination)
