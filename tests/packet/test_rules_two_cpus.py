"""Two CPUs at once (N4, N6): the same program runs on both, on packets that want the same tuple."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import pytest
from frames import DROP, REDIRECT, Outcome, Packet, addresses, answer_to, reverse, tcp, udp
from packetbed import Bed
from places import V4, V6, Places, at
from programs import EMULATED
from test_nat_icmp import ping

from pydatapath.kernel.layout import LAYOUTS, Family, FlowFlag, Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKE = pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
Make = Callable[..., Packet]
RACES = 20 if EMULATED else 200  # of each kind; scapy takes its time in an emulator
SECONDS = 60


@pytest.fixture(autouse=True)
def two_cpus() -> None:
    """Without them there is nothing to be seen."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")


def at_once(
    bed: Bed, packets: Sequence[tuple[Packet, Packet]], devices: tuple[str, str] = ("pod2", "pod2")
) -> list[tuple[Outcome, Outcome]]:
    """Runs each pair of packets on two CPUs at the same time; what came of them, in their order."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    barrier = threading.Barrier(2, timeout=SECONDS)
    found: list[list[Outcome]] = [[], []]
    faults: list[Exception] = []

    def work(side: int) -> None:
        os.sched_setaffinity(0, {cpus[side]})  # 0: this thread
        try:
            for raw in frames[side]:
                barrier.wait()
                found[side].append(bed.run(Hook.FROM_POD, raw, device=devices[side]))
        except Exception as fault:  # noqa: BLE001 - shown by the test
            faults.append(fault)
            barrier.abort()

    frames = [[bytes(pair[side]) for pair in packets] for side in (0, 1)]
    threads = [threading.Thread(target=work, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    return list(zip(*found, strict=True))


@FAMILIES
@MAKE
def test_N6_two_first_packets_of_a_socket_are_one_flow_and_none_is_lost(bed: Bed, where: Places, make: Make):
    """A and AAAA from one socket (Kubernetes 56903, OpenWrt 18608): one source, one backend, both go and are answered.

    A direct flow has each socket's port already, so that both have to take another one.
    """
    protocol, listens = make.__name__.upper(), 8000
    called = where.called(f"80/{protocol}")
    bed.serve({called: [at(where.BACKEND, listens)]})
    ports = range(20000, 20000 + RACES)
    for port in ports:
        bed.run(Hook.FROM_POD, make(where.CLIENT, port, where.BACKEND, listens))
    calls = [make(where.CLIENT, port, where.VIP, 80) for port in ports]
    for call, pair in zip(calls, at_once(bed, [(call, call) for call in calls]), strict=True):
        first, second = (addresses(one) for one in pair)
        assert first == second
        assert first[1] != addresses(call)[1]
        assert addresses(bed.answer(pair[0])) == reverse(addresses(call))
        assert addresses(bed.run(Hook.FROM_POD, call)) == first


@FAMILIES
@MAKE
@pytest.mark.parametrize("other", ["direct", "another service"])
def test_N3_N4_two_flows_at_once_never_claim_one_answer(bed: Bed, where: Places, make: Make, other: str):
    """One client port to one backend, by two ways, in the same moment: two tuples, and each has its own answer."""
    protocol = make.__name__.upper()
    bed.serve({where.called(f"80/{protocol}", vip): [at(where.BACKEND, 8000)] for vip in (where.VIP, where.VIP_TWO)})
    target = (where.BACKEND, 8000) if other == "direct" else (where.VIP_TWO, 80)
    pairs = [
        (make(where.CLIENT, port, where.VIP, 80), make(where.CLIENT, port, *target))
        for port in range(20000, 20000 + RACES)
    ]
    pairs = [pair[:: 1 if number % 2 else -1] for number, pair in enumerate(pairs)]  # type: ignore[misc]
    for packets, outcomes in zip(pairs, at_once(bed, pairs), strict=True):
        assert DROP not in {one.verdict for one in outcomes}
        assert len({addresses(one) for one in outcomes}) == 2
        for packet, one in zip(packets, outcomes, strict=True):
            assert addresses(bed.answer(one)) == reverse(addresses(packet))


@FAMILIES
def test_N6_an_answer_and_a_SYN_sent_again_at_once_leave_one_connection(bed: Bed, where: Places):
    """The flow moves to the main table on one CPU while its SYN comes again on the other."""
    there = {}
    for port in range(20000, 20000 + RACES):
        call = tcp(where.CLIENT, port, where.VIP, 80)
        there[port] = (call, bed.run(Hook.FROM_POD, call))
    pairs = [(answer_to(left), call) for call, left in there.values()]
    for (call, left), (back, again) in zip(there.values(), at_once(bed, pairs, ("pod3", "pod2")), strict=True):
        assert addresses(back) == reverse(addresses(call))
        assert addresses(again) == addresses(left)
        data = tcp(*addresses(call), "A")
        assert addresses(bed.run(Hook.FROM_POD, data)) == addresses(left)
        assert bed.entry(call) is not None


# Masquerading

BATCHES = pytest.mark.parametrize(
    "ports", [range(20000, 20000 + RACES // 2), range(20100, 20100 + RACES // 2)], ids=["first", "second"]
)


@FAMILIES
@BATCHES
@pytest.mark.parametrize("servers", [1, 2], ids=["one server", "two servers"])
def test_N1_N6_two_first_datagrams_of_a_socket_have_one_port_outside(
    masquerading: Bed, where: Places, servers: int, ports: range
):
    """Its own port is another pod's, so that each CPU looks for one by chance: one mapping, in both directions."""
    one, other = where.FAR, where.FAR if servers == 1 else where.FAR[:-1] + "8"
    for port in ports:
        masquerading.run(Hook.FROM_POD, udp(where.CLIENT, port, where.FAR, 53))
    pairs = [(udp(where.BACKEND, port, one, 53), udp(where.BACKEND, port, other, 53)) for port in ports]
    for port, outcomes in zip(ports, at_once(masquerading, pairs, ("pod3", "pod3")), strict=True):
        first, second = (addresses(one) for one in outcomes)
        assert first[:2] == second[:2]
        assert first[1] != port
        for there in outcomes:
            assert addresses(masquerading.run(Hook.FROM_UPLINK, answer_to(there)))[2:] == (where.BACKEND, port)
    assert len(masquerading.mappings()) == 4 * len(ports)


