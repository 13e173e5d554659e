"""Rules of services that a packet shows: who is seen, protocols on one number, a full table, a changed service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from frames import DROP, PASS, REDIRECT, TCP, Ether, Packet, addresses, answer_to, reverse, sctp, tcp, udp
from packetbed import SIZES, Bed, Serving
from places import MAC, V4, V6, Places, at
from rows import tell
from wire import ports_tried

from pydatapath.kernel.layout import LAYOUTS, EndpointKind, Family, Hook
from pydatapath.reference import Packet as Call

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKE = pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
Make = Callable[..., Packet]
PORTS = {tcp: 80, udp: 53}
TRIES = 100  # CLAIM_TRIES times CLAIM_ROUNDS


def own_uplink(bed: Bed, where: Places) -> None:
    """The uplink's address is the node's own, as `load` writes it."""
    bed.put_endpoint(where.UPLINK, bed.devices["br0"], MAC[where.NODE], EndpointKind.NODE)


def there_and_back(bed: Bed, hook: Hook, call: Packet, *, device: str = "") -> tuple[str, int, str, int]:
    """What a call becomes; its answer, by the pod that was called, must be from where it called."""
    there = bed.run(hook, call, device=device)
    assert there.verdict == REDIRECT
    assert addresses(bed.answer(there)) == reverse(addresses(call))
    return addresses(there)


# Whom a backend sees


@FAMILIES
@MAKE
def test_S30_the_node_calls_a_cluster_IP_with_its_own_address(bed: Bed, where: Places, make: Make):
    """And so does nobody else: a pod is seen as itself (S28)."""
    call = make(where.NODE, 40000, where.VIP, PORTS[make])
    assert there_and_back(bed, Hook.TO_BRIDGE, call)[:3] == (where.NODE, 40000, where.BACKEND)
    call = make(where.CLIENT, 40000, where.VIP, PORTS[make])
    assert there_and_back(bed, Hook.FROM_POD, call)[:3] == (where.CLIENT, 40000, where.BACKEND)


@FAMILIES
@MAKE
def test_C1_hairpin_is_told_by_the_actual_address(bed: Bed, where: Places, make: Make):
    """Nothing here knows a node name: the pod that gets itself sees the bridge, another's call keeps its address."""
    bed.serve({where.called(f"{PORTS[make]}/{make.__name__.upper()}"): [at(where.BACKEND, 7777)]})
    own = make(where.BACKEND, 40000, where.VIP, PORTS[make])
    assert there_and_back(bed, Hook.FROM_POD, own, device="pod3") == (where.NODE, 40000, where.BACKEND, 7777)
    others = make(where.SECOND, 40000, where.VIP, PORTS[make])
    assert there_and_back(bed, Hook.FROM_POD, others, device="pod4") == (where.SECOND, 40000, where.BACKEND, 7777)


@FAMILIES
@MAKE
def test_N30_S40_behind_one_bridge_the_client_sees_the_services_address_only(bed: Bed, where: Places, make: Make):
    """Kubernetes 116453: the bridge would take the answer the short way. Each of its packets, to the client's MAC."""
    call = make(where.CLIENT, 40000, where.VIP, PORTS[make])
    there = bed.run(Hook.FROM_POD, call)
    for flags in ("SA", "A", "PA", "FA"):
        answer = answer_to(there, flags)
        answer[Ether].dst = MAC[where.CLIENT]
        back = bed.run(Hook.FROM_POD, answer, device="pod3")
        assert (back.verdict, addresses(back)) == (REDIRECT, reverse(addresses(call)))
        assert Ether(back.packet).dst == MAC[where.CLIENT]


@FAMILIES
@MAKE
def test_N15_a_source_port_is_kept_where_its_tuple_is_free(bed: Bed, where: Places, make: Make):
    """Whichever it is, low ones too, and whoever else uses it towards others."""
    for client, device in ((where.CLIENT, "pod2"), (where.SECOND, "pod4")):
        for port in (1, 80, 511, 512, 1023, 1024, 32768, 65535):
            call = make(client, port, where.VIP, PORTS[make])
            assert there_and_back(bed, Hook.FROM_POD, call, device=device)[:2] == (client, port)


