"""The rules of services and of their flows, one by one, on the model: no kernel, one packet after another.

10.1.0.1  the node         10.1.0.2 to .4  the pods CLIENT, BACKEND, SECOND     192.0.2.1  the node at its uplink
10.2.0.3  REMOTE, a pod of another node    192.0.2.9  OUTSIDE, a client         10.3.0.3   NOWHERE, without a way
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pydatapath.kernel import layout
from pydatapath.reference import (
    NODE,
    PORTS,
    TIMEOUTS,
    Address,
    Backend,
    Choice,
    Entry,
    FlowTuple,
    Hook,
    Impossible,
    Model,
    Packet,
    Protocol,
    Route,
    Service,
    State,
    Verdict,
    World,
)

BRIDGE, CLIENT, BACKEND, SECOND = "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"
UPLINK, REMOTE, NOWHERE, OUTSIDE = "192.0.2.1", "10.2.0.3", "10.3.0.3", "192.0.2.9"
VIP, VIP_TWO, EXTERNAL = "10.96.0.10", "10.96.0.20", "203.0.113.7"
FIRST, OTHER, FAR = Backend(BACKEND, 8080, 1), Backend(SECOND, 8080, 2), Backend(REMOTE, 8080, 3)
DNS, DNS_TWO = Backend(BACKEND, 5353, 4), Backend(SECOND, 5353, 5)
WEB, NAMES = Address(VIP, 80), Address(VIP, 53, "UDP")
WORLD = World(
    node_address=BRIDGE,
    uplink_address=UPLINK,
    services={WEB: Service.for_all(1, FIRST), NAMES: Service.for_all(2, DNS)},
    endpoints={BRIDGE: NODE, UPLINK: NODE, CLIENT: "pod2", BACKEND: "pod3", SECOND: "pod4"},
    pod_networks=("10.1.0.0/24",),
    cluster_networks=("10.2.0.0/24",),
    service_networks=("10.96.0.0/12",),
    routes=(Route("10.2.0.0/24", 1500), Route("192.0.2.0/24")),
)
SYN = Packet(CLIENT, 40000, VIP, 80, flags="S")
QUERY = Packet(CLIENT, 40000, VIP, 53, "UDP", length=32)
BOTH = pytest.mark.parametrize("first", [SYN, QUERY], ids=["TCP", "UDP"])


class Talk:
    """A model, a clock, and who sends what."""

    def __init__(self, world: World = WORLD) -> None:
        self.model = Model(world)
        self.now = 1000.0

    def serve(self, at: Address, *backends: Backend) -> None:
        """Changes one service's backends."""
        self.put(at, replace(self.model.world.services[at], inside=backends, outside=backends))

    def put(self, at: Address, service: Service) -> None:
        """Changes one service."""
        self.model.world = replace(self.model.world, services={**self.model.world.services, at: service})

    def send(self, packet: Packet, hook: Hook = Hook.FROM_POD, chosen: Choice | None = None) -> Verdict:
        """What becomes of a packet."""
        return self.model.receive(hook, packet, self.now, chosen=chosen)

    def goes_to(self, packet: Packet, chosen: Backend | None = None) -> str:
        """The address that a pod's packet is sent to."""
        verdict = self.send(packet, chosen=Choice(chosen))
        assert verdict.kind == "forward"
        return verdict.packet.destination

    def answer(self, to: Verdict, flags: str = "SA", hook: Hook = Hook.FROM_POD) -> Verdict:
        """What becomes of the answer to a packet that left."""
        return self.send(answer_to(to.packet, flags), hook)

    def open(self, packet: Packet, hook: Hook = Hook.FROM_POD) -> Verdict:
        """A first packet and its answer; gives the first as it left."""
        there = self.send(packet, hook)
        assert self.answer(there).packet.tuple == packet.tuple.reverse
        return there


def answer_to(packet: Packet, flags: str) -> Packet:
    """What the receiver of a packet sends back to where it seems to come from."""
    return replace(packet.readdressed(packet.tuple.reverse), flags=flags if packet.protocol == "TCP" else "", ttl=64)


def client(flags: str) -> Packet:
    """A segment of the client's."""
    return replace(SYN, flags=flags)


@pytest.fixture
def talk() -> Talk:
    return Talk()


# A packet and its answer


@BOTH
def test_S28_the_backend_sees_the_pod_that_called(talk: Talk, first: Packet) -> None:
    """Only the destination changes, and the packet goes straight into the backend's pod."""
    verdict = talk.send(first)
    assert (verdict.kind, verdict.to, verdict.opened) == ("forward", BACKEND, True)
    port = 8080 if first is SYN else 5353
    assert verdict.packet == replace(first, destination=BACKEND, destination_port=port)
    assert verdict.counted == ("new_flow",)