@FAMILIES
@BATCHES
@MAKE
def test_N3_N4_what_is_over_is_taken_by_one_of_two(masquerading: Bed, where: Places, make: Make, ports: range):
    """Two pods want a port that was a third one's until long ago: one has it, and the other another."""
    for port in ports:
        masquerading.run(Hook.FROM_POD, make(where.CLIENT, port, where.FAR, 53))
    masquerading.age(1000)
    masquerading.age_mappings(1000)
    pairs = [(make(where.BACKEND, port, where.FAR, 53), make(where.SECOND, port, where.FAR, 53)) for port in ports]
    for packets, outcomes in zip(pairs, at_once(masquerading, pairs, ("pod3", "pod4")), strict=True):
        assert len({addresses(one) for one in outcomes}) == 2
        for packet, there in zip(packets, outcomes, strict=True):
            back = masquerading.run(Hook.FROM_UPLINK, answer_to(there))
            assert addresses(back) == reverse(addresses(packet))


@FAMILIES
def test_N4_N46_a_claim_that_is_only_tried_takes_no_answer(masquerading: Bed, where: Places):
    """It stands in half_open, and is taken back as soon as the live flow is seen that has the tuple."""
    masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR))
    answer = ping(where, where.FAR, where.UPLINK, answer=True)
    assert masquerading.run(Hook.FROM_UPLINK, answer).ip.dst == where.CLIENT
    table, family = masquerading.entries(), Family.of(where.FAR)
    key = next(key for key, entry in table.items() if entry.to[2] == where.CLIENT)
    _, *rest = LAYOUTS[family].flow.struct.unpack(masquerading.maps[f"flows{family.suffix}"].lookup(key))
    rest[6] |= FlowFlag.PLAIN
    tried = LAYOUTS[family].flow.struct.pack(key, *rest)
    masquerading.maps[f"half_open{family.suffix}"].update(key, tried)
    for _ in range(2):
        back = masquerading.run(Hook.FROM_UPLINK, answer)
        assert (back.verdict, back.ip.dst) == (REDIRECT, where.CLIENT)
    assert masquerading.entries().keys() == table.keys()
