"""Ways in: who calls from where, which backends he may get, and what a backend sees of him."""

from __future__ import annotations

from collections import Counter

import pytest
from frames import DROP, PASS, REDIRECT, Outcome, Packet, addresses, answer_to, key_of, reverse, tcp, udp
from packetbed import Bed, Serving
from places import BACKEND, CLIENT, FAR, MAC, NODE, REMOTE, SECOND, UPLINK, UPLINK_MAC, VIP

from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.kernel.layout import EndpointKind, Family, Hook
from pydatapath.plan import FrontendKind

pytestmark = pytest.mark.same_everywhere

POD_ELSEWHERE = "10.2.0.7"  # in the cluster's networks, behind the uplink
BALANCER = "203.0.113.10"  # a load balancer's address, or an external one
HERE, ELSEWHERE = f"{BACKEND}:8080", f"{REMOTE}:8080"
CALLERS = {
    "a pod": (Hook.FROM_POD, CLIENT),
    "the node": (Hook.TO_BRIDGE, NODE),
    "a pod elsewhere": (Hook.FROM_UPLINK, POD_ELSEWHERE),
    "outside": (Hook.FROM_UPLINK, FAR),
}
CALLER = pytest.mark.parametrize("caller", CALLERS)
LOCAL = Serving([HERE, ELSEWHERE], [HERE], outside="local")


def calls(caller: str, destination: str = BALANCER, sport: int = 40000) -> tuple[Hook, Packet]:
    """The hook that a caller's SYN meets, and the SYN."""
    hook, source = CALLERS[caller]
    return hook, tcp(source, sport, destination, 80)


def reached(bed: Bed, caller: str, count: int = 64) -> set[str]:
    """The backends that this many connections of a caller get."""
    found = set()
    for port in range(count):
        outcome = bed.run(*calls(caller, sport=40000 + port))
        assert outcome.verdict == REDIRECT
        found.add(outcome.ip.dst)
    return found


# Which backends


@CALLER
def test_S49_policy_Cluster_gives_everybody_all_backends(bed: Bed, caller: str):
    """Wherever the call comes from."""
    bed.serve({f"{BALANCER}:80/TCP": [HERE, ELSEWHERE]})
    assert reached(bed, caller) == {BACKEND, REMOTE}


@CALLER
def test_S50_S52_S53_external_policy_Local_is_for_callers_outside(bed: Bed, caller: str):
    """They get the backends of this node; pods and the node itself go to any, as if by the balancer and back."""
    bed.serve({f"{BALANCER}:80/TCP": LOCAL})
    assert reached(bed, caller) == ({BACKEND} if caller == "outside" else {BACKEND, REMOTE})


@CALLER
def test_S35_internal_policy_Local_is_for_everybody(bed: Bed, caller: str):
    """At a cluster IP it decides for all callers."""
    bed.serve({f"{BALANCER}:80/TCP": Serving([HERE, ELSEWHERE], [HERE], inside="local", outside="local")})
    assert reached(bed, caller) == {BACKEND}


@CALLER
def test_S51_nothing_here_but_elsewhere_is_dropped_for_callers_outside(bed: Bed, caller: str):
    """By name, and silently: a balancer's health check has led them elsewhere by the next try."""
    bed.serve({f"{BALANCER}:80/TCP": Serving([ELSEWHERE], [], outside="local")})
    outcome = bed.run(*calls(caller))
    assert outcome.verdict == (DROP if caller == "outside" else REDIRECT)
    assert bed.counted() == {"drop_policy" if caller == "outside" else "new_flow": 1}


@CALLER
def test_S36_nothing_here_but_elsewhere_is_dropped_for_all_at_a_cluster_IP(bed: Bed, caller: str):
    """internalTrafficPolicy Local."""
    bed.serve({f"{BALANCER}:80/TCP": Serving([ELSEWHERE], [], inside="local", outside="local")})
    assert bed.run(*calls(caller)).verdict == DROP
    assert bed.counted() == {"drop_policy": 1}