@BOTH
def test_N30_the_answer_comes_from_the_address_that_was_called(talk: Talk, first: Packet) -> None:
    """The client never sees a backend's address, though both are behind one bridge."""
    back = talk.answer(talk.send(first))
    assert (back.kind, back.to) == ("forward", CLIENT)
    assert back.packet.tuple == first.tuple.reverse


def test_S14_TCP_and_UDP_on_one_number_are_two_ports(talk: Talk) -> None:
    """A datagram to TCP's port 80 calls no service."""
    verdict = talk.send(replace(SYN, protocol="UDP", flags=""))
    assert verdict == Verdict("drop", verdict.packet, reason="drop_no_service", refused=True)


def test_S29_C1_a_pod_that_calls_itself_sees_the_node(talk: Talk) -> None:
    """Hairpin: with its own address as source its answer would never leave it."""
    called = replace(SYN, source=BACKEND)
    there = talk.send(called)
    assert there.packet.tuple == FlowTuple(BRIDGE, 40000, BACKEND, 8080)
    assert talk.answer(there).packet.tuple == called.tuple.reverse


def test_S30_C4_the_node_calls_with_its_own_address(talk: Talk) -> None:
    """Its answers come back to it anyway: up to its own stack, with the service's address."""
    called = replace(SYN, source=BRIDGE)
    there = talk.send(called, Hook.TO_BRIDGE)
    back = talk.answer(there)
    assert there.packet.source == BRIDGE
    assert (back.kind, back.to, back.packet.tuple) == ("node", "node", called.tuple.reverse)


def test_N90_a_services_answer_for_the_node_comes_in_by_the_bridge(talk: Talk) -> None:
    """Where the route to services leads, or the reverse path filter would drop what comes by the uplink."""
    talk.serve(WEB, FAR)
    there = talk.send(replace(SYN, source=BRIDGE), Hook.TO_BRIDGE)
    assert talk.answer(there, hook=Hook.FROM_UPLINK).to == "bridge"


@pytest.mark.parametrize(("uplink", "up"), [(UPLINK, "uplink"), ("", "node")])
def test_N90_S43_an_external_services_answer_for_the_node_comes_in_by_the_uplink(
    talk: Talk, uplink: str, up: str
) -> None:
    """The node calls it by the uplink; one that no uplink was told of takes it where it is."""
    talk.model.world = replace(WORLD, uplink_address=uplink)
    talk.put(Address(EXTERNAL, 80), Service.for_all(3, FIRST))
    there = talk.send(replace(SYN, source=UPLINK, destination=EXTERNAL), Hook.TO_UPLINK)
    assert (there.to, talk.answer(there).to) == (BACKEND, up)


def test_N72_one_hop_off_where_it_is_routed_only(talk: Talk) -> None:
    """Not within the pods' subnet; TTL 1 goes to the stack as it came, which says so to the sender."""
    assert talk.send(replace(SYN, ttl=1)).packet.ttl == 1
    talk.serve(WEB, FAR)
    far = replace(SYN, source_port=2)
    assert talk.send(far).packet.ttl == 63
    last = replace(SYN, source_port=3, ttl=1)
    assert talk.send(last) == Verdict("pass", last, "stack", opened=True)


def test_N71_what_is_too_long_for_the_way_is_the_stacks(talk: Talk) -> None:
    """It tells the sender; so does it with what it alone may know a way for."""
    talk.serve(WEB, FAR)
    assert talk.send(replace(SYN, length=1540)).kind == "pass"
    talk.serve(WEB, Backend(NOWHERE, 8080, 6))
    lost = replace(SYN, source_port=2)
    assert talk.send(lost).packet == replace(lost, destination=NOWHERE, destination_port=8080)
    node = replace(SYN, source=BRIDGE, source_port=3)
    assert talk.send(node, Hook.TO_BRIDGE).reason == "drop_no_route"


def test_S38_an_address_that_no_service_owns_leads_nowhere(talk: Talk) -> None:
    """Dropped by name from everywhere but by the uplink outwards, where another machine may have it."""
    lost = replace(SYN, destination="10.96.9.9")
    assert {hook: talk.send(lost, hook).reason for hook in Hook} == {
        Hook.FROM_POD: "drop_no_service",
        Hook.FROM_UPLINK: "drop_no_service",
        Hook.TO_BRIDGE: "drop_no_service",
        Hook.TO_UPLINK: "",
    }


