"""Floods of all kinds, while connections talk: they lose nothing, and the tables are bounded.

PYDATAPATH_BIG=1 pytest tests/fault/test_flood.py     a million SYNs, half a million of the others
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest
from calls import KINDS, ask, ask_many, dial
from flooding import Flood, by_destination_port, by_identification, by_source, ip, quoting, tcp, udp
from rows import tell
from scene import BIG, PORT, Cluster, cluster_up
from streaming import Scripts, counted, say
from under_flood import (
    BALANCER,
    STRANGER_COUNT,
    STRANGERS,
    SYNS,
    TALKERS,
    TALKING,
    V4,
    V6,
    VIP,
    Idle,
    Seen,
    Side,
    assert_arrived,
    assert_nobody_was_hurt,
    fill,
    flood_from,
    lasting,
    macs,
    reset,
    under,
)

from pydatapath.lab import Host

pytestmark = pytest.mark.timeout(900 if BIG else 400)

PACKETS = 500_000 if BIG else 50_000  # of the other floods
FLOWS = 16_384  # room for so many: less than a flood has, or two clients' ports
LAPSE = 0.5  # seconds: in eight of them a table is filled one and a half times
SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
FAR_OFF = 3_000_000_000  # a sequence number that is in no window
ALONE = "198.19.0.1"  # whose fragments are no first ones
CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")


# What a flood of SYNs and of UDP shows in both families others show of IPv6 where there is time
IN_TIME = pytest.mark.parametrize("side", [V4, V6] if BIG else [V4], ids=lambda one: f"IPv{one.family.value}")
# ICMP's errors (type, code): about what cannot be reached, took too long, or has a parameter that nobody knows
ERRORS = {V4: [*((3, code) for code in (0, 1, 2, 3, 10, 13)), (11, 0), (12, 0)], V6: [(1, 0), (1, 1), (1, 3), (1, 4)]}
ERRORS[V6] += [(3, 0), (4, 0)]
COUNTED = {V4: ("Icmp", ("InDestUnreachs", "InTimeExcds", "InParmProbs"))}
COUNTED[V6] = "Icmp6", ("InDestUnreachs", "InTimeExcds", "InParmProblems")


@pytest.fixture(params=[V4, V6], ids=["IPv4", "IPv6"])
def side(request: pytest.FixtureRequest) -> Side:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service that is called inside by its VIP, and from outside by its balancer's address."""
    options = {"cluster_cidr": CLUSTER, "masquerade": True, "max_flows": FLOWS}
    with cluster_up(f"flood-{os.getpid()}", nodes=1, pods=3, dual_stack=True, **options) as made:
        made.serve(*made.lab.pods[1:])
        for one in (V4, V6):
            route = ["ip", "route", "add", one.balancer[0], "via", one.of(made.lab.node(1))]
            made.lab.outside.exec(route, check=True)
        made.serve(made.lab.outside)  # type: ignore[arg-type]
        # What the ends themselves would do also without us: a port is used again within a minute, which a server's
        # TIME_WAIT may answer by a RST; and parts without an end fill a receiver's 4 MB, so it puts nothing together
        settings = ["net.ipv4.tcp_max_tw_buckets=0", f"net.ipv4.ipfrag_high_thresh={1 << 28}"]
        for host in (*made.lab.pods, made.lab.outside):
            host.exec(["sysctl", "-q", "-w", *settings], check=True)
        try:
            yield made
        finally:
            made.kill(made.lab.outside)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def service(cluster: Cluster) -> Iterator[None]:
    """No flow is there from before."""
    for name, one in (("web", V4), ("web6", V6)):
        cluster.apply(name, one.vip[0], cluster.lab.pods[1:], type="LoadBalancer", balancer=one.balancer[0])
    cluster.datapaths[1].flush_flows()
    yield
    cluster.datapaths[1].flush_flows()


