"""Frames cut off, mutated and made up, among the packets of histories: the model's verdict, or they are left alone.

PYDATAPATH_GARBAGE sets how many each test takes; PYDATAPATH_BIG makes it more than a million in all six.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections import Counter as Tally
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random
from typing import Final
from unittest import mock

import garbage
import pytest
from frames import DROP, PASS, REDIRECT, Outcome
from garbage import Reading, mutants, off, read, unread, unsummed, written
from histories import history
from moments import Paused, ticks
from packetbed import Bed
from places import DEVICES, GATEWAY_MAC, MAC, NODE, V4
from rows import tell
from steps import Send
from twins import Differs, Twins, check, counted, refused_pods, tables_of
from wire import ELSEWHERE_MAC, NO_MAC, frame, is_by_bridge
from worlds import HERE, HIDDEN, LIMITED, MACS, OTHERWISE_TIMED, PAST

from pydatapath.kernel import clock, libbpf
from pydatapath.kernel.layout import Family, program_places
from pydatapath.kernel.layout import Hook as Program
from pydatapath.reference import Hook, Impossible, Model, Verdict, World
from pydatapath.reference.beside import Frame

BIG: Final = bool(os.environ.get("PYDATAPATH_BIG"))
EMULATED: Final = "PYDATAPATH_EMULATED" in os.environ
COUNT: Final = int(os.environ.get("PYDATAPATH_GARBAGE") or (170_000 if BIG else 600 if EMULATED else 3000))
FIRST: Final = int(os.environ.get("PYDATAPATH_SEED", "0"))
PLACES: Final = program_places(tuple(Family), Program)
U32: Final = struct.Struct("=I")
EACH: Final = 8  # of every packet of a history
SOON: Final = 40  # histories within which a fault must show
# What Linux takes for broadcast, or for the anycast address of a network's routers (RFC 4291 2.6.1)
NOBODYS: Final = {"10.1.0.255", "192.168.9.255", "fd00:10:1::", "2001:db8:9::"}


class Mill(Twins):
    """Twins that get each packet of a history, and then what was made of it."""

    def __init__(self, bed: Bed, model: Model, rng: Random, kinds: Tally[str]) -> None:
        super().__init__(bed, model, [])
        self.rng, self.kinds = rng, kinds

    def _send(self, send: Send) -> None:
        super()._send(send)
        for raw in mutants(self.rng, frame(send.packet, NO_MAC, wrong=send.wrong), EACH):
            found = read(raw)
            if not NOBODYS.isdisjoint({found.source, found.destination}):
                continue  # the model's routes know of no such
            hook, device = send.hook, send.device
            if self.rng.randrange(4) == 0:
                hook = self.rng.choice(list(Hook))
                device = "pod2" if hook is Hook.FROM_POD else ""
            try:
                self.grind(hook, device, delivered(raw, hook, device, self._meant(hook, raw)))
            except Differs as differs:
                got = f"{hook.value} by {device!r} got {raw.hex().rstrip('0')}\n  {read(raw, self.model.world)}"
                raise Differs(f"{got}\n  {differs}") from None

    def _meant(self, hook: Hook, raw: bytes) -> str:
        """Of the pod whose MAC a frame will be for the interface, "" for none: where it counts often its receiver's."""
        if hook is not Hook.FROM_POD or not self.model.world.pod_fast_path or self.rng.randrange(4) == 0:
            return ""
        there = self.model.world.endpoints.get(read(raw).destination, "")
        return there if there in MACS and self.rng.randrange(8) else self.rng.choice(list(DEVICES.values()))

    def grind(self, hook: Hook, device: str, raw: bytes) -> None:
        """A frame, through both; raises Differs."""
        self._serve_now()
        if ticks() - self._stamped > clock.HZ // 50:
            self._stamp_all()
        outcome = self.bed.run(Program[hook.name], raw, device=device)
        self._ran = ticks()
        if self._ran - self._stamped > clock.HZ / 10:
            raise Paused
        now_counted = counted(self.bed)
        moved = {name: now - self._counted[name] for name, now in now_counted.items() if now != self._counted[name]}
        self._counted = now_counted
        reading = read(raw, self.model.world, hook)
        self.kinds[reading.kind] += 1
        # What the node sends itself is not looked at behind extension headers: it calls its node ports without
        if reading.packet is None or (hook is Hook.TO_LOOPBACK and reading.is_extended):
            self._unread(hook, device, raw, reading, outcome, moved)
        else:
            self._packet(hook, device, raw, reading, outcome, moved)

    def _unread(
        self, hook: Hook, device: str, raw: bytes, reading: Reading, outcome: Outcome, moved: dict[str, int]
    ) -> None:
        """What is no packet of a flow is left as it came, or dropped by name."""
        names = unread(hook, raw, reading, self.model.world)
        dropped = any(name.startswith("drop_") for name in names)
        check("counted", moved, dict.fromkeys(names, 1))
        check("left as", outcome.packet, raw)
        learns = reading.kind == "query" or (reading.kind == "arp" and len(raw) >= 32)
        if hook is Hook.FROM_POD and learns:
            source = reading.source or ".".join(map(str, raw[28:32]))
            self.model.world = self.model.world.learned(source, device)
        # Of what has headers that can be read it is told for which pod it is
        told = reading.kind in {"protocol", "query", "unreadable", "part"}
        beside = told and Frame(hook, device, meant(raw)).is_beside(reading.destination, self.model.world)
        check("verdict", outcome.verdict, DROP if dropped else REDIRECT if beside else PASS)

    def _packet(
        self, hook: Hook, device: str, raw: bytes, reading: Reading, outcome: Outcome, moved: dict[str, int]
    ) -> None:
        """One that the model knows: verdict, counters, tables; what left is the same but for what was translated."""
        packet = reading.packet
        assert packet is not None
        before = self._flows
        self._read_flows(*tables_of(packet.source))
        left = read(outcome.packet, self.model.world, hook).packet
        canonical = frame(left, NO_MAC) if left and not left.error else frame(packet, NO_MAC)
        chosen = self._chosen(packet, outcome._replace(packet=canonical), before, moved)
        chosen = self._or_lost(chosen, hook, packet, moved)
        try:
            way_in = {"interface": device or None, "meant": meant(raw)}
            verdict = self.model.receive(hook, packet, self.now, chosen=chosen, **way_in)
        except Impossible as impossible:
            raise Differs(f"the kernel's choice: {impossible}") from None
        # Whether Linux has a way for what comes from nobody's address is its own affair
        if not (verdict.to == "route" and is_nobodys(packet.source)):
            check("counted", moved, dict.fromkeys(verdict.counted, 1))
            self._check_left(raw, reading, outcome, verdict)
        self._check_flows(Family.of(packet.source))
        self._check_mappings(Family.of(packet.source))
        self._check_fragments(Family.of(packet.source))
        if chosen.gave_up:
            self._bind_all_the_same(hook, packet)
        self._check_affinities()

    @staticmethod
    def _check_left(raw: bytes, reading: Reading, outcome: Outcome, verdict: Verdict) -> None:
        answers = verdict.refused or verdict.kind == "answer"
        redirected = answers or verdict.kind == "forward" or verdict.to in {"bridge", "uplink", "loopback"}
        check("verdict", outcome.verdict, REDIRECT if redirected else DROP if verdict.kind == "drop" else PASS)
        if answers:
            back = read(outcome.packet)
            check("answered", (back.source, back.destination), (reading.destination, reading.source))
        elif verdict.kind != "drop":
            check(
                "left as", unsummed(outcome.packet, reading), unsummed(written(raw, reading, verdict.packet), reading)
            )
            check("what its sums are off by", off(outcome.packet, reading), off(raw, reading))