def test_S37_C2_another_port_of_a_service_is_refused(talk: Talk) -> None:
    """An address that no service owns is silent; and nobody answers a RST."""
    other = replace(SYN, destination_port=81)
    refused = [talk.send(one).refused for one in (other, replace(other, destination="10.96.9.9"))]
    assert [*refused, talk.send(replace(other, flags="R")).refused] == [True, False, False]
    talk.model.world = replace(WORLD, service_networks=(), cluster_ips=frozenset({VIP}))
    assert talk.send(other).refused
    assert talk.send(replace(other, source=UPLINK), Hook.TO_UPLINK).refused


def test_S62_S63_S67_who_is_in_no_source_range_is_dropped(talk: Talk) -> None:
    """Pods too, by their own address, and before it matters who would answer."""
    talk.put(WEB, replace(Service.for_all(1, FIRST), sources=("192.0.2.0/24",)))
    assert talk.send(SYN).counted == ("drop_source_range",)
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == ()
    assert talk.send(replace(SYN, source=OUTSIDE), Hook.FROM_UPLINK).packet.destination == BACKEND
    talk.put(WEB, Service(1, sources=()))
    assert talk.send(SYN).counted == ("drop_source_range",)


def test_S3_what_calls_no_service_stays_as_it_is(talk: Talk) -> None:
    """No NAT, no flow."""
    direct = Packet(CLIENT, 1, SECOND, 22, flags="S")
    assert talk.send(direct) == Verdict("pass", direct, "stack")
    assert talk.model.flows.main == talk.model.flows.half_open == {}


# Which backends


def test_S26_any_backend_of_the_set_may_be_chosen(talk: Talk) -> None:
    """And no other."""
    talk.serve(WEB, FIRST, OTHER)
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == (FIRST, OTHER)
    assert talk.goes_to(SYN, OTHER) == SECOND
    with pytest.raises(Impossible, match=r"10\.2\.0\.3:8080"):
        talk.send(replace(SYN, source_port=2), chosen=Choice(FAR))


def test_N103_a_SYN_sent_again_goes_the_same_way(talk: Talk) -> None:
    """To the same backend while the set is the same, and it is no new flow."""
    talk.serve(WEB, FIRST, OTHER)
    assert talk.goes_to(SYN, OTHER) == SECOND
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == (OTHER,)
    again = talk.send(SYN)
    assert (again.packet.destination, again.opened) == (SECOND, False)
    with pytest.raises(Impossible):
        talk.send(SYN, chosen=Choice(FIRST))


@pytest.mark.parametrize(
    ("hook", "source", "backends"),
    [
        pytest.param(Hook.FROM_POD, CLIENT, (FIRST, FAR), id="S52 pod"),
        pytest.param(Hook.TO_BRIDGE, BRIDGE, (FIRST, FAR), id="S53 node"),
        pytest.param(Hook.FROM_UPLINK, REMOTE, (FIRST, FAR), id="S54 another node's pod"),
        pytest.param(Hook.FROM_UPLINK, OUTSIDE, (FIRST,), id="S50 outside"),
        pytest.param(Hook.TO_UPLINK, UPLINK, (FIRST, FAR), id="S43 S53 node, by the uplink"),
        pytest.param(Hook.TO_UPLINK, CLIENT, (), id="what leaves was met before"),
    ],
)
def test_S50_to_S55_who_calls_decides_on_the_set(talk: Talk, hook: Hook, source: str, backends: tuple[Backend]) -> None:
    """externalTrafficPolicy Local: callers outside have the local backends, those in the cluster all."""
    talk.put(Address(EXTERNAL, 80), Service(3, inside=(FIRST, FAR), outside=(FIRST,)))
    assert talk.model.choices(replace(SYN, source=source, destination=EXTERNAL), hook, talk.now) == backends


def test_S36_S51_backends_that_the_policy_keeps_away_are_a_drop(talk: Talk) -> None:
    """Not a refusal: the service works, elsewhere."""
    talk.put(WEB, Service(1, inside=(FIRST,), drop_outside=True))
    assert talk.send(replace(SYN, source=OUTSIDE), Hook.FROM_UPLINK).reason == "drop_policy"
    talk.put(WEB, Service(1, outside=(FIRST,), drop_inside=True))
    assert talk.send(SYN).reason == "drop_policy"


def test_S41_a_service_without_backends_refuses(talk: Talk) -> None:
    """Nothing is translated and no flow is entered."""
    talk.serve(WEB)
    assert talk.send(SYN) == Verdict("drop", SYN, reason="drop_no_backend", refused=True)
    assert talk.model.flows.half_open == {}


