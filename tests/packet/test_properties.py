"""What must hold for every packet there can be: hypothesis looks for one for which it does not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from frames import DROP, IP, PASS, REDIRECT, TCP, UDP, Ether, Outcome, Raw, addresses, frame, key_of, leaves
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packetbed import Bed
from places import BACKEND, CLIENT, GATEWAY_MAC, MAC, REMOTE, VIP, VIP_TWO
from rows import tell_more

from pydatapath.errors import KernelError
from pydatapath.kernel.layout import Hook

pytestmark = pytest.mark.same_everywhere

# The bed is the same for all examples of a test and is put in order inside; a read-only checkout has no database
every = settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SERVED = {("TCP", 80): (BACKEND, 8080), ("TCP", 443): (BACKEND, 443), ("TCP", 81): (REMOTE, 8080)}
SERVED |= {("UDP", 53): (BACKEND, 5353), ("UDP", 54): (REMOTE, 5353)}
ports = st.integers(0, 0xFFFF)
payloads = st.binary(max_size=100)


def words(limit: int) -> st.SearchStrategy[bytes]:
    """The bytes of options, IP's or TCP's: whole words, whatever they say."""
    return st.binary(max_size=4 * limit).map(lambda raw: raw + bytes(-len(raw) % 4))


@st.composite
def calls(draw: st.DrawFn) -> bytes:
    """A packet of the pod CLIENT to one of the services, of any kind that is valid."""
    protocol, dport = draw(st.sampled_from(sorted(SERVED)))
    options = draw(words(10))
    payload = draw(payloads)
    if protocol == "TCP":
        payload = draw(words(10)) + payload
        at_most = (len(payload) // 4) if len(payload) < 40 else 10
        offset = (5 + draw(st.integers(0, at_most))) << 4
        # What is reset has no answer, and SYN with ACK is one, to a connection that was never opened
        flags = draw(st.integers(0, 0xFF).filter(lambda flags: flags & 0x12 != 0x12)) & ~0x04
        numbers = [draw(st.integers(0, 0xFFFFFFFF)) for _ in range(2)]
        header = struct.pack("!HHIIBBHHH", draw(ports), dport, *numbers, offset, flags, draw(ports), 1, draw(ports))
    else:
        header = struct.pack("!HHHH", draw(ports), dport, 8 + len(payload), draw(st.integers(0, 1)))
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (5 + len(options) // 4),
        draw(st.integers(0, 0xFF)),
        20 + len(options) + len(header) + len(payload),
        draw(ports),
        draw(st.sampled_from([0, 0x4000, 0x8000])),  # Don't Fragment, and the bit that is reserved
        draw(st.integers(2, 255)),
        6 if protocol == "TCP" else 17,
        0,
        IPv4Address(CLIENT).packed,
        IPv4Address(VIP).packed,
    )
    ethernet = bytes(Ether(src=MAC[CLIENT], dst=GATEWAY_MAC, type=0x0800))
    return summed(bytearray(ethernet + head + options + header + payload))


def ones_complement(data: bytes) -> int:
    """RFC 1071: the complement of the sum of all 16-bit words."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def summed(raw: bytearray) -> bytes:
    """The packet with right checksums, made from scratch; a UDP checksum of 0 stays: there is none."""
    end = 14 + (raw[14] & 15) * 4
    raw[24:26] = bytes(2)
    struct.pack_into("!H", raw, 24, ones_complement(bytes(raw[14:end])))
    place = end + (16 if raw[23] == 6 else 6)
    if raw[23] == 17 and raw[place : place + 2] == bytes(2):
        return bytes(raw)
    raw[place : place + 2] = bytes(2)
    pseudo = bytes(raw[26:34]) + struct.pack("!HH", raw[23], len(raw) - end)
    found = ones_complement(pseudo + bytes(raw[end:]))
    struct.pack_into("!H", raw, place, found or (0xFFFF if raw[23] == 17 else 0))
    return bytes(raw)


def to_backend(call: bytes) -> tuple[bytes, str, int]:
    """What must leave for a call, made from scratch, and the address and port that it leaves for."""
    raw, transport = bytearray(call), 14 + (call[14] & 15) * 4
    protocol = "TCP" if call[23] == 6 else "UDP"
    backend, port = SERVED[protocol, int.from_bytes(call[transport + 2 : transport + 4], "big")]
    raw[30:34] = IPv4Address(backend).packed
    struct.pack_into("!H", raw, transport + 2, port)
    if backend == REMOTE:
        raw[22] -= 1
    else:
        raw[0:6] = bytes.fromhex(MAC[backend].replace(":", ""))
    return summed(raw), backend, port


@every
@given(call=calls(), payload=payloads)
def test_there_and_back(bed: Bed, call: bytes, payload: bytes):
    """Every packet reaches the backend, every answer comes from the service; sums are right, no other byte changes."""
    bed.forget_flows()
    there = bed.run(Hook.FROM_POD, call)
    want, backend, port = to_backend(call)
    assert there.verdict == REDIRECT
    assert there.packet == want

    far = backend == REMOTE
    transport = 14 + (call[14] & 15) * 4
    sport, dport = struct.unpack_from("!HH", call, transport)
    header = TCP(sport=port, dport=sport, flags="PA") if call[23] == 6 else UDP(sport=port, dport=sport)
    answer = frame(backend, CLIENT) / header / Raw(payload)
    back = bed.run(Hook.FROM_UPLINK if far else Hook.FROM_POD, answer, device="" if far else "pod3")
    assert back.verdict == REDIRECT
    assert back.packet == bytes(leaves(answer, src=VIP, sport=dport, ttl=63 if far else 64))


