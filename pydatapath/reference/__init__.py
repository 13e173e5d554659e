"""What the datapath does to a packet, as plain Python: no kernel, no bytes, no clock.

    packet    a packet's addresses, and how an answer's follow from them
    world     what the datapath is told: services, backends, who lives where and lives still, which ways are known
    services  which backends a new flow may go to, and which it must: policies, affinity, stickiness
    timers    how long a flow lives without a packet
    entry     one direction of a flow
    flows     the two tables; a packet of a flow that was answered
    claims    the answer's tuple, which no two flows share, and the port that is taken where it would be
    opening   a packet of a flow that was not answered yet, and the answer
    fragments the later parts of a datagram, which follow the first
    errors    ICMP errors: whose they are, and what they quote
    nat       who leaves the cluster behind the node's address, and by which port
    leave     where the packet goes then, and what it looks like there
    beside    from pod to pod of one node, past the bridge
    walk      the order of all that: Model.receive(hook, packet, now) -> Verdict

Read it to learn what a service is; test the kernel's programs against it. Where those are free (which backend, which
port), the model is told what they chose (Choice) and raises Impossible where that was not allowed. Rule numbers (S..,
N.., C..) are those of the project's table of service semantics.

IPv4 and IPv6 are alike, and one model takes the packets of both. What differs is not in it: the checksum of the header,
which IPv6 has not; by which ICMP a sender is refused (Verdict.refused); the name of the TTL, IPv6's hop limit.

Of ICMP there are errors, echo requests and their replies. One CPU, and tables without an end; Flows.forget is what an
LRU does.
"""

from pydatapath.reference.claims import PORTS
from pydatapath.reference.entry import Entry
from pydatapath.reference.flows import Flows
from pydatapath.reference.fragments import Fragments
from pydatapath.reference.leave import Kind, Verdict
from pydatapath.reference.nat import Mapping, Mappings
from pydatapath.reference.packet import (
    WITH_PORTS,
    Address,
    Error,
    ErrorKind,
    FlowTuple,
    Fragment,
    Packet,
    Protocol,
)
from pydatapath.reference.services import Choice, Chooser, Impossible
from pydatapath.reference.timers import TIMEOUTS, State, Timeouts
from pydatapath.reference.walk import Model
from pydatapath.reference.world import (
    NEXT_HOPS,
    NODE,
    UPLINK,
    Backend,
    Egress,
    Hook,
    Machine,
    Masquerade,
    NatType,
    Own,
    Route,
    Service,
    World,
)

__all__ = [
    "NEXT_HOPS",
    "NODE",
    "PORTS",
    "TIMEOUTS",
    "UPLINK",
    "WITH_PORTS",
    "Address",
    "Backend",
    "Choice",
    "Chooser",
    "Egress",
    "Entry",
    "Error",
    "ErrorKind",
    "FlowTuple",
    "Flows",
    "Fragment",
    "Fragments",
    "Hook",
    "Impossible",
    "Kind",
    "Machine",
    "Mapping",
    "Mappings",
    "Masquerade",
    "Model",
    "NatType",
    "Own",
    "Packet",
    "Protocol",
    "Route",
    "Service",
    "State",
    "Timeouts",
    "Verdict",
    "World",
]