@pytest.mark.parametrize(
    ("backend", "source"), [(FIRST, OUTSIDE), (FAR, UPLINK)], ids=["S50 C4 here", "S49 C4 elsewhere"]
)
def test_C4_a_client_from_elsewhere_that_is_sent_elsewhere_is_masqueraded(
    talk: Talk, backend: Backend, source: str
) -> None:
    """The answer must come back through this node; from a backend on it, it does, and the client is seen."""
    talk.serve(WEB, backend)
    called = replace(SYN, source=OUTSIDE)
    there = talk.send(called, Hook.FROM_UPLINK)
    assert there.packet.source == source
    back = talk.answer(there, hook=Hook.FROM_POD if backend is FIRST else Hook.FROM_UPLINK)
    assert back.packet.tuple == called.tuple.reverse


def test_S54_another_nodes_pod_is_masqueraded_on_its_way_back_out(talk: Talk) -> None:
    """Else the answer would go straight to it and the flow would die."""
    talk.put(Address(EXTERNAL, 80), Service.for_all(3, Backend("10.2.0.9", 8080, 7)))
    verdict = talk.send(replace(SYN, source=REMOTE, destination=EXTERNAL), Hook.FROM_UPLINK)
    assert (verdict.packet.source, verdict.to) == (UPLINK, "route")


# Session affinity


def sticky(talk: Talk, *backends: Backend) -> Callable[[int], tuple[Backend, ...]]:
    """Makes the service one with session affinity of ten seconds; gives the choices by source port."""
    talk.put(WEB, Service.for_all(1, *backends, affinity=10))
    return lambda port: talk.model.choices(replace(SYN, source_port=port), Hook.FROM_POD, talk.now)


def test_S73_N106_a_client_keeps_its_backend_whatever_its_port(talk: Talk) -> None:
    """Other clients and other service ports are free."""
    choices = sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    assert choices(2) == (OTHER,)
    with pytest.raises(Impossible, match="S73"):
        talk.send(replace(SYN, source_port=2), chosen=Choice(FIRST))
    assert talk.model.choices(replace(SYN, source=SECOND), Hook.FROM_POD, talk.now) == (FIRST, OTHER)


def test_S74_each_new_connection_restarts_the_time(talk: Talk) -> None:
    """Packets of an open one do not."""
    choices = sticky(talk, FIRST, OTHER)
    talk.send(SYN, chosen=Choice(OTHER))
    talk.now += 9
    second = talk.open(replace(SYN, source_port=2))
    talk.now += 9
    talk.answer(second, "A")
    assert choices(3) == (OTHER,)
    talk.now += 2
    assert choices(3) == (FIRST, OTHER)


def test_S75_S79_all_addresses_and_both_sets_share_what_binds_a_client(talk: Talk) -> None:
    """One service port, called at two addresses."""
    sticky(talk, FIRST, OTHER)
    talk.put(Address(EXTERNAL, 80), Service(1, (OTHER, FIRST), (FIRST,), affinity=10))
    talk.goes_to(SYN, OTHER)
    assert talk.model.choices(replace(SYN, destination=EXTERNAL), Hook.FROM_POD, talk.now) == (OTHER,)


def test_S76_a_backend_that_left_the_set_binds_nobody(talk: Talk) -> None:
    """The client is balanced again at once, and does not return."""
    sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    choices = sticky(talk, FIRST)
    assert choices(2) == (FIRST,)
    talk.goes_to(replace(SYN, source_port=2), FIRST)
    assert sticky(talk, FIRST, OTHER)(3) == (FIRST,)


def test_S78_affinity_ends_with_its_setting(talk: Talk) -> None:
    """Switching it off is live."""
    sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    talk.put(WEB, Service.for_all(1, FIRST, OTHER))
    assert talk.model.choices(replace(SYN, source_port=2), Hook.FROM_POD, talk.now) == (FIRST, OTHER)


# A flow's life


def test_N4_a_TCP_flow_waits_as_its_answers_claim_a_UDP_flow_as_both(talk: Talk) -> None:
    """With the answer both directions of either stand in the main table, and nothing in the other."""
    talk.send(SYN)
    assert list(talk.model.flows.half_open) == [FlowTuple(BACKEND, 8080, CLIENT, 40000)]
    talk.send(QUERY)
    assert len(talk.model.flows.half_open) == 3
    talk.open(SYN)
    talk.open(QUERY)
    assert talk.model.flows.half_open == {}
    assert len(talk.model.flows.main) == 4


