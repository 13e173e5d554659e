"""A packet as far as services and masquerading care: who sends it to whom, TCP's flags, and how many hops it has left.

Addresses are text, as short as it may be ("fd00::3"), and are of one IP version in one packet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = ["WITH_PORTS", "Address", "FlowTuple", "Packet", "Protocol", "Version", "version_of"]

Protocol = Literal["TCP", "UDP", "SCTP", "ICMP"]
Version = Literal[4, 6]

WITH_PORTS: Final[tuple[Protocol, ...]] = ("TCP", "UDP", "SCTP")  # what services are of


def version_of(address: str) -> Version:
    """The IP version of an address."""
    return 6 if ":" in address else 4


def place(address: str, port: int) -> str:
    """An address and port in words (RFC 3986 3.2.2)."""
    return f"[{address}]:{port}" if version_of(address) == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where something is called or listens: one number in TCP, UDP and SCTP is three different places (S14)."""

    address: str
    port: int
    protocol: Protocol = "TCP"

    def __str__(self) -> str:
        return f"{place(self.address, self.port)}/{self.protocol}"


@dataclass(frozen=True, slots=True, order=True)
class FlowTuple:
    """The five things that tell one flow from another (N93): both ends, each address and port, and the protocol."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: Protocol = "TCP"

    @property
    def reverse(self) -> FlowTuple:
        """The tuple of the answer: whoever is called answers from where it was called (N30)."""
        return FlowTuple(self.destination, self.destination_port, self.source, self.source_port, self.protocol)

    @property
    def called(self) -> Address:
        """The end that is called: what a service's front end is compared with (S11)."""
        return Address(self.destination, self.destination_port, self.protocol)

    def __str__(self) -> str:
        ends = place(self.source, self.source_port), place(self.destination, self.destination_port)
        return f"{' -> '.join(ends)} {self.protocol}"


@dataclass(frozen=True, slots=True)
class Packet:
    """One whole packet of TCP, UDP or SCTP, or of either IP version's ICMP an echo request or its reply.

    `flags`: TCP's as scapy writes them, "S", "SA", "FA"; "S" for SCTP's INIT, the only chunk that matters (S18). `ttl`:
    IPv6's hop limit. `length`: of layer 3, its headers included. The identifier of an echo is the port of who asks, and
    who is asked has the port 0 (RFC 5508 3.1).
    """

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: Protocol = "TCP"
    flags: str = ""
    ttl: int = 64
    length: int = 60

    def __post_init__(self) -> None:
        if self.protocol != "TCP" and self.flags and (self.protocol, self.flags) != ("SCTP", "S"):
            raise ValueError(f"{self.protocol} has no flags: {self.flags!r}")
        if version_of(self.source) != version_of(self.destination):
            raise ValueError(f"{self.source} and {self.destination} are of two IP versions")

    @property
    def tuple(self) -> FlowTuple:
        """The key of its flow (N93)."""
        return FlowTuple(self.source, self.source_port, self.destination, self.destination_port, self.protocol)

    @property
    def is_echo(self) -> bool:
        """An echo request, or its reply."""
        return self.protocol == "ICMP"

    @property
    def is_syn(self) -> bool:
        """SYN, with ACK or without: it begins something, and is looked at with care (N102)."""
        return "S" in self.flags

    @property
    def opens(self) -> bool:
        """SYN without ACK, or INIT: a connection begins here, whatever was known of its tuple (N95, N102)."""
        return "S" in self.flags and "A" not in self.flags

    def readdressed(self, to: FlowTuple) -> Packet:
        """The packet with these addresses and ports; its length never changes (N81)."""
        return replace(
            self,
            source=to.source,
            source_port=to.source_port,
            destination=to.destination,
            destination_port=to.destination_port,
        )

    def one_hop_on(self) -> Packet:
        """The packet after a router: its TTL is one less (N72)."""
        return replace(self, ttl=self.ttl - 1)