@CALLER
def test_S41_nothing_anywhere_is_refused_whatever_the_policy(bed: Bed, caller: str):
    """A RST comes back by the way that the call came."""
    bed.serve({f"{BALANCER}:80/TCP": Serving([], [], inside="local", outside="local")})
    outcome = bed.run(*calls(caller))
    assert (outcome.verdict, outcome.ip.src, outcome.ip.payload.flags) == (REDIRECT, BALANCER, "RA")
    assert bed.counted() == {"drop_no_backend": 1}


# Who may call


RANGED = Serving([HERE], kind="load-balancer-ip", sources=("198.51.100.0/25", "10.1.0.0/24"))


@pytest.mark.parametrize(
    ("hook", "source", "allowed"),
    [
        (Hook.FROM_UPLINK, "198.51.100.127", True),
        (Hook.FROM_UPLINK, "198.51.100.128", False),
        (Hook.FROM_UPLINK, POD_ELSEWHERE, False),
        (Hook.FROM_POD, CLIENT, True),
        (Hook.TO_BRIDGE, NODE, True),
        (Hook.TO_BRIDGE, "192.168.9.1", False),
    ],
)
def test_S62_S63_S64_everybody_is_looked_at_by_his_own_address(bed: Bed, hook: Hook, source: str, allowed: bool):
    """Pods and the node as well; who is in no range is dropped by name."""
    bed.serve({f"{BALANCER}:80/TCP": RANGED, f"{VIP}:80/TCP": [HERE]})
    outcome = bed.run(hook, tcp(source, 40000, BALANCER, 80))
    assert outcome.verdict == (REDIRECT if allowed else DROP)
    assert bed.counted() == {"new_flow" if allowed else "drop_source_range": 1}
    assert bed.run(hook, tcp(source, 40001, VIP, 80)).verdict == REDIRECT  # another service


@pytest.mark.parametrize("kind", ["cluster-ip", "node-port", "external-ip"])
def test_S65_the_services_other_addresses_know_no_ranges(bed: Bed, kind: FrontendKind):
    """Whoever may not call the balancer's may call them."""
    other = f"{UPLINK}:30080" if kind == "node-port" else f"{VIP}:80"
    bed.serve({f"{BALANCER}:80/TCP": RANGED, f"{other}/TCP": RANGED._replace(kind=kind)})
    address, port = other.split(":")
    assert bed.run(Hook.FROM_UPLINK, tcp("198.51.100.200", 4, BALANCER, 80)).verdict == DROP
    assert bed.run(Hook.FROM_UPLINK, tcp("198.51.100.200", 4, address, int(port))).verdict == REDIRECT


def test_S66_C6_without_a_range_of_the_family_nobody_may_call(bed: Bed):
    """Fail closed: what was asked for is that not everybody may."""
    bed.serve({f"{BALANCER}:80/TCP": RANGED._replace(sources=())})
    assert bed.run(*calls("outside")).verdict == DROP
    bed.serve({f"{BALANCER}:80/TCP": RANGED._replace(sources=("0.0.0.0/0",))})
    assert bed.run(*calls("outside")).verdict == REDIRECT


def test_S67_who_may_not_call_learns_nothing_of_backends(bed: Bed):
    """Dropped, where others are refused."""
    bed.serve({f"{BALANCER}:80/TCP": RANGED._replace(cluster=[])})
    assert bed.run(*calls("outside")).verdict == REDIRECT
    assert bed.run(Hook.FROM_UPLINK, tcp("198.51.100.200", 4, BALANCER, 80)).verdict == DROP


def test_S44_S68_a_change_of_ranges_does_not_cut_what_is_open(bed: Bed):
    """New calls are refused, the connection goes on."""
    bed.serve({f"{BALANCER}:80/TCP": RANGED})
    hook, call = calls("outside")
    bed.answer(bed.run(hook, call))
    bed.serve({f"{BALANCER}:80/TCP": RANGED._replace(sources=())})
    assert bed.run(hook, tcp(FAR, 40000, BALANCER, 80, "A")).verdict == REDIRECT
    assert bed.run(hook, tcp(FAR, 40001, BALANCER, 80)).verdict == DROP