@FAMILIES
@MAKE
def test_N3_N4_many_flows_with_one_port_share_no_answer(bed: Bed, where: Places, make: Make):
    """One client port, five services of one backend and the backend itself: each answer finds its own question."""
    port = 8080
    vips = [str(ip_address(where.VIP) + number) for number in range(5)]
    bed.serve({where.called(f"80/{make.__name__.upper()}", vip): [at(where.BACKEND, port)] for vip in vips})
    calls = [make(where.CLIENT, 10000, vip, 80) for vip in vips[:2]]
    calls += [make(where.CLIENT, 10000, where.BACKEND, port), *(make(where.CLIENT, 10000, vip, 80) for vip in vips[2:])]
    there = [bed.run(Hook.FROM_POD, call) for call in calls]
    taken = [one for one in there if one.verdict != DROP]
    assert len({addresses(one) for one in taken}) == len(taken) >= 5
    for call, one in zip(calls, there, strict=True):
        if one.verdict == REDIRECT:
            assert addresses(bed.answer(one)) == reverse(addresses(call))
    assert bed.counted().get("drop_ports_taken", 0) == len(calls) - len(taken)


@FAMILIES
@MAKE
def test_N22_N23_F19_where_no_port_is_left_only_the_new_flow_fails_by_name(bed: Bed, where: Places, make: Make):
    """Of the ports that it may leave from all but the last are taken: it leaves from that. All are: it is dropped and
    counted, and all else goes on.
    """
    protocol, listens = make.__name__.upper(), 8080 if make is tcp else 5353
    ports = ports_tried(Call(where.CLIENT, 10000, where.VIP, PORTS[make], protocol), TRIES)
    assert ports[-1] not in ports[:-1], "this test must choose another number for its caller"
    call = make(where.CLIENT, 10000, where.VIP, PORTS[make])
    taken = [make(where.CLIENT, port, where.BACKEND, listens) for port in dict.fromkeys(ports)]
    for direct in taken[:-1]:
        bed.run(Hook.FROM_POD, direct)
    assert there_and_back(bed, Hook.FROM_POD, call)[:2] == (where.CLIENT, ports[-1])
    bed.forget_flows()
    for direct in taken:
        bed.run(Hook.FROM_POD, direct)
    outcome = bed.run(Hook.FROM_POD, call)
    assert (outcome.verdict, outcome.packet) == (DROP, bytes(call))
    assert bed.counted()["drop_ports_taken"] == 1
    tell(repeats=1, sent=2 * len(taken) + 2, new_failed=1, load=f"{len(taken)} flows that have all ports")
    for direct in taken:
        assert addresses(bed.run(Hook.FROM_POD, direct)) == addresses(direct)
    other = make(where.CLIENT, 10001, where.VIP, PORTS[make])
    assert there_and_back(bed, Hook.FROM_POD, other)[:2] == (where.CLIENT, 10001)


@FAMILIES
@MAKE
def test_N22_many_clients_outside_share_the_nodes_address(bed: Bed, where: Places, make: Make):
    """To a backend elsewhere they are seen as the node, all by one port of their own: each finds another."""
    callers = [f"{where.FAR[:-1]}{number}" for number in range(16, 90)]
    calls = [make(one, 10000, where.VIP, 81 if make is tcp else 54) for one in callers]
    there = [bed.run(Hook.FROM_UPLINK, call) for call in calls]
    assert {one.verdict for one in there} == {REDIRECT}
    assert len({addresses(one) for one in there}) == len(calls)
    for call, one in zip(calls, there, strict=True):
        back = bed.run(Hook.FROM_UPLINK, answer_to(one))
        assert addresses(back) == reverse(addresses(call))


# Protocols


@FAMILIES
@pytest.mark.parametrize("kind", ["cluster-ip", "node-port"])
def test_S14_S18_one_number_in_three_protocols_is_three_ports(bed: Bed, where: Places, kind: str):
    """Each has its own backend, node ports too; a protocol that is taken away takes no other along."""
    address = where.VIP if kind == "cluster-ip" else where.UPLINK
    makes = {"TCP": tcp, "UDP": udp, "SCTP": sctp}
    all_three = {
        where.called(f"5000/{name}", address): Serving([at(where.BACKEND, 6000 + number)], kind=kind)  # type: ignore[arg-type]
        for number, name in enumerate(makes)
    }
    bed.serve(all_three)
    for number, make in enumerate(makes.values()):
        there = bed.run(Hook.FROM_UPLINK, make(where.FAR, 40000, address, 5000))
        assert addresses(there) == (where.FAR, 40000, where.BACKEND, 6000 + number)
        assert addresses(bed.answer(there)) == (address, 5000, where.FAR, 40000)
    bed.serve({called: backends for called, backends in all_three.items() if not called.endswith("UDP")})
    assert addresses(bed.run(Hook.FROM_UPLINK, sctp(where.FAR, 40001, address, 5000)))[3] == 6002
    assert bed.run(Hook.FROM_UPLINK, udp(where.FAR, 40001, address, 5000)).ip.dst != where.BACKEND


