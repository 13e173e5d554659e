"""One client that talks to one service, over TCP and UDP: its packets, and what stands in the maps of it."""

from __future__ import annotations

import pytest
from frames import REDIRECT, Outcome, Packet, addresses, answer_to, tcp, udp
from packetbed import Bed, Entry
from places import CLIENT, SECOND, VIP

from pydatapath.kernel import layout
from pydatapath.kernel.layout import FlowFlag, FlowState, Hook

__all__ = ["BOTH", "ELSEWHERE", "QUERY", "SYN", "client", "halves", "send", "states"]

SYN = tcp(CLIENT, 40000, VIP, 80)
QUERY = udp(CLIENT, 40000, VIP, 53)
BOTH = pytest.mark.parametrize("packet", [SYN, QUERY], ids=["TCP", "UDP"])
ELSEWHERE = {f"{VIP}:80/TCP": [f"{SECOND}:8080"], f"{VIP}:53/UDP": [f"{SECOND}:5353"]}


def client(flags: str, ack: int | None = None) -> Packet:
    """A segment of the client's."""
    return tcp(CLIENT, 40000, VIP, 80, flags, ack=ack)


def send(bed: Bed, packet: Packet) -> str:
    """Sends a client's packet; the address of the backend that it went to."""
    outcome = bed.run(Hook.FROM_POD, packet)
    assert outcome.verdict == REDIRECT
    return addresses(outcome)[2]


def halves(bed: Bed, there: Outcome, packet: Packet, table: str = "flows") -> tuple[Entry, Entry]:
    """Both directions of a flow."""
    forward, back = bed.entry(packet, table), bed.entry(answer_to(there), table)
    assert forward is not None
    assert back is not None
    return forward, back


def states(bed: Bed, there: Outcome) -> set[int]:
    """The state of a TCP flow, seen from each direction."""
    forward, back = halves(bed, there, SYN)
    return {
        layout.flow_state(FlowState(one.state), FlowFlag(one.flags), FlowFlag(other.flags))
        for one, other in ((forward, back), (back, forward))
    }
