"""Rules that hold over all packets: none is lost without a name, none changes its length, no sum is left wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct
from collections.abc import Callable

import pytest
from frames import DROP, ICMP, PASS, REDIRECT, TCP, UDP, Packet, Raw, addresses, answer_to, frame, sctp, tcp, udp
from packetbed import Bed
from places import V4, V6, Places
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment

from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import Hook

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKES = pytest.mark.parametrize("make", [tcp, udp, sctp], ids=["TCP", "UDP", "SCTP"])
Make = Callable[..., Packet]
DEVICES = {Hook.FROM_POD: "pod2", Hook.FROM_UPLINK: "uplink", Hook.TO_BRIDGE: "br0", Hook.TO_UPLINK: "uplink"}
ALSO = "drop_no_backend", "drop_no_service", "drop_pod_gone"  # of these an answer tells the sender


def some_packet(luck: random.Random, where: Places) -> Packet:
    """Anything: calls, answers, fragments, errors, pings, strangers; with a source and destination of any kind."""
    places = [where.CLIENT, where.BACKEND, where.SECOND, where.NODE, where.REMOTE, where.FAR, where.UPLINK]
    vips = [where.VIP, where.VIP_TWO, "fd00:10:96::99" if where is V6 else "10.96.9.9"]
    source = luck.choice([*places, *vips])
    destination = luck.choice([*places, *vips, where.VIP, where.VIP])
    ports = [80, 53, 81, 54, 443, 9, 8080, 5353, 40000, 40001, 1234]
    hops = {"hlim" if where is V6 else "ttl": luck.choice([1, 2, 64, 255])}
    sport, dport = luck.choice(ports), luck.choice(ports)
    kind = luck.choice(["TCP", "TCP", "UDP", "UDP", "SCTP", "ping", "error", "fragment", "other", "headers"])
    if kind == "TCP":
        return tcp(source, sport, destination, dport, luck.choice(["S", "SA", "A", "PA", "FA", "R", "RA", ""]), **hops)
    if kind in ("UDP", "SCTP"):
        return (udp if kind == "UDP" else sctp)(source, sport, destination, dport, **hops)
    if kind == "ping":
        return frame(source, destination, **hops) / (ICMPv6EchoRequest() if where is V6 else ICMP())
    if kind == "error":
        about = bytes(udp(destination, dport, source, sport))[14 : 14 + 48]
        return frame(source, destination, **hops) / (ICMPv6DestUnreach() if where is V6 else ICMP(type=3)) / Raw(about)
    if kind == "other":
        field = {"nh" if where is V6 else "proto": luck.choice([2, 4, 47, 50, 136, 255])}
        return frame(source, destination, **hops, **field) / Raw(bytes(24))
    offset = luck.choice([0, 0, 100])
    load = UDP(sport=sport, dport=dport, len=1600) / Raw(bytes(792)) if offset == 0 else Raw(bytes(800))
    if where is V4:
        return frame(source, destination, proto=17, id=luck.randrange(4), flags="MF", frag=offset, **hops) / load
    if kind == "fragment":
        header = IPv6ExtHdrFragment(nh=17, id=luck.randrange(4), offset=offset, m=1)
        return frame(source, destination, **hops) / header / load
    packet = frame(source, destination, **hops)
    for _ in range(luck.randrange(1, 12)):
        packet /= IPv6ExtHdrDestOpt()
    return packet / TCP(sport=sport, dport=dport)


PACKETS = 100 if "PYDATAPATH_EMULATED" in os.environ else 2500  # scapy takes its time there


@FAMILIES
@pytest.mark.parametrize("seed", range(3))
def test_N108_every_packet_is_translated_passed_or_dropped_by_one_name(bed: Bed, where: Places, seed: int):
    """Of many packets of all kinds at all hooks what is dropped has one counter, what is not dropped has none.

    A packet that is refused has one, too, and its sender has an answer from where it called.
    """
    luck, verdicts, counters = random.Random(seed), {PASS: 0, DROP: 0, REDIRECT: 0}, 0
    counted = bed.counted()
    for _ in range(PACKETS):
        packet, hook = some_packet(luck, where), luck.choice(list(DEVICES))
        raw = bytes(packet)
        if luck.random() < 0.1:
            raw = raw[: luck.randrange(34 if where is V4 else 54, len(raw) + 1)]
        outcome = bed.run(hook, raw, device=DEVICES[hook])
        before, counted = counted, bed.counted()
        drops = {name: counted[name] - before.get(name, 0) for name in counted if name.startswith("drop")}
        names = [name for name, more in drops.items() for _ in range(more)]
        assert outcome.verdict in verdicts, packet.summary()
        verdicts[outcome.verdict] += 1
        if outcome.verdict == DROP:
            assert len(names) == 1, (names, packet.summary())
        elif names:
            assert outcome.verdict == REDIRECT, (names, packet.summary())
            assert names[0] in ALSO, (names, packet.summary())
            assert len(names) == 1
            counters += 1
            assert (outcome.ip.src, outcome.ip.dst) == (packet.payload.dst, packet.payload.src)
    assert sum(verdicts.values()) == PACKETS
    assert min(verdicts.values()) > PACKETS // 20, verdicts
    assert sum(count for name, count in counted.items() if name.startswith("drop")) == verdicts[DROP] + counters


@FAMILIES
@MAKES
@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 1400])
def test_N81_translation_changes_no_length(bed: Bed, where: Places, make: Make, size: int):
    """There and back, to a pod here and to one elsewhere, with the padding that a short frame has."""
    name = make.__name__.upper()
    for backend, hook, device in ((where.BACKEND, Hook.FROM_POD, "pod3"), (where.REMOTE, Hook.FROM_UPLINK, "")):
        bed.forget_flows()
        bed.serve({where.called(f"70/{name}"): [f"[{backend}]:7000"]})
        call = make(where.CLIENT, 40000, where.VIP, 70, payload=bytes(size))
        for padding in (0, 6):
            there = bed.run(Hook.FROM_POD, bytes(call) + bytes(padding))
            assert there.ip.dst == backend
            assert len(there.packet) == len(bytes(call)) + padding
            answer = make(backend, 7000, where.CLIENT, 40000, payload=bytes(size))
            back = bed.run(hook, bytes(answer) + bytes(padding), device=device)
            assert back.ip.src == where.VIP
            assert len(back.packet) == len(bytes(answer)) + padding
            field = "plen" if where is V6 else "len"
            assert getattr(there.ip, field) == getattr(call.__class__(bytes(call)).payload, field)


@FAMILIES
def test_N78_a_packet_of_many_segments_is_rewritten_once(bed: Bed, where: Places):
    """Its headers only; segments and their size are the kernel's to keep (as it leaves, it is as long as it came)."""
    call = tcp(where.CLIENT, 40000, where.VIP, 80, "PA", payload=bytes(range(250)) * 12)
    outcome = bed.run(Hook.FROM_POD, call, gso=(3, 1400))
    assert outcome.verdict == REDIRECT
    assert addresses(outcome)[2:] == (where.BACKEND, 8080)
    assert bytes(outcome.ip[TCP].payload) == bytes(call[TCP].payload)
    (claim,) = bed.entries("half_open").values()
    assert claim.packets == 1