# What the backend sees


SEEN = {
    ("a pod", BACKEND): CLIENT,
    ("a pod", REMOTE): CLIENT,
    ("the node", BACKEND): NODE,
    ("the node", REMOTE): NODE,
    ("outside", BACKEND): FAR,
    ("outside", REMOTE): UPLINK,
    ("a pod elsewhere", BACKEND): POD_ELSEWHERE,
    ("a pod elsewhere", REMOTE): UPLINK,
}


@pytest.mark.parametrize(("caller", "backend"), SEEN, ids=lambda value: value.replace(" ", "-"))
def test_C4_S54_the_client_is_seen_wherever_the_answer_comes_back_by_this_node(bed: Bed, caller: str, backend: str):
    """Only a client from elsewhere that is sent elsewhere is hidden behind the node, or its answer would pass us by."""
    bed.serve({f"{BALANCER}:80/TCP": [f"{backend}:8080"]})
    outcome = bed.run(*calls(caller))
    assert addresses(outcome) == (SEEN[caller, backend], 40000, backend, 8080)


@pytest.mark.parametrize("backend", [BACKEND, REMOTE], ids=["here", "elsewhere"])
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_S31_the_answer_reaches_the_client_from_the_address_that_it_called(bed: Bed, make: type, backend: str):
    """Out by the uplink, one hop off; and then both directions are known."""
    protocol = "TCP" if make is tcp else "UDP"
    bed.serve({f"{BALANCER}:80/{protocol}": [f"{backend}:8080"]})
    call = make(FAR, 40000, BALANCER, 80)
    there = bed.run(Hook.FROM_UPLINK, call)
    by = (Hook.FROM_POD, "pod3") if backend == BACKEND else (Hook.FROM_UPLINK, "uplink")
    back = bed.run(by[0], answer_to(there), device=by[1])
    assert (back.verdict, addresses(back), back.ip.ttl) == (REDIRECT, reverse(addresses(call)), 63)
    again = make(FAR, 40000, BALANCER, 80, "A") if make is tcp else call
    bed.confirm(call, Hook.FROM_UPLINK)
    assert not bed.run(Hook.FROM_UPLINK, again).walked
    assert not bed.run(by[0], answer_to(there, "A"), device=by[1]).walked


def test_S29_a_backend_elsewhere_that_gets_itself_sees_the_node_where_it_can_answer(bed: Bed):
    """A pod of another node calls by this one, and is balanced to itself: the bridge's address is none it knows."""
    bed.serve({f"{BALANCER}:80/TCP": [f"{POD_ELSEWHERE}:8080"]})
    assert addresses(bed.run(*calls("a pod elsewhere"))) == (UPLINK, 40000, POD_ELSEWHERE, 8080)


def test_N97_two_clients_with_one_port_are_told_apart_behind_the_node(bed: Bed):
    """Both would be the node's address and the same port at one backend: the second gets another port."""
    bed.serve({f"{BALANCER}:80/TCP": [ELSEWHERE]})
    one, two = tcp(FAR, 40000, BALANCER, 80), tcp("198.51.100.10", 40000, BALANCER, 80)
    there = [bed.run(Hook.FROM_UPLINK, call) for call in (one, two)]
    assert addresses(there[0])[:2] == (UPLINK, 40000)
    assert addresses(there[1])[0] == UPLINK
    assert addresses(there[1])[1] != 40000
    for call, sent in zip((one, two), there, strict=True):
        assert addresses(bed.run(Hook.FROM_UPLINK, answer_to(sent))) == reverse(addresses(call))


def test_S56_a_backend_that_is_this_node_sees_the_client(bed: Bed):
    """An endpoint of the host network: the packet ends here, so nothing has to be hidden."""
    bed.put_endpoint(UPLINK, bed.devices["br0"], MAC[NODE], EndpointKind.NODE)
    bed.serve({f"{BALANCER}:80/TCP": [f"{UPLINK}:8080"]})
    assert addresses(bed.run(*calls("outside"))) == (FAR, 40000, UPLINK, 8080)