def test_N108_each_direction_counts_its_own_packets(talk: Talk) -> None:
    """Those of layer 3 as they arrive, from the first on."""
    talk.send(QUERY)
    there = talk.send(replace(QUERY, length=100))
    talk.answer(there)
    forward, back = talk.model.flows.main[QUERY.tuple], talk.model.flows.main[there.packet.tuple.reverse]
    assert (forward.packets, forward.octets, back.packets, back.octets) == (2, 132, 1, 100)


def test_17457_the_backend_that_answers_first_has_the_connection(talk: Talk) -> None:
    """The set changes between two SYNs: the slower one's answer is dropped by name."""
    slow = talk.send(SYN)
    talk.serve(WEB, OTHER)
    quick = talk.send(SYN)
    assert talk.answer(quick).packet.tuple == SYN.tuple.reverse
    assert talk.answer(slow) == Verdict("drop", answer_to(slow.packet, "SA"), reason="drop_late_answer")
    assert talk.goes_to(client("A")) == SECOND


def test_17457_N5_of_a_connection_that_gave_way_nothing_is_left(talk: Talk) -> None:
    """The quicker backend resets, the slower one's answer comes after all: that one has the connection, whole."""
    slow = talk.send(SYN)
    talk.serve(WEB, OTHER)
    talk.answer(talk.open(SYN), "R")
    assert talk.answer(slow).packet.tuple == SYN.tuple.reverse
    assert set(talk.model.flows.main) == {SYN.tuple, slow.packet.tuple.reverse}


def test_N38_a_RST_leaves_an_answered_flow_closing(talk: Talk) -> None:
    """It is passed on, and the flow lives four minutes for what is still on its way."""
    there = talk.open(SYN)
    assert talk.answer(there, "R").packet.tuple == SYN.tuple.reverse
    talk.now += 239
    assert talk.goes_to(client("A")) == BACKEND
    talk.now += 241
    assert talk.send(client("A")).opened


def test_N38_N101_a_RST_that_its_sender_did_not_send_is_forgotten(talk: Talk) -> None:
    """It goes on sending a second later, and the connection has its long life back."""
    there = talk.open(SYN)
    talk.answer(there, "R")
    talk.now += 0.5
    talk.answer(there, "A")
    assert talk.model.flows.main[there.packet.tuple.reverse].rst
    talk.now += 1
    talk.answer(there, "A")
    talk.now += 241
    assert not talk.send(client("A")).opened


def test_a_RST_ends_a_half_open_flow(talk: Talk) -> None:
    """Refused or given up: the next attempt is a new flow."""
    there = talk.send(SYN)
    assert talk.answer(there, "RA").packet.tuple == SYN.tuple.reverse
    assert talk.model.flows.half_open == {}
    talk.send(SYN)
    talk.send(client("R"))
    assert talk.model.flows.half_open == {}


def test_N39_one_FIN_is_half_a_close(talk: Talk) -> None:
    """With one the flow lives on for long, with both it is closing."""
    there = talk.open(SYN)
    talk.send(client("FA"))
    talk.now += 241
    assert not talk.send(client("A")).opened
    talk.answer(there, "FA")
    talk.now += 241
    assert talk.send(client("A")).opened


@pytest.mark.parametrize("ended", ["RST", "FINs", "the backend is gone"])
def test_N102_a_SYN_on_what_is_over_chooses_anew(talk: Talk, ended: str) -> None:
    """On a live connection it chooses nothing."""
    there = talk.open(SYN)
    assert talk.goes_to(SYN) == BACKEND
    if ended == "the backend is gone":
        talk.serve(WEB, OTHER)
    else:
        talk.serve(WEB, OTHER, FIRST)
        for flags in ["R"] if ended == "RST" else ["FA"]:
            talk.send(client(flags))
            talk.answer(there, flags)
    assert talk.goes_to(SYN, OTHER) == SECOND


def test_C8_S88_a_connection_stays_with_a_backend_that_is_gone(talk: Talk) -> None:
    """Both ways; and so does one whose service was deleted (S89)."""
    there = talk.open(SYN)
    talk.serve(WEB, OTHER)
    talk.now += 2
    assert talk.goes_to(client("A")) == BACKEND
    talk.model.world = replace(talk.model.world, services={})
    assert talk.answer(there, "A").packet.tuple == SYN.tuple.reverse