@every
@given(packet=st.binary(min_size=15, max_size=200), ethertype=st.sampled_from([b"", b"\x08\x00", b"\x08\x06"]))
def test_F20_garbage_is_never_rewritten(bed: Bed, packet: bytes, ethertype: bytes):
    """Noise, noise in IPv4 and noise in ARP: passed as it came, at every hook."""
    packet = packet[:12] + ethertype + packet[12:]
    for hook in Hook:
        outcome = attempt(bed, hook, packet)
        wrong = outcome is not None and (outcome.verdict, outcome.packet) != (PASS, packet)
        tell_more(sent=1, wrong=int(wrong))
        assert not wrong, (hook, outcome)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid call with some bytes overwritten and the end cut off or padded."""
    raw = bytearray(draw(calls()))
    for _ in range(draw(st.integers(0, 4))):
        raw[draw(st.integers(0, min(len(raw), 60) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del raw[draw(st.integers(15, len(raw))) :]
    return bytes(raw) + draw(st.binary(max_size=4))


@every
@given(packet=damaged())
def test_F20_only_a_whole_packet_to_a_service_is_rewritten(bed: Bed, packet: bytes):
    """What a plain reading of RFC 791, 768 and 9293 calls whole, and nothing else."""
    bed.forget_flows()
    assume(packet[23:24] != b"\x01")  # ICMP and fragments have tests of their own
    assume(int.from_bytes(packet[20:22], "big") & 0x3FFF == 0)
    outcome = attempt(bed, Hook.FROM_POD, packet)
    tell_more(sent=1)
    if outcome is None or not is_whole(packet):
        assert outcome is None or (outcome.verdict, outcome.packet) == (PASS, packet)
        return
    ip = Ether(packet)[IP]
    called = ("TCP" if ip.proto == 6 else "UDP", int.from_bytes(packet[14 + ip.ihl * 4 + 2 :][:2], "big"))
    answers = ip.proto == 6 and ip.payload.flags & 0x12 == 0x12  # SYN and ACK: to nobody who has called
    if ip.dst == VIP and called in SERVED and not answers:
        routed = SERVED[called][0] == REMOTE
        assert (outcome.packet != packet) is not (routed and ip.ttl <= 1)
        assert len(outcome.packet) == len(packet)  # N81
    elif ip.dst in (VIP, VIP_TWO):
        assert outcome.verdict in (REDIRECT, DROP)  # refused: test_refused.py
    else:
        assert outcome.packet == packet
        assert outcome.verdict == (DROP if packet[30] == 10 and packet[31] & 0xF0 == 96 else PASS)


def attempt(bed: Bed, hook: Hook, packet: bytes) -> Outcome | None:
    """Runs it, or None where this kernel does not run packets like it: IPv4 that ends inside its header (6.18)."""
    try:
        return bed.run(hook, packet)
    except KernelError:
        assert len(packet) < 14 + 20
        return None


def is_whole(packet: bytes) -> bool:
    """An IPv4 packet, no fragment, whose TCP or UDP header is there and whose lengths fit into each other."""
    if packet[12:14] != b"\x08\x00" or len(packet) < 34 or packet[14] >> 4 != 4:
        return False
    header, total, there = (packet[14] & 15) * 4, int.from_bytes(packet[16:18], "big"), len(packet) - 14
    fragment = int.from_bytes(packet[20:22], "big") & 0x3FFF
    if header < 20 or fragment or not header <= total <= there:
        return False
    transport = packet[14 + header : 14 + total]
    if packet[23] == 6:
        return len(transport) >= 20 and 20 <= (transport[12] >> 4) * 4 <= len(transport)
    if packet[23] == 17:
        return len(transport) >= 8 and 8 <= int.from_bytes(transport[4:6], "big") <= len(transport)
    return False


@settings(every, max_examples=50)
@given(script=st.lists(st.tuples(st.sampled_from(["there", "back"]), st.integers(0, 0x3F)), min_size=1, max_size=12))
def test_N99_whatever_flags_come_in_any_order_all_are_translated(bed: Bed, script: list[tuple[str, int]]):
    """N99: odd flags never let a packet of a known connection by untranslated, whatever went before."""
    bed.forget_flows()
    call = frame(CLIENT, VIP) / TCP(sport=40000, dport=80, flags="S")
    back = frame(BACKEND, CLIENT) / TCP(sport=8080, dport=40000)
    bed.establish(call)
    for direction, flags in script:
        packet = (call if direction == "there" else back).copy()
        packet[TCP].flags = flags
        known = key_of(packet) in bed.entries("flows") or key_of(packet) in bed.entries("half_open")
        outcome = bed.run(Hook.FROM_POD, packet, device="pod2" if direction == "there" else "pod3")
        if direction == "there" and (known or flags & 0x12 != 0x12):  # who answers an opening begins nothing
            assert addresses(outcome)[2:] == (BACKEND, 8080)
        if direction == "back" and known and flags & 0x12 != 0x02:  # a SYN is a connection of the backend's own
            assert addresses(outcome)[:2] == (VIP, 80)


@pytest.mark.parametrize("build", [calls, damaged])
def test_the_strategies_make_what_they_say(build: Callable[[], st.SearchStrategy[bytes]]):
    """Every call is whole to our plain reading; most damaged ones are not, some are."""
    seen = []

    @settings(every, max_examples=200, derandomize=True)
    @given(packet=build())
    def look(packet: bytes) -> None:
        seen.append(is_whole(packet))

    look()
    assert all(seen) if build is calls else {True, False} == set(seen)