# Sums that a NIC has made of the whole packet (CHECKSUM_COMPLETE)

CHECKSUM_COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE, since Linux 6.13 (commit a3cfe84cca28)


def sum_after(bed: Bed, hook: Hook, packet: Packet, device: str) -> int:
    """Runs a packet whose sum the NIC has made, and lets the kernel look at that sum after it; 0, or an errno."""
    raw = bytes(packet)
    given = ctypes.create_string_buffer(raw, len(raw))
    made = ctypes.create_string_buffer(len(raw) + 512)
    context = ctypes.create_string_buffer(192)
    struct.pack_into("=I", context, 40, bed.devices[device])
    options = libbpf._RunOptions(
        sz=ctypes.sizeof(libbpf._RunOptions),
        data_in=ctypes.cast(given, ctypes.c_void_p),
        data_out=ctypes.cast(made, ctypes.c_void_p),
        data_size_in=len(raw),
        data_size_out=len(made),
        ctx_in=ctypes.cast(context, ctypes.c_void_p),
        ctx_size_in=192,
        repeat=1,
        flags=CHECKSUM_COMPLETE,
    )
    code = -int(libbpf.library().bpf_prog_test_run_opts(bed.programs[hook.program], ctypes.byref(options)))
    if code == errno.EINVAL:
        pytest.skip("this kernel (before 6.13) cannot be asked about such sums")
    return code