# The node itself, at addresses that are routed by its uplink


def own_call(bed: Bed, backend: str) -> tuple[Packet, Outcome]:
    """The node's SYN to a balancer's address on its way out, and what becomes of it."""
    bed.put_endpoint(UPLINK, bed.devices["br0"], MAC[NODE], EndpointKind.NODE)
    bed.serve({f"{BALANCER}:80/TCP": Serving([f"{backend}:8080"], kind="load-balancer-ip")})
    call = tcp(UPLINK, 40000, BALANCER, 80)
    return call, bed.run(Hook.TO_UPLINK, call)


@pytest.mark.parametrize("backend", [BACKEND, REMOTE], ids=["here", "elsewhere"])
def test_S53_the_node_calls_a_balancers_address(bed: Bed, backend: str):
    """Caught where it leaves; the answer comes in by the uplink, where the route to that address leads (rp_filter)."""
    call, there = own_call(bed, backend)
    assert (there.verdict, addresses(there)) == (REDIRECT, (UPLINK, 40000, backend, 8080))
    if backend == BACKEND:
        back = bed.run(Hook.FROM_POD, answer_to(there), device="pod3")
        assert (back.verdict, back.packet[:6].hex(":")) == (REDIRECT, UPLINK_MAC)
    else:
        back = bed.run(Hook.FROM_UPLINK, answer_to(there))
        assert back.verdict == PASS
    assert addresses(back) == reverse(addresses(call))


def test_S43_the_node_is_refused_where_nobody_serves_a_balancers_address(bed: Bed):
    """kube-proxy lets such a packet leave the node."""
    bed.put_endpoint(UPLINK, bed.devices["br0"], MAC[NODE], EndpointKind.NODE)
    bed.serve({f"{BALANCER}:80/TCP": Serving([], kind="load-balancer-ip")})
    outcome = bed.run(Hook.TO_UPLINK, tcp(UPLINK, 40000, BALANCER, 80))
    assert (outcome.verdict, outcome.ip.src, outcome.ip.payload.flags) == (REDIRECT, BALANCER, "RA")


@pytest.mark.parametrize("hook", [Hook.TO_BRIDGE, Hook.TO_UPLINK], ids=["a cluster IP", "a balancer's"])
def test_S56_the_node_calls_a_service_that_it_serves_itself(bed: Bed, hook: Hook):
    """Such as the API server: no address of its own may come in from outside, so its server sees the next hop's."""
    bed.put_endpoint(UPLINK, bed.devices["br0"], MAC[NODE], EndpointKind.NODE)
    called, source = (VIP, NODE) if hook is Hook.TO_BRIDGE else (BALANCER, UPLINK)
    bed.serve({f"{called}:80/TCP": Serving([f"{UPLINK}:6443"], kind="load-balancer-ip")})
    call = tcp(source, 40000, called, 80)
    there = bed.run(hook, call)
    assert (there.verdict, addresses(there)) == (REDIRECT, (str(SERVICE_GATEWAYS[Family.IPV4]), 40000, UPLINK, 6443))
    assert there.packet[:6].hex(":") == MAC[NODE]
    back = bed.run(Hook.TO_BRIDGE, answer_to(there))
    assert (back.verdict, addresses(back)) == (REDIRECT, reverse(addresses(call)))
    assert back.packet[:6].hex(":") == (MAC[NODE] if hook is Hook.TO_BRIDGE else UPLINK_MAC)


# Session affinity


def clients_backends(bed: Bed, client: str, ports: range, destination: str = VIP) -> list[str]:
    """The backends that one client's connections get."""
    return [bed.run(Hook.FROM_POD, tcp(client, port, destination, 80)).ip.dst for port in ports]


def keep(bed: Bed, *backends: str, seconds: int = 10800) -> None:
    """Serves VIP:80 and BALANCER:80 with session affinity."""
    bed.serve({f"{VIP}:80/TCP": Serving([f"{one}:8080" for one in backends], affinity=seconds)})