def delivered(raw: bytes, hook: Hook, device: str, to_pod: str) -> bytes:
    """The frame with MACs as it has them at a hook; the next hop to services has one of its own.

    `to_pod`: the interface of the pod that it is for, if it is one's.
    """
    if hook is Hook.TO_LOOPBACK:
        return bytes(12) + raw[12:]
    to = GATEWAY_MAC if is_by_bridge(read(raw).destination or V4.UPLINK) else MAC[NODE]
    to = MACS.get(to_pod, to)
    return packed_mac(to) + packed_mac(MACS.get(device, ELSEWHERE_MAC)) + raw[12:]


def meant(raw: bytes) -> str:
    """The interface of the pod whose MAC a frame is for, "" for none."""
    return next((device for device in DEVICES.values() if MACS[device] == raw[:6].hex(":")), "")


def is_nobodys(address: str) -> bool:
    """Whether nobody can have it as a source (RFC 1122 3.2.1.3, RFC 4291 2.7)."""
    one = ip_address(address)
    return one.is_multicast or one.is_loopback or one.is_unspecified or one.is_reserved


def packed_mac(text: str) -> bytes:
    """A MAC as it stands in a frame."""
    return bytes.fromhex(text.replace(":", ""))


def ground(bed: Bed, seed: int, world: World) -> tuple[Tally[str], str]:
    """What a history's packets became, by kind, and on what the two differ; it ends where the machine stands still.

    Where the world masquerades pods call outside, too.
    """
    kinds = Tally[str]()
    try:
        mill = Mill(bed, Model(world), Random(seed), kinds)
        for step in history(Random(seed), away=world.masquerade is not None):
            mill.take(step)
        mill.end()
    except Paused:
        pass
    except Differs as differs:
        return kinds, f"PYDATAPATH_SEED={seed}: {differs}"
    return kinds, ""