@pytest.mark.parametrize("answered", [True, False])
def test_C9_N105_a_datagram_chooses_again_at_once(talk: Talk, answered: bool) -> None:
    """Within the second, too; nothing of the old flow is left."""
    there = talk.open(QUERY) if answered else talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    assert talk.goes_to(QUERY) == SECOND
    assert there.packet.tuple.reverse not in {**talk.model.flows.main, **talk.model.flows.half_open}


def test_C9_datagrams_end_with_their_service(talk: Talk) -> None:
    """Nobody is left: the next one is refused and the flow is over."""
    talk.open(QUERY)
    talk.serve(NAMES)
    assert talk.send(QUERY).reason == "drop_no_backend"
    assert talk.model.flows.main == {}


def test_C9_another_backend_at_the_same_place_is_another(talk: Talk) -> None:
    """Its generation tells."""
    talk.open(QUERY)
    talk.serve(NAMES, replace(DNS, generation=2))
    assert talk.send(QUERY).opened


def test_C9_a_late_answer_is_still_the_services(talk: Talk) -> None:
    """It is the caller's next packet that chooses again."""
    there = talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    assert talk.answer(there).packet.tuple == QUERY.tuple.reverse


def test_S94_a_draining_backend_keeps_its_datagrams(talk: Talk) -> None:
    """Until it serves no more."""
    talk.open(QUERY)
    talk.serve(NAMES, DNS_TWO)
    talk.model.world = replace(talk.model.world, draining=frozenset({DNS}))
    assert talk.goes_to(QUERY) == BACKEND


@pytest.mark.parametrize(
    ("protocol", "state"), [("UDP", State.NEW), ("UDP", State.ESTABLISHED), ("TCP", "established")]
)
@pytest.mark.parametrize("over", [False, True])
def test_N42_a_flow_is_over_at_its_timeout(talk: Talk, protocol: Protocol, state: State, over: bool) -> None:
    """Whoever collects it: N34, N36."""
    first, later = (SYN, client("A")) if protocol == "TCP" else (QUERY, QUERY)
    _ = talk.send(first) if state is State.NEW else talk.open(first)
    talk.now += TIMEOUTS[protocol, state] + (1 if over else -1)
    assert talk.send(later).opened == over


def test_N37_a_claim_that_nobody_answered_is_forgotten(talk: Talk) -> None:
    """What its backend sends then is its own."""
    there = talk.send(SYN)
    talk.now += 121
    late = talk.answer(there)
    assert late == Verdict("pass", answer_to(there.packet, "SA"), "stack")


def test_N34_to_N39_the_models_timeouts_are_the_kernels() -> None:
    """Stated twice on purpose; here is where they must agree."""
    assert {key: float(layout.timeout(key[0], layout.FlowState[key[1].name])) for key in TIMEOUTS} == TIMEOUTS


@BOTH
def test_N5_either_direction_refreshes_both_once_a_second(talk: Talk, first: Packet) -> None:
    """Within the second nothing is written but counts."""
    there = talk.open(first)
    began = talk.now
    talk.now += 0.9
    assert not talk.answer(there, "A").walked
    assert {one.last_seen for one in talk.model.flows.main.values()} == {began}
    talk.now += 0.2
    assert talk.answer(there, "A").walked
    assert {one.last_seen for one in talk.model.flows.main.values()} == {talk.now}


@BOTH
@pytest.mark.parametrize("lost", ["there", "back"])
def test_N5_a_half_that_is_gone_is_made_anew(talk: Talk, first: Packet, lost: str) -> None:
    """By the next packet of the other direction that looks."""
    there = talk.open(first)
    before = {key: one.to for key, one in talk.model.flows.main.items()}
    talk.model.flows.forget(first.tuple if lost == "there" else there.packet.tuple.reverse)
    talk.now += 2
    _ = talk.answer(there, "A") if lost == "there" else talk.send(replace(first, flags="A" if first is SYN else ""))
    assert {key: one.to for key, one in talk.model.flows.main.items()} == before


# Collisions

DIRECT = Packet(CLIENT, 40000, BACKEND, 8080, flags="S")


@pytest.mark.parametrize("order", [(DIRECT, SYN), (SYN, DIRECT)], ids=["direct first", "service first"])
def test_N93_a_direct_connection_and_a_services_are_told_apart(talk: Talk, order: tuple[Packet, Packet]) -> None:
    """The first keeps its port, the second is given another; each has its own answers."""
    one, two = (talk.send(packet) for packet in order)
    assert one.packet.source_port == 40000
    assert two.packet.source_port in PORTS
    for left, called in zip((one, two), order, strict=True):
        assert talk.answer(left).packet.tuple == called.tuple.reverse