def test_S73_N106_a_client_keeps_its_backend(bed: Bed):
    """Whatever its port; other clients are spread over all."""
    keep(bed, BACKEND, SECOND)
    assert len(set(clients_backends(bed, CLIENT, range(40000, 40100)))) == 1
    many = [bed.run(Hook.FROM_UPLINK, tcp(f"10.2.1.{host}", 4000, VIP, 80)).ip.dst for host in range(1, 101)]
    assert min(Counter(many).values()) > 25


def test_S74_affinity_ends_after_its_time_and_each_new_connection_restarts_it(bed: Bed):
    """Packets of an open connection do not."""
    keep(bed, BACKEND, SECOND, seconds=100)
    first = clients_backends(bed, CLIENT, range(40000, 40001))[0]
    for port in range(50000, 50010):
        bed.age_affinities(99)
        assert clients_backends(bed, CLIENT, range(port, port + 1)) == [first]
    bed.age_affinities(101)
    moved = set()
    for port in range(50100, 50140):
        moved |= set(clients_backends(bed, CLIENT, range(port, port + 1)))
        bed.age_affinities(101)
    assert moved == {BACKEND, SECOND}


def test_S75_affinity_is_of_the_service_port(bed: Bed):
    """Another service's port knows nothing of it."""
    both = Serving([f"{BACKEND}:8080", f"{SECOND}:8080"], affinity=100)
    bed.serve({f"{VIP}:80/TCP": both, f"{BALANCER}:80/TCP": both})
    seen = set()
    for host in range(1, 40):
        client = f"10.1.0.{100 + host}"
        one, two = (clients_backends(bed, client, range(4000, 4001), to)[0] for to in (VIP, BALANCER))
        seen.add(one == two)
    assert seen == {True, False}


def test_S76_a_client_whose_backend_is_over_is_balanced_anew_and_never_returns(bed: Bed):
    """The old backend's return brings nobody back."""
    keep(bed, BACKEND)
    assert clients_backends(bed, CLIENT, range(40000, 40001)) == [BACKEND]
    keep(bed, SECOND)
    assert clients_backends(bed, CLIENT, range(40001, 40002)) == [SECOND]
    keep(bed, BACKEND, SECOND)
    assert set(clients_backends(bed, CLIENT, range(40002, 40042))) == {SECOND}


def test_S76_S79_a_backend_outside_the_callers_set_is_not_kept(bed: Bed):
    """A pod may have been given a backend elsewhere; under policy Local the same address from outside may not."""
    bed.serve({f"{VIP}:80/TCP": Serving([ELSEWHERE], [HERE], outside="local", affinity=100)})
    assert clients_backends(bed, FAR, range(4000, 4001)) == [REMOTE]
    assert bed.run(Hook.FROM_UPLINK, tcp(FAR, 4001, VIP, 80)).ip.dst == BACKEND


def test_S78_affinity_stays_while_backends_come_and_go(bed: Bed):
    """A change of the set moves nobody whose backend is still in it."""
    keep(bed, SECOND)
    clients_backends(bed, CLIENT, range(40000, 40001))
    keep(bed, BACKEND, "10.1.0.30", SECOND)
    assert set(clients_backends(bed, CLIENT, range(40001, 40033))) == {SECOND}


def test_no_affinity_leaves_no_trace(bed: Bed):
    """The table is for those services that ask for it."""
    bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 80))
    assert not list(bed.maps["affinities"].items())
    assert bed.maps["half_open"].lookup(key_of(tcp(BACKEND, 8080, CLIENT, 40000))) is not None


def test_an_answer_to_the_nodes_own_call_is_no_call_of_a_node_port(bed: Bed):
    """A client's port may be a node port's number: what opens its connection from the other side is the client's."""
    bed.serve({f"{UPLINK}:30080/TCP": Serving([f"{BACKEND}:8080"], kind="node-port")})
    packet = tcp(FAR, 443, UPLINK, 30080, "SA")
    outcome = bed.run(Hook.FROM_UPLINK, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bed.run(Hook.FROM_UPLINK, tcp(FAR, 443, UPLINK, 30080)).verdict == REDIRECT