def test_entries_are_told_apart_from_those_of_who_has_the_same_port(cluster: Cluster, side: Side):
    """At another address: a call from there in a flood was taken for a silent connection's."""
    lab = cluster.lab
    silent = Idle(cluster, lab.pod(1, 1), side.vip, KINDS["TCP"])
    silent.open(1)
    try:
        before = silent.entries()
        port = silent.sockets[0].getsockname()[1]
        with dial(lab.outside, side.balancer, own=(side.of(lab.outside), port)) as other:
            ask(other)
        assert (len(before), silent.entries().keys()) == (2, before.keys())
    finally:
        silent.close()


@pytest.fixture
def idle(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[list[Idle]]:
    """A hundred silent connections of each protocol, from inside; fifty of each through masquerading."""
    lab, which = cluster.lab, request.getfixturevalue("side") if "side" in request.fixturenames else V4
    made = [Idle(cluster, lab.pod(1, 1), which.vip, kind) for kind in KINDS.values()]
    made += [Idle(cluster, lab.pod(1, 1), (which.of(lab.outside), PORT), kind) for kind in KINDS.values()]
    for one, count in zip(made, (100, 100, 50, 50), strict=True):
        one.open(count)
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def bare_bridge(cluster: Cluster) -> Seen:
    """What a flood of SYNs does to those who talk where we are not."""
    lab = cluster.lab
    pod = lab.pod(1, 2)
    cluster.datapaths.pop(1).unload()
    route = ["ip", "route", "add", pod.node.pod_cidr, "via", pod.node.address]
    lab.outside.exec(route, check=True)
    try:
        frame = tcp(macs(cluster, lab.outside), (STRANGERS, 1024), (pod.address, PORT), SYN)
        with Scripts() as scripts:
            for host in (lab.pod(1, 1), lab.outside):
                scripts.talk(host, pod.address, TALKERS, PORT)
            vary = by_source(frame, 50, STRANGERS, STRANGER_COUNT)
            sent, seconds = lasting(partial(flood_from, lab.outside, frame, vary, SYNS))
            talks = [scripts.end_talk(host) for host in (lab.pod(1, 1), lab.outside)]
    finally:
        lab.outside.exec(["ip", "route", "del", *route[3:]], check=True)
        cluster.load(1, cluster_cidr=CLUSTER, masquerade=True, max_flows=FLOWS)
    return Seen(talks, seconds, sent, {}, 0, 0, [], [])


def test_F17_a_flood_of_SYNs_hurts_no_connection(
    cluster: Cluster, bare_bridge: Seen, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str]
):
    """From changing sources, more than either table holds, and backends that are alive answer them, most by cookies.

    What is established is not touched by it.
    """
    outside = cluster.lab.outside
    frame = tcp(macs(cluster, outside), (side.strangers, 1024), side.balancer, SYN)
    vary = by_source(frame, side.checked_at(50), side.strangers, STRANGER_COUNT)
    seen = under(cluster, idle, partial(flood_from, outside, frame, vary, side.syns), which=side)
    answered = sum(one.state == "answered" for one in cluster.datapaths[1].flows())
    full, half = (fill(cluster)[name + side.family.suffix] for name in ("flows", "half_open"))
    say(capsys, f"SYN flood: {seen}; {full} and {half} entries, {answered} answered and not confirmed")
    tell(control_lost_max=bare_bridge.unanswered)
    assert_nobody_was_hurt(seen)
    assert_arrived(seen, seen.sent, "new_flow")
    assert answered > side.syns // 100, "a flood that backends do not answer would say little"