@FAMILIES
def test_S106_a_node_port_of_another_protocol_or_address_is_the_hosts(bed: Bed, where: Places):
    """No service's: to the stack as it came, where a process may listen; and the service's own is not."""
    own_uplink(bed, where)
    bed.serve({where.called("30080/TCP", where.UPLINK): Serving([at(where.BACKEND, 8080)], kind="node-port")})
    for packet in (
        udp(where.FAR, 40000, where.UPLINK, 30080),
        sctp(where.FAR, 40000, where.UPLINK, 30080),
        tcp(where.FAR, 40000, where.NODE, 30080),
        tcp(where.FAR, 40000, where.UPLINK, 30081),
    ):
        outcome = bed.run(Hook.FROM_UPLINK, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert there_and_back(bed, Hook.FROM_UPLINK, tcp(where.FAR, 40000, where.UPLINK, 30080))[2] == where.BACKEND


# The node at its own node ports


def by_loopback(where: Places, port: int) -> Packet:
    """The node's call of its own address."""
    packet = tcp(where.UPLINK, 40000, where.UPLINK, port)
    packet[Ether].src = packet[Ether].dst = "00:00:00:00:00:00"
    return packet


@FAMILIES
def test_S43_the_node_is_refused_at_its_own_node_port_without_endpoints(bed: Bed, where: Places):
    """At once, by a RST that says what it answers."""
    own_uplink(bed, where)
    bed.serve({where.called("30080/TCP", where.UPLINK): Serving([], kind="node-port")})
    outcome = bed.run(Hook.TO_LOOPBACK, by_loopback(where, 30080))
    assert (outcome.verdict, outcome.ip[TCP].flags, outcome.ip[TCP].ack) == (REDIRECT, "RA", 1001)


@FAMILIES
def test_S53_the_node_gets_all_endpoints_at_its_own_node_port(bed: Bed, where: Places):
    """External policy Local or not: those elsewhere, too."""
    own_uplink(bed, where)
    here, there = at(where.BACKEND, 8080), at(where.REMOTE, 8080)
    serving = Serving([here, there], [here], outside="local", kind="node-port")
    bed.serve({where.called("30080/TCP", where.UPLINK): serving})
    found = set()
    for port in range(40000, 40040):
        packet = by_loopback(where, 30080)
        packet[TCP].sport = port
        found.add(addresses(bed.run(Hook.TO_LOOPBACK, packet))[2])
    assert found == {where.BACKEND, where.REMOTE}


# Affinity


@FAMILIES
def test_S77_C11_a_full_table_keeps_its_clients_and_the_ones_longest_away_make_room(bed: Bed, where: Places):
    """Who calls now and then stays with his backend while 65,000 others come by, and still more."""
    bed.serve({where.called("80/TCP"): Serving([at(where.BACKEND, 8000 + n) for n in range(16)], affinity=10800)})
    family = Family.of(where.VIP)
    table, client = bed.maps[f"affinities{family.suffix}"], LAYOUTS[family].client.struct
    base = ip_address("2001:db8:51::1:0" if where is V6 else "172.16.0.0")

    def backend_of(number: int, sport: int) -> int:
        return addresses(bed.run(Hook.FROM_UPLINK, tcp(str(base + number), sport, where.VIP, 80)))[3]

    regulars = {number: backend_of(number, 40000) for number in range(20)}
    assert len(set(regulars.values())) > 1
    key, kept = next(table.items())
    _, service = client.unpack(key)
    assert {number: backend_of(number, 40001) for number in regulars} == regulars
    some = [client.pack((base + number).packed, service) for number in range(20, 65_000)]
    table.update_many(dict.fromkeys(some, kept))
    assert {number: backend_of(number, 40002) for number in regulars} == regulars
    for number in range(100_000, 101_500):
        backend_of(number, 40000)
    assert {number: backend_of(number, 40003) for number in regulars} == regulars
    there = {key for key, _ in table.items()}
    assert len(there) >= SIZES.affinities - 1000
    assert {client.pack((base + number).packed, service) for number in range(101_400, 101_500)} <= there
    assert len(there & set(some[:10_000])) < 10_000


@FAMILIES
def test_N106_affinity_looks_at_no_port_ends_and_yields(bed: Bed, where: Places):
    """Cilium 26709, 27096: a hundred ports have one backend; when that drains, or time is over, others have them."""
    both = [at(where.BACKEND, 8080), at(where.SECOND, 8080)]

    def reached(ports: range) -> set[str]:
        return {addresses(bed.run(Hook.FROM_POD, tcp(where.CLIENT, port, where.VIP, 80)))[2] for port in ports}

    bed.serve({where.called("80/TCP"): Serving(both, affinity=100)})
    (kept,) = reached(range(40000, 40100))
    stays = at(where.SECOND if kept == where.BACKEND else where.BACKEND, 8080)
    bed.serve({where.called("80/TCP"): Serving([stays], affinity=100, draining=[at(kept, 8080)])})
    (other,) = reached(range(41000, 41100))
    assert other != kept
    bed.serve({where.called("80/TCP"): Serving(both, affinity=100)})
    assert reached(range(42000, 42100)) == {other}
    seen = Counter[str]()
    for port in range(43000, 43040):
        bed.age_affinities(101)
        seen.update(reached(range(port, port + 1)))
    assert set(seen) == {where.BACKEND, where.SECOND}


@FAMILIES
def test_S75_S79_a_client_has_one_entry_whichever_set_it_gets(bed: Bed, where: Places):
    """By the Local set from outside, by the Cluster set from inside, on any port."""
    both = [at(where.BACKEND, 8080), at(where.SECOND, 8080)]
    bed.serve({where.called("80/TCP"): Serving(both, both, outside="local", affinity=100)})
    table = bed.maps[f"affinities{Family.of(where.VIP).suffix}"]
    for port in range(40000, 40010):
        bed.run(Hook.FROM_UPLINK, tcp(where.FAR, port, where.VIP, 80))
        bed.run(Hook.FROM_POD, tcp(where.FAR, port + 100, where.VIP, 80))
    assert len(list(table.items())) == 1


# A service that changes


POLICIES = {
    "external policy Local": {"outside": "local"},
    "source ranges": {"sources": ("192.0.2.0/24",), "kind": "load-balancer-ip"},
    "affinity": {"affinity": 100},
}


@FAMILIES
@MAKE
@pytest.mark.parametrize("policy", POLICIES)
def test_S93_S68_a_changed_policy_ends_no_flow(bed: Bed, where: Places, make: Make, policy: str):
    """It is for who comes then, who is dropped (S51, S62) or served (S78): who is there goes on, as in kube-proxy."""
    call = make(where.FAR, 40000, where.VIP, PORTS[make])
    there = bed.run(Hook.FROM_UPLINK, call)
    bed.answer(there)
    changed = Serving([at(where.BACKEND, addresses(there)[3])], **POLICIES[policy])  # type: ignore[arg-type]
    bed.serve({where.called(f"{PORTS[make]}/{make.__name__.upper()}"): changed})
    later = call.copy()
    if make is tcp:
        later[TCP].flags = "A"
    for seconds in (0, 2, 60):
        bed.age(seconds)
        assert addresses(bed.run(Hook.FROM_UPLINK, later)) == addresses(there)
        assert addresses(bed.answer(there, "A")) == reverse(addresses(call))
    newcomer = make(where.FAR, 40001, where.VIP, PORTS[make])
    assert bed.run(Hook.FROM_UPLINK, newcomer).verdict == (REDIRECT if policy == "affinity" else DROP)


@FAMILIES
def test_S93_a_policy_that_leaves_a_backend_to_nobody_ends_its_datagrams(bed: Bed, where: Places):
    """Both policies Local, the backend elsewhere: it serves nobody here any more. Connections go on (C8)."""
    query, call = udp(where.CLIENT, 40000, where.VIP, 54), tcp(where.CLIENT, 40000, where.VIP, 81)
    for packet, answer in ((query, udp), (call, tcp)):
        there = bed.run(Hook.FROM_POD, packet)
        bed.run(Hook.FROM_UPLINK, answer(*reverse(addresses(there))))
    local = {"inside": "local", "outside": "local"}
    bed.serve(
        {
            where.called("54/UDP"): Serving([at(where.REMOTE, 5353)], **local),  # type: ignore[arg-type]
            where.called("81/TCP"): Serving([at(where.REMOTE, 8080)], **local),  # type: ignore[arg-type]
        }
    )
    assert bed.run(Hook.FROM_POD, query).verdict == DROP
    assert bed.counted()["drop_policy"] == 1
    assert addresses(bed.run(Hook.FROM_POD, tcp(*addresses(call), "A")))[2] == where.REMOTE