def grind_all(bed: Bed, world: World, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """So many frames, always the same ones."""
    found, began, seed = Tally[str](), time.monotonic(), FIRST
    while found.total() < count:
        kinds, difference = ground(bed, seed, world)
        if difference:
            tell(sent=found.total(), wrong=1, seed=seed)
            pytest.fail(difference, pytrace=False)
        found, seed = found + kinds, seed + 1
    tell(sent=found.total(), wrong=0, seed=FIRST)
    assert all(found[kind] for kind in ("packet", "malformed", "protocol", "other", "query", "arp", "unreadable"))
    with capsys.disabled():
        sys.stdout.write(f"\n{found.total():,} frames, {time.monotonic() - began:.0f} s: {dict(found.most_common())}\n")


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_F20_what_nobody_should_send_has_the_models_verdict_or_is_left_alone(
    bed: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame; and each is counted by name where it is dropped or left unread."""
    grind_all(bed, HERE, COUNT, capsys)


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_N84_F20_of_what_nobody_should_send_nothing_leaves_as_it_must_not(
    masquerading: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame, where pods are masqueraded."""
    grind_all(masquerading, HIDDEN, COUNT, capsys)


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_F20_pods_pass_the_bridge_by_with_what_nobody_should_send_as_in_the_model(
    past: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame, where what pods of the node send to each other goes past the bridge."""
    grind_all(past, PAST, COUNT, capsys)


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_N24_F20_of_what_nobody_should_send_a_pod_begins_no_more_than_it_may(
    limited: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame, where pods are masqueraded and each has a limit on new flows."""
    with refused_pods() as refused:
        grind_all(limited, LIMITED, COUNT, capsys)
    assert refused


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_N23_F20_of_what_nobody_should_send_where_ports_are_few_as_in_the_model(
    timed: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame, where the ports that pods are given are soon taken, and pods go past the bridge."""
    grind_all(timed, OTHERWISE_TIMED, COUNT, capsys)


@pytest.mark.timeout(180 + COUNT // 50)
def test_N108_N22_F20_of_what_nobody_should_send_ports_are_searched_for_as_in_the_model(
    one_by_one: Bed, capsys: pytest.CaptureFixture[str]
):
    """Every frame, where whatever meets a taken port goes on in `search`."""
    grind_all(one_by_one, HERE, COUNT, capsys)


# Readers with one fault each: a comparison that does not see these sees nothing
FAULTS: Final = {
    "a length that lies is believed": ("_lies", False),
    "no packet is of a known protocol": ("_name", None),
    "no segment has flags": ("_flags", ""),
    "no error quotes anything": ("_quoted", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_with_a_fault_is_found_out(bed: Bed, fault: str):
    """Within a few histories."""
    name, said = FAULTS[fault]
    with mock.patch.object(garbage, name, return_value=said):
        assert any(ground(bed, seed, HERE)[1] for seed in range(SOON))


def test_a_model_that_does_not_know_whose_MAC_it_is_is_found_out(past: Bed):
    """Within a few histories."""
    with mock.patch.dict(globals(), {"meant": lambda _: ""}):
        assert any(ground(past, seed, PAST)[1] for seed in range(SOON))


@contextlib.contextmanager
def without(bed: Bed, name: str) -> Iterator[None]:
    """A program that others go on in is not there for a while."""
    programs, place = bed.pins / "programs", U32.pack(PLACES[name])
    with libbpf.opened(libbpf.open_pin(str(programs / "walks"))) as walks:
        assert libbpf.remove(walks, place)
        try:
            yield
        finally:
            with libbpf.opened(libbpf.open_pin(str(programs / name))) as program:
                assert libbpf.update(walks, place, U32.pack(program)) == 0


def is_missed(bed: Bed, world: World) -> bool:
    """Whether the two differ within a few histories, or what the kernel chose cannot even be found."""
    for seed in range(SOON):
        try:
            if ground(bed, seed, world)[1]:
                return True
        except StopIteration:
            return True
    return False


def test_every_program_has_run(one_by_one: Bed, masquerading: Bed):
    """Of either build: without it something differs. (The kernel's run_cnt has no runs by tail calls.) But `search`,
    where `walk` tries several ports itself: a history does not take all of these.
    """
    for build, world, missed in ((one_by_one, HERE, set[str]()), (masquerading, HIDDEN, {"search", "search6"})):
        there = [name for name in PLACES if (build.pins / "programs" / name).exists()]
        assert len(there) > len(Program), "all but the five of the hooks"
        unseen = set()
        for name in there:
            with without(build, name):
                unseen |= set() if is_missed(build, world) else {name}
        assert unseen <= missed