def test_N94_one_port_to_two_services_with_one_backend(talk: Talk) -> None:
    """The second is given a port of the kernel's choice, which must be a free one in its range."""
    talk.put(Address(VIP_TWO, 80), Service.for_all(3, FIRST))
    talk.send(SYN)
    second = replace(SYN, destination=VIP_TWO)
    assert talk.send(second, chosen=Choice(FIRST, 50000)).packet.source_port == 50000
    assert talk.send(second, chosen=Choice(FIRST, 50000)).opened is False
    with pytest.raises(Impossible, match="N103"):
        talk.send(second, chosen=Choice(FIRST, 50001))
    talk.put(Address(EXTERNAL, 80), Service.for_all(4, FIRST))
    with pytest.raises(Impossible, match="N93"):
        talk.send(replace(SYN, destination=EXTERNAL), chosen=Choice(FIRST, 50000))


def test_N103_a_port_that_another_flow_has_left_may_be_taken_over(talk: Talk) -> None:
    """The kernel tries its ports in one order: what was passed over at first may be free for the SYN sent again."""
    talk.open(DIRECT)
    other = talk.open(replace(DIRECT, source_port=50001))
    talk.send(SYN, chosen=Choice(FIRST, 50000))
    talk.answer(other, "R")
    assert talk.send(SYN, chosen=Choice(FIRST, 50001)).packet.source_port == 50001


def test_N103_a_claim_that_is_over_binds_no_port(talk: Talk) -> None:
    """After two minutes without an answer a first packet may leave by another port than before."""
    talk.open(DIRECT)
    talk.send(SYN, chosen=Choice(FIRST, 50000))
    talk.now += 121
    again = talk.send(SYN, chosen=Choice(FIRST, 50001))
    assert (again.packet.source_port, again.opened) == (50001, True)


def test_N9_N15_a_port_is_kept_where_nothing_is_in_its_way(talk: Talk) -> None:
    """The kernel may not choose another without need."""
    with pytest.raises(Impossible, match="N9"):
        talk.send(SYN, chosen=Choice(FIRST, 50000))


