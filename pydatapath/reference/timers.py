"""How long a flow lives without a packet, where nothing else is said."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from pydatapath.reference.packet import Protocol

__all__ = ["TIMEOUTS", "State", "Timeouts"]


class State(StrEnum):
    """The life of a flow: not answered yet; of TCP, answered by a SYN-ACK that its client has not confirmed; answered;
    and (TCP only) at its end. CLOSING stands in no entry.
    """

    NEW = "new"
    ANSWERED = "answered"
    ESTABLISHED = "established"
    CLOSING = "closing"


Timeouts: TypeAlias = Mapping[tuple[Protocol, State], float]

# Seconds of silence after which a flow is over. N34: five minutes for UDP; N36: netfilter's five days for TCP, which is
# more than RFC 5382 asks; N37: four minutes at the end; two minutes for what was never answered (Linux's SYN_SENT);
# S18: netfilter's for SCTP, whose ends ask for each other every half a minute (RFC 9260 8.3); N40: a minute for an echo
TIMEOUTS: Final[Timeouts] = MappingProxyType(
    {
        ("UDP", State.NEW): 120,
        ("UDP", State.ESTABLISHED): 300,
        ("UDP", State.CLOSING): 300,
        ("TCP", State.NEW): 120,
        ("TCP", State.ANSWERED): 120,
        ("TCP", State.ESTABLISHED): 432_000,
        ("TCP", State.CLOSING): 240,
        ("SCTP", State.NEW): 120,
        ("SCTP", State.ESTABLISHED): 210,
        ("SCTP", State.CLOSING): 210,
        ("ICMP", State.NEW): 60,
        ("ICMP", State.ESTABLISHED): 60,
        ("ICMP", State.CLOSING): 60,
    }
)