@IN_TIME
@pytest.mark.parametrize(
    "then", [(ACK, 2), (SYN, FAR_OFF), (PSH, FAR_OFF)], ids=["an ACK", "another SYN", "data that is out of place"]
)
def test_F17_nor_does_one_whose_SYNs_are_followed_by(
    cluster: Cluster, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str], then: tuple[int, int]
):
    """Whoever makes up clients gets no SYN-ACK: what he says next makes no connection, nor does what is said to it.

    A RST afterwards makes room at the server, so that it has a state for each SYN, and no cookies.
    """
    outside = cluster.lab.outside
    at_once, rounds = 100, SYNS // 300
    between: list[str] = []

    def strangers() -> list[str]:
        flows = cluster.datapaths[1].flows()
        return [one.state for one in flows if one.family == side.family and side.is_strange(one.original.src)]

    def openings() -> tuple[int, float]:
        began, ends = time.monotonic(), macs(cluster, outside)
        with Flood(outside) as flood:
            for number in range(rounds):
                first = str(ip_address(side.strangers) + number % (STRANGER_COUNT // at_once) * at_once)
                for flags, sequence in ((SYN, 1), then, (RST, 2)):
                    frame = tcp(ends, (first, 1024), side.balancer, flags, sequence)
                    flood.send(frame, at_once, by_source(frame, side.checked_at(50), first, at_once))
                    between.extend(() if between else strangers())
        return 3 * at_once * rounds, time.monotonic() - began

    seen = under(cluster, idle, openings, which=side)
    answered, left = between.count("answered"), strangers()
    say(capsys, f"SYNs and more: {seen}; {answered} of the first {at_once} answered, in the end {len(left)} left")
    assert_nobody_was_hurt(seen)
    assert_arrived(seen, seen.sent // 3, "new_flow")
    assert answered > at_once // 2, "a flood that backends do not answer would say little"
    assert {*left} <= {"new", "answered"}


def test_F18_a_flood_to_all_ports_hurts_no_connection(
    cluster: Cluster, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str]
):
    """UDP to 60,000 ports of a service's address, and from one pod to 60,000 ports outside."""
    pod = cluster.lab.pod(1, 3)
    refused, outside = ("drop_no_service", "drop_answer_limit"), side.of(cluster.lab.outside)
    for name, target, counted_by in (("of the VIP", side.vip[0], refused), ("outside", outside, ("new_flow",))):
        frame = udp(macs(cluster, pod), (side.of(pod), 5000), (target, 1))
        flood = partial(flood_from, pod, frame, by_destination_port(frame), 60_000)
        seen = under(cluster, idle, flood, which=side)
        say(capsys, f"UDP to 60,000 ports {name}: {seen}")
        assert_nobody_was_hurt(seen)
        assert_arrived(seen, seen.sent, *counted_by)


@IN_TIME
def test_F17_a_flood_of_ACKs_hurts_no_connection(
    cluster: Cluster, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str]
):
    """Of connections that nobody has. Each goes on to a backend (C10), whose RST makes no answered flow of it."""
    outside = cluster.lab.outside
    frame = tcp(macs(cluster, outside), (side.strangers, 1024), side.balancer, ACK)
    vary = by_source(frame, side.checked_at(50), side.strangers, STRANGER_COUNT)
    resets = reset(cluster)
    seen = under(cluster, idle, partial(flood_from, outside, frame, vary, PACKETS), which=side)
    resets, entries = reset(cluster) - resets, fill(cluster)["flows" + side.family.suffix]
    say(capsys, f"ACKs out of state: {seen}; {resets:,} reset by backends; {entries} entries")
    assert_nobody_was_hurt(seen)
    assert_arrived(seen, seen.sent, "new_flow")
    assert resets > seen.sent // 2, "nor would one that no backend answers"


def heard(cluster: Cluster, idle: list[Idle], side: Side) -> dict[str, int]:
    """What has come of forged errors and RSTs: those that our programs made the pod's own, by the sockets that its
    stack found for them or by their flows; and those that are nobody's, at the node's stack.
    """
    pod, node = cluster.lab.pod(1, 1), cluster.lab.node(1)
    protocol, names = COUNTED[side]

    def errors(host: Host) -> int:
        return sum(counted(host, f"{protocol} {name}") for name in names)

    ports = {each.getsockname()[1] for one in idle[2:] for each in one.sockets if one.kind == KINDS["TCP"]}
    flows = [one for one in cluster.datapaths[1].flows() if one.protocol == "TCP" and one.original.sport in ports]
    return {
        "errors translated": errors(pod) - counted(pod, f"{protocol} InErrors"),
        "other errors": errors(node),
        "RSTs of flows": sum(one.packets[1] for one in flows if one.original.dst == side.of(cluster.lab.outside)),
        "other RSTs": counted(node, "Tcp InSegs"),
    }


@IN_TIME
def test_F23_forged_errors_and_resets_hurt_no_connection(
    cluster: Cluster, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str]
):
    """From off the path, with right tuples and wrong ones: every kind of ICMP error, and RSTs with a wrong number.

    RFC 5508 REQ-6, RFC 5927; RFC 5961 for the ends. A socket of UDP may be told of an error; its flow lives on.
    """
    lab = cluster.lab
    there, node, pod = macs(cluster, lab.outside), lab.node(1), lab.pod(1, 3)
    inside, outside = idle[:2], idle[2:]
    resets, errors, near = list[bytes](), list[bytes](), list[bytes]()
    for one in outside:
        protocol = tcp if one.kind == socket.SOCK_STREAM else udp
        more = (ACK,) if one.kind == socket.SOCK_STREAM else ()
        for each in one.sockets:
            for port in (each.getsockname()[1], 1):
                # As if the server, or a router, had something to say about what the node has sent
                ends = (side.of(node), port), (side.of(lab.outside), PORT)
                sent = protocol(there, *ends, *more)
                errors += [quoting(there, side.strangers, side.of(node), kind, sent) for kind in ERRORS[side]]
                if one.kind == socket.SOCK_STREAM:
                    resets += [tcp(there, ends[1], ends[0], RST, FAR_OFF), tcp(there, ends[1], ends[0], RST | ACK, 7)]
    places = {one.name: side.of(one) for one in lab.pods}
    for one in inside:
        protocol = tcp if one.kind == socket.SOCK_STREAM else udp
        more = (ACK,) if one.kind == socket.SOCK_STREAM else ()
        for each, name in zip(one.sockets, one.names, strict=True):
            client = each.getsockname()[:2]
            sent = protocol(there, client, (places[name], PORT), *more)
            near += [quoting(macs(cluster, pod), side.of(pod), client[0], ERRORS[side][1], sent)]
    rounds = 0

    def flood() -> tuple[int, float]:
        nonlocal rounds
        began, rounds = time.monotonic(), rounds + 1
        with Flood(lab.outside) as away, Flood(pod) as close:
            away.frames(errors + resets)
            close.frames(near)
        return len(errors + resets + near), time.monotonic() - began

    begun = heard(cluster, idle, side)
    seen = under(cluster, idle, flood, forgiving=True, which=side)
    met = {what: count - begun[what] for what, count in heard(cluster, idle, side).items()}
    told = f"{met} of {len(errors + near) * rounds:,} errors and {len(resets) * rounds:,} RSTs"
    say(capsys, f"forged ICMP errors and RSTs: {seen}; {told}")
    assert_nobody_was_hurt(seen, touched=True)
    # Half of those from outside are about a port that nobody has
    assert met["errors translated"] > (len(errors) // 2 + len(near)) * rounds * 0.95, met
    assert met["other errors"] > len(errors) // 2 * rounds * 0.95, met
    assert met["RSTs of flows"] > len(resets) // 2 * rounds * 0.95, met
    assert met["other RSTs"] > len(resets) // 2 * rounds * 0.95, met
    time.sleep(1.1)
    assert [line for one in idle for line in one.broken()] == []
    known = {(each.getsockname()[1], one.target[0]) for one in idle for each in one.sockets if one.kind == KINDS["TCP"]}
    flows = [one for one in cluster.datapaths[1].flows() if one.protocol == "TCP"]
    states = [one.state for one in flows if (one.original.sport, one.original.dst) in known]
    assert states == ["established"] * len(known), "a RST that nobody believed is forgotten"


def test_F22_a_flood_of_fragments_hurts_no_connection(
    cluster: Cluster, idle: list[Idle], capsys: pytest.CaptureFixture[str]
):
    """First fragments without an end, later ones without a first, overlapping ones: the table is bounded, and whoever
    sends large datagrams in order is answered.
    """
    lab = cluster.lab
    there = macs(cluster, lab.outside)
    first = udp(there, (STRANGERS, 5000), BALANCER, bytes(64), fragment=0x2000)
    later = ip(there, ALONE, BALANCER[0], 17, bytes(64), fragment=0x2000 | 100)
    overlapping = ip(there, STRANGERS, BALANCER[0], 17, bytes(64), fragment=0x2000 | 4)
    caller = dial(lab.pod(1, 1), VIP, KINDS["UDP"])
    large = [0, 0]

    def flood() -> tuple[int, float]:
        took, parts = 0.0, 10
        for _ in range(parts):
            for kind in (first, later, overlapping):
                took += flood_from(lab.outside, kind, by_identification(kind), PACKETS // 3 // parts)[1]
            large[0] += 1
            large[1] += ask(caller, "x" * 1900).name != ""
        return PACKETS // 3 // parts * parts * 3, took

    seen = under(cluster, idle, flood)
    caller.close()
    entries, room = fill(cluster)["fragments"]
    say(
        capsys, f"fragments: {seen}; {large[1]} of {large[0]} large datagrams answered; {entries:,} of {room:,} entries"
    )
    assert_nobody_was_hurt(seen)
    assert_arrived(seen, seen.sent // 3, "pass_fragment")
    assert large[0] == large[1]
    assert entries <= room


@IN_TIME
def test_F16_a_full_table_forgets_who_has_been_silent_longest(
    cluster: Cluster, idle: list[Idle], side: Side, capsys: pytest.CaptureFixture[str]
):
    """More connections than it has room for (F16): who talks is not forgotten; who is, and whose service has not
    changed, goes on all the same, by the same choice. None is refused.

    Not the whole table in a second: of a flow that is used all the time one half may be forgotten, and stays so until
    its next refresh, within a second.
    """
    wanted = FLOWS + FLOWS // 2
    stranger = cluster.lab.pod(1, 1)
    failures: list[str] = []

    def flood() -> tuple[int, float]:
        began = time.monotonic()
        for part in range(8):
            time.sleep(max(0.0, began + part * LAPSE - time.monotonic()))
            for host, kind, target in ((stranger, "UDP", side.vip), (cluster.lab.outside, "TCP", side.balancer)):
                failures.extend(ask_many(host, KINDS[kind], target, wanted // 16, at_once=200).failures)
        return wanted // 16 * 16, time.monotonic() - began

    seen = under(cluster, idle, flood, which=side)
    entries = fill(cluster)["flows" + side.family.suffix]
    say(capsys, f"full table: {seen}; {len(failures)} failures; {entries} entries")
    tell(
        load=f"{TALKING}, 300 silent ones",
        repeats=1,
        sent=seen.sent,
        broken=sum(len(one["broken"]) for one in seen.talks) + len(seen.silent_broken),
        new_failed=len(failures),
    )
    assert seen.entries_lost > 0, "what was silent is still there: the table was not full"
    assert failures == []
    assert [one["broken"] for one in seen.talks] == [[], []]
    assert seen.silent_broken == []


def test_the_bare_bridge_under_the_same_flood(bare_bridge: Seen, capsys: pytest.CaptureFixture[str]):
    """The control: SYNs straight to a pod, without us."""
    say(capsys, f"SYN flood over the bare bridge: {bare_bridge}")
    tell(load=TALKING, repeats=1, sent=bare_bridge.sent, control_lost_max=bare_bridge.unanswered)
    assert [one["broken"] for one in bare_bridge.talks] == [[], []]
