"""A packet as far as services and masquerading care: who sends it to whom, TCP's flags, and how many hops it has left.

Addresses are text, as short as it may be ("fd00::3"), and are of one IP version in one packet. A packet may be a part
of a datagram (Fragment), or an ICMP error, which quotes another packet (Error).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = [
    "WITH_PORTS",
    "Address",
    "Error",
    "ErrorKind",
    "FlowTuple",
    "Fragment",
    "Packet",
    "Protocol",
    "Version",
    "version_of",
]

Protocol = Literal["TCP", "UDP", "SCTP", "ICMP"]
Version = Literal[4, 6]
# "too big" is IPv4's "fragmentation needed"; a redirect, which tells of a better way, is none of them (N60)
ErrorKind = Literal["port unreachable", "host unreachable", "too big", "time exceeded", "parameter problem", "redirect"]

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
class Fragment:
    """Which part of a datagram a packet is.

    `identification`: the datagram's, which no other one between the same addresses has at the time. `offset`: the bytes
    of the datagram before it; the first, at 0, alone has the ports (RFC 791 3.2, RFC 8200 4.5).
    """

    identification: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Error:
    """What an ICMP error says of a packet, which it quotes as that was where it got stuck.

    `quoted`: the bytes of layer 4 that it quotes; RFC 792 promises eight.
    """

    kind: ErrorKind
    about: Packet
    quoted: int = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of TCP, UDP or SCTP, or of either IP version's ICMP an echo request, its reply, or an error.

    `flags`: TCP's as scapy writes them, "S", "SA", "FA"; "S" for SCTP's INIT, the only chunk that matters (S18).
    `sequence`, `acknowledged`: TCP's numbers; `data`: whether it has any, where its `length` of layer 3, headers
    included, does not tell. `ttl`: IPv6's hop limit. The identifier of an echo is the port of who asks, who is asked
    has port 0 (RFC 5508 3.1); a reply whose identifier is 0 has the flag "A". Errors and later fragments have no
    ports, which are 0 then. `extended`: with extension headers of IPv6, which are passed over (RFC 8200 4).
    """

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: Protocol = "TCP"
    flags: str = ""
    ttl: int = 64
    length: int = 60
    fragment: Fragment | None = None
    error: Error | None = None
    extended: bool = False
    sequence: int = 1000
    acknowledged: int = 1001
    data: bool | None = None

    def __post_init__(self) -> None:
        if self.protocol != "TCP" and self.flags and (self.protocol, self.flags) not in {("SCTP", "S"), ("ICMP", "A")}:
            raise ValueError(f"{self.protocol} has no flags: {self.flags!r}")
        if self.protocol == "ICMP" and self.flags and (self.source_port or self.destination_port or not self.is_echo):
            raise ValueError("only a reply whose identifier is 0 is told by a flag")
        if version_of(self.source) != version_of(self.destination):
            raise ValueError(f"{self.source} and {self.destination} are of two IP versions")
        if (self.is_later or self.error) and (self.source_port or self.destination_port):
            raise ValueError("neither a later fragment nor an error has ports")
        if self.error and (self.protocol != "ICMP" or self.error.about.error):
            raise ValueError("an error is ICMP, and never about another one")  # RFC 1122 3.2.2, RFC 4443 2.4

    @property
    def tuple(self) -> FlowTuple:
        """The key of its flow (N93).

        An error travels against the packet that it quotes: it is of the other direction of that packet's flow.
        """
        if self.error:
            return self.error.about.tuple.reverse
        return FlowTuple(self.source, self.source_port, self.destination, self.destination_port, self.protocol)

    @property
    def is_plain(self) -> bool:
        """Whether it has ports where nearly all packets have them: neither ICMP nor a fragment."""
        return self.protocol != "ICMP" and self.fragment is None

    @property
    def is_first(self) -> bool:
        """The first of several fragments: it has the ports of all."""
        return self.fragment is not None and self.fragment.offset == 0

    @property
    def is_later(self) -> bool:
        """A fragment behind the first."""
        return self.fragment is not None and self.fragment.offset > 0

    @property
    def is_echo(self) -> bool:
        """An echo request, or its reply."""
        return self.protocol == "ICMP" and self.error is None and not self.is_later

    @property
    def asks(self) -> bool:
        """An echo request."""
        return self.is_echo and self.destination_port == 0 and not self.flags

    @property
    def has_port_0(self) -> bool:
        """Nobody can answer to port 0, and who is called there is called nowhere (N27); of what has ports."""
        return self.protocol != "ICMP" and 0 in {self.source_port, self.destination_port}

    @property
    def is_syn(self) -> bool:
        """SYN, with ACK or without: it begins something, and is looked at with care (N102)."""
        return "S" in self.flags

    @property
    def opens(self) -> bool:
        """SYN without ACK, or INIT: a connection begins here, whatever was known of its tuple (N95, N102)."""
        return "S" in self.flags and "A" not in self.flags

    @property
    def answers_opening(self) -> bool:
        """SYN with ACK: said by whoever was called, also where it keeps nothing of that (RFC 4987 3.6: SYN cookies)."""
        return "S" in self.flags and "A" in self.flags

    @property
    def has_data(self) -> bool:
        """Of TCP: more than headers, without options where `data` says nothing."""
        headers = 40 if version_of(self.source) == 4 else 68 if self.fragment else 60
        return self.length > headers if self.data is None else self.data

    def acknowledges(self, number: int) -> bool:
        """What the other side has sent, up to this number (RFC 9293 3.5)."""
        return "A" in self.flags and self.acknowledged == number

    def readdressed(self, to: FlowTuple) -> Packet:
        """The packet with these addresses and ports; its length never changes (N81)."""
        flags = self.flags
        if self.is_echo:
            flags = "" if self.asks or to.source_port or to.destination_port else "A"
        return replace(
            self,
            flags=flags,
            source=to.source,
            source_port=to.source_port,
            destination=to.destination,
            destination_port=to.destination_port,
        )

    def turned_round(self) -> Packet:
        """To where it came from, from where it was sent: of an echo request the reply."""
        back = self.readdressed(self.tuple.reverse)
        return replace(back, flags="" if back.destination_port else "A") if self.asks else back

    def one_hop_on(self) -> Packet:
        """The packet after a router: its TTL is one less (N72)."""
        return replace(self, ttl=self.ttl - 1)