def test_N97_two_masqueraded_clients_never_share_a_tuple(talk: Talk) -> None:
    """Behind one address, with one source port, to one backend."""
    talk.serve(WEB, FAR)
    calls = [replace(SYN, source=source) for source in (OUTSIDE, "192.0.2.10")]
    left = [talk.send(call, Hook.FROM_UPLINK) for call in calls]
    assert len({one.packet.tuple for one in left}) == 2
    for one, call in zip(left, calls, strict=True):
        assert talk.answer(one, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


def test_N95_a_new_connection_takes_a_closed_ones_port(talk: Talk) -> None:
    """At once, and it is not changed for it."""
    talk.answer(talk.open(DIRECT), "RA")
    assert talk.send(SYN).packet.source_port == 40000


def test_N95_a_connection_that_gives_way_goes_whole(talk: Talk) -> None:
    """Or the half that stays would take the newcomer's answers with it once it is found to be over."""
    talk.answer(talk.open(DIRECT), "RA")
    talk.send(SYN)
    assert talk.model.flows.main == {}


def test_N95_a_taken_over_answer_is_not_taken_back(talk: Talk) -> None:
    """A UDP flow whose backend is gone leaves its tuple to the next; when it goes on, that one stays whole."""
    talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    talk.put(Address(VIP_TWO, 53, "UDP"), Service.for_all(3, replace(DNS, number=9)))
    second = replace(QUERY, destination=VIP_TWO)
    there = talk.send(second)
    assert there.packet.tuple == FlowTuple(CLIENT, 40000, BACKEND, 5353, "UDP")
    assert talk.goes_to(QUERY) == SECOND
    assert talk.answer(there).packet.tuple == second.tuple.reverse


@pytest.mark.parametrize("order", [("direct", "service"), ("service", "direct")], ids=" then ".join)
def test_N93_the_nodes_own_connections_are_told_apart(talk: Talk, order: tuple[str, str]) -> None:
    """Directly by the uplink, and through a service by the bridge; answers come in where their routes lead."""
    talk.serve(WEB, FAR)
    ways = {
        "direct": (Hook.TO_UPLINK, Packet(BRIDGE, 40000, REMOTE, 8080, flags="S"), "pass", "node"),
        "service": (Hook.TO_BRIDGE, Packet(BRIDGE, 40000, VIP, 80, flags="S"), "forward", "bridge"),
    }
    left = {way: talk.send(ways[way][1], ways[way][0]) for way in order}
    assert left[order[1]].packet.source_port in PORTS
    for way, there in left.items():
        _, called, kind, up = ways[way]
        assert (there.kind, there.packet.ttl) == (kind, 64)
        back = talk.answer(there, hook=Hook.FROM_UPLINK)
        assert back.packet.tuple == called.tuple.reverse
        plain = there.packet == called
        assert (back.kind, back.to) == (("pass", "stack") if plain else ("node", up))


def test_C8_a_connection_gives_its_tuple_to_no_newcomer(talk: Talk) -> None:
    """Though its backend has left the service."""
    talk.open(SYN)
    talk.put(Address(VIP_TWO, 80), Service.for_all(3, FIRST))
    talk.serve(WEB, OTHER)
    assert talk.send(replace(SYN, destination=VIP_TWO)).packet.source_port in PORTS


def test_N22_N23_only_a_flow_whose_ports_are_taken_may_be_dropped(talk: Talk) -> None:
    """Its own port, and at least one more."""
    given_up = Choice(gave_up=True)
    with pytest.raises(Impossible, match="N22"):
        talk.send(SYN, chosen=given_up)
    talk.send(DIRECT)
    with pytest.raises(Impossible, match="N22"):
        talk.send(SYN, chosen=given_up)
    talk.send(replace(DIRECT, source_port=50000))
    assert talk.send(SYN, chosen=given_up).counted == ("drop_ports_taken",)


def test_N5_a_lost_half_whose_tuple_is_anothers_is_not_taken_back(talk: Talk) -> None:
    """The flow that lost it goes on by another port."""
    there = talk.open(SYN)
    talk.model.flows.forget(there.packet.tuple.reverse)
    direct = talk.open(DIRECT)
    talk.now += 2
    again = talk.send(client("A"))
    assert again.packet.source_port in PORTS
    assert talk.answer(direct, "A").packet.tuple == DIRECT.tuple.reverse
    assert talk.answer(again, "A").packet.tuple == SYN.tuple.reverse


def test_N5_a_half_open_flow_is_made_whole(talk: Talk) -> None:
    """A lost claim is claimed anew by what is sent again; by another port if it is another's by now."""
    there = talk.send(QUERY)
    talk.model.flows.forget(there.packet.tuple.reverse)
    assert talk.send(QUERY).packet == there.packet
    talk.model.flows.forget(there.packet.tuple.reverse)
    talk.send(replace(QUERY, destination=BACKEND, destination_port=5353))
    again = talk.send(QUERY)
    assert again.packet.source_port in PORTS
    assert talk.answer(again).packet.tuple == QUERY.tuple.reverse


def test_S40_a_known_flows_packets_teach_nothing(talk: Talk) -> None:
    """But its SYN does: a pod that comes back behind another interface says so first."""
    talk.open(SYN)
    talk.model.receive(Hook.FROM_POD, replace(client("A"), ttl=9), talk.now + 2, interface="pod9")
    assert talk.model.world.endpoints[CLIENT] == "pod2"
    talk.model.receive(Hook.FROM_POD, SYN, talk.now + 2, interface="pod9")
    assert talk.model.world.endpoints[CLIENT] == "pod9"


def test_N72_the_longest_prefix_has_the_way() -> None:
    """As in any routing table."""
    world = replace(WORLD, routes=(Route("0.0.0.0/0", 1400), Route("10.2.0.0/24", 9000), Route("10.0.0.0/8", 1)))
    assert [world.route(at) for at in (REMOTE, OUTSIDE)] == [Route("10.2.0.0/24", 9000), Route("0.0.0.0/0", 1400)]


def test_N37_what_was_never_answered_does_not_close() -> None:
    """Whatever stands in its way."""
    entry = Entry(SYN.tuple)
    assert [replace(entry, state=state).timeout(closing=True) for state in (State.NEW, State.ESTABLISHED)] == [120, 240]


def test_S40_pods_are_found_where_they_send_from(talk: Talk) -> None:
    """As a bridge learns; but the node's own addresses are nobody else's."""
    for source in ("10.1.0.77", BRIDGE, OUTSIDE):
        talk.model.receive(Hook.FROM_POD, replace(SYN, source=source), talk.now, interface="pod77")
    learned = talk.model.world.endpoints
    assert learned == {**WORLD.endpoints, "10.1.0.77": "pod77"}


def test_a_datagram_has_no_flags() -> None:
    """A packet that cannot be is not made."""
    with pytest.raises(ValueError, match="no flags"):
        replace(QUERY, flags="S")