TWO = pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
WAYS = pytest.mark.parametrize("way", ["pod to pod", "hairpin", "outside to pod", "from elsewhere", "to elsewhere"])


@FAMILIES
@TWO
@WAYS
def test_N77_a_sum_that_the_NIC_has_made_stays_right(bed: Bed, where: Places, make: Make, way: str):
    """Cilium 39279, "hw csum failure": first packet and later ones, there and back, to here and elsewhere."""
    port, far = (80, 81) if make is tcp else (53, 54)
    hook, device, call = {
        "pod to pod": (Hook.FROM_POD, "pod2", make(where.CLIENT, 40000, where.VIP, port)),
        "hairpin": (Hook.FROM_POD, "pod3", make(where.BACKEND, 40000, where.VIP, port)),
        "outside to pod": (Hook.FROM_UPLINK, "uplink", make(where.FAR, 40000, where.VIP, port)),
        "from elsewhere": (Hook.FROM_UPLINK, "uplink", make(where.REMOTE, 40000, where.VIP, port)),
        "to elsewhere": (Hook.FROM_POD, "pod2", make(where.CLIENT, 40000, where.VIP, far)),
    }[way]
    for _ in range(2):
        assert sum_after(bed, hook, call, device) == 0
    there = bed.run(hook, call, device=device)
    back, by = (Hook.FROM_UPLINK, "uplink") if there.ip.dst == where.REMOTE else (Hook.FROM_POD, "pod3")
    for flags in ("SA", "A"):
        assert sum_after(bed, back, answer_to(there, flags), by) == 0


def odd_packet(bed: Bed, where: Places, kind: str) -> tuple[Packet, str]:
    """A packet that is translated or answered though it has no ports in sight, and the device that it comes from."""
    there = bed.run(Hook.FROM_POD, udp(where.CLIENT, 40000, where.VIP, 53))
    about = there.packet[14 : 14 + (48 if where is V6 else 28)]
    first, later = UDP(sport=40000, dport=53, len=1608) / Raw(bytes(800)), Raw(bytes(range(200)) * 4)
    if where is V6:
        trouble, echo = ICMPv6DestUnreach(code=4), ICMPv6EchoRequest()
        headers = [frame(where.CLIENT, where.VIP) / IPv6ExtHdrFragment(nh=17, id=7, m=1)]
        headers.append(frame(where.CLIENT, where.VIP) / IPv6ExtHdrFragment(nh=17, id=7, offset=101))
    else:
        trouble, echo = ICMP(type=3, code=3), ICMP()
        headers = [frame(where.CLIENT, where.VIP, proto=17, id=7, flags="MF")]
        headers.append(frame(where.CLIENT, where.VIP, proto=17, id=7, frag=101))
    bed.run(Hook.FROM_POD, headers[0] / first)
    return {
        "error": (frame(where.BACKEND, where.CLIENT) / trouble / Raw(about), "pod3"),
        "RST": (tcp(where.CLIENT, 40000, where.VIP, 9), "pod2"),
        "ping": (frame(where.CLIENT, where.VIP) / echo, "pod2"),
        "later fragment": (headers[1] / later, "pod2"),
    }[kind]


@FAMILIES
@pytest.mark.parametrize("kind", ["error", "RST", "ping", "later fragment"])
def test_N77_so_does_that_of_ICMP_of_fragments_and_of_a_refusal(bed: Bed, where: Places, kind: str):
    """In IPv6 no header's checksum makes up for the addresses and the hop limit."""
    packet, device = odd_packet(bed, where, kind)
    outcome = bed.run(Hook.FROM_POD, packet, device=device)
    assert (outcome.verdict, outcome.packet[14:] != bytes(packet)[14:]) == (REDIRECT, True)
    assert sum_after(bed, Hook.FROM_POD, packet, device) == 0


def test_the_kernel_sees_a_sum_that_is_wrong(bed: Bed):
    """The check that the tests above rely on: SCTP's new ports are no part of such a sum, which nobody asks it for."""
    bed.serve({V4.called("70/SCTP"): [f"{V4.BACKEND}:7000"]})
    assert sum_after(bed, Hook.FROM_POD, sctp(V4.CLIENT, 40000, V4.VIP, 70), "pod2") == errno.EBADMSG
