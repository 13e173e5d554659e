"""The kernel's programs and the model at the same point of a history: each packet goes through both.

Compared after each packet: the verdict, every byte that leaves, the counters, whether it took `walk`, both flow tables,
and which backend a client keeps. Where the kernel is free (which backend, which port), the model is told what it chose.

Time is the history's own: it passes by writing older stamps into the maps. What the test itself takes is taken out
again before it counts.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from histories import (
    Again,
    Answer,
    Direct,
    Lose,
    Send,
    Serve,
    Step,
    Wait,
    entry_in,
    flow_bytes,
    frame,
    packed,
    ports_tried,
    traceable,
    tuple_bytes,
    tuple_in,
    tuple_of,
    way_of,
)
from packetbed import (
    BACKEND,
    CLIENT,
    DEVICES,
    DROP,
    MAC,
    NODE,
    PASS,
    REDIRECT,
    SIZES,
    UPLINK,
    UPLINK_MAC,
    Bed,
    Outcome,
    Serving,
    shown,
)
from packetbed import Hook as KernelHook

from pydatapath.kernel import clock, libbpf, tables
from pydatapath.kernel.layout import AFFINITY, FLOW, BackendState, Counter, EndpointKind, ServiceFlag, VipKind
from pydatapath.kernel.layout import BACKEND as BACKEND_STRUCT
from pydatapath.kernel.maps import possible_cpus
from pydatapath.plan import Live
from pydatapath.plan import Run as Slots
from pydatapath.reference import NODE as THE_NODE
from pydatapath.reference import Address, Backend, Choice, Impossible, Model, Packet, Route, Service, Verdict, World

__all__ = ["Run", "compare", "shortest"]

HERE = World(
    NODE,
    endpoints={NODE: THE_NODE, UPLINK: THE_NODE, **DEVICES},
    pod_networks=("10.1.0.0/24",),
    service_networks=("10.96.0.0/12",),
    cluster_networks=("10.2.0.0/24",),
    routes=tuple(Route(f"{network}.0/24") for network in ("10.1.0", "10.2.0", "198.51.100", "192.168.9")),
    uplink_address=UPLINK,
)
MACS = {device: MAC[address] for address, device in DEVICES.items()} | {THE_NODE: MAC[NODE]}
ELSEWHERE_MAC = "02:00:00:00:02:02"
REFUSED = ("drop_no_backend", "drop_no_service")
STAMP = struct.Struct("=Q")  # last_seen of struct flow
STAMP_AT, STAMP_END = 16, 24  # behind the tuple
WAITS = 8  # see histories.ODD
STILL = 0.1  # seconds that the machine may stand still: less than what histories.ODD leaves
ATTEMPTS = 5


class Differs(AssertionError):
    """The kernel and the model do not agree; the message says on what."""


class Paused(Exception):
    """The machine stood still, so that entries are older than the history says."""


class Twins:
    """The kernel's programs and the model, at the same point of a history."""

    def __init__(self, bed: Bed, model: Model) -> None:
        bed.reset()
        bed.put_endpoint(UPLINK, bed.devices["br0"], MAC[NODE], EndpointKind.NODE)
        give_all_numbers_once(bed)
        self.bed, self.model = bed, model
        self.now = 1_000_000.0  # the history's own time, in seconds
        self._ahead = jiffies_ahead(bed)
        self._stamped = ticks()
        self._waits = 0
        self._services: dict[str, Serving] = {}
        self._sent: list[tuple[Send, Verdict]] = []
        self._flows: dict[str, dict[bytes, bytes]] = {"flows": {}, "half_open": {}}
        self._counted = counted(bed)
        self.packets = 0
        self._learn_services()

    # What happens

    def take(self, step: Step) -> None:
        """One step of a history, whatever it is; raises Differs. What it refers to may not be there: then nothing."""
        match step:
            case Send():
                self._send(step)
            case Wait(seconds) if self._waits < WAITS:
                self._waits += 1
                self.now += seconds
                self._stamp_all()
            case Serve(called, serving):
                self._serve(called, serving)
            case Lose(place):
                self._lose(place)
            case Answer(back, flags) | Again(back, flags) if back < len(self._sent):
                self._send(self._follow_up(step, *self._sent[-1 - back], flags))
            case Direct(back, attempts) if back < len(self._sent):
                for packet in self._direct(*self._sent[-1 - back], attempts):
                    self._send(packet)

    @staticmethod
    def _follow_up(step: Step, sent: Send, verdict: Verdict, flags: str) -> Send:
        if isinstance(step, Answer):
            packet = replace(verdict.packet.readdressed(verdict.packet.tuple.reverse), ttl=64)
        else:
            packet = sent.packet
        packet = traceable(replace(packet, flags=flags) if packet.protocol == "TCP" else packet)
        return Send(*way_of(packet), packet) if isinstance(step, Answer) else sent._replace(packet=packet)

    @staticmethod
    def _direct(sent: Send, verdict: Verdict, attempts: tuple[int, ...]) -> list[Send]:
        """From who sent it, to where it went."""
        flags = "S" if sent.packet.protocol == "TCP" else ""
        packet = replace(verdict.packet, source=sent.packet.source, flags=flags, ttl=64)
        ports = ports_tried(sent.packet)
        return [sent._replace(packet=replace(packet, source_port=ports[attempt])) for attempt in attempts]

    def _serve(self, called: str, serving: Serving | None) -> None:
        self._services.pop(called, None)
        if serving is not None:
            self._services[called] = serving
        self.bed.serve(self._services)
        self._learn_services()

    def _learn_services(self) -> None:
        self.model.world = told(tables.read_live(self.bed.maps, None), self.model.world)

    def _lose(self, place: int) -> None:
        keys = [*self.model.flows.main, *self.model.flows.half_open]
        if place < len(keys):
            self.model.flows.forget(keys[place])
            for table, entries in self._flows.items():
                self.bed.maps[table].delete(tuple_bytes(keys[place]))
                entries.pop(tuple_bytes(keys[place]), None)

    def _stamp_all(self) -> None:
        """Gives every entry the age that it has in the history, whatever time the test itself has taken."""
        self._stamped = ticks()
        for name, table in (("flows", self.model.flows.main), ("half_open", self.model.flows.half_open)):
            for key, entry in table.items():
                raw = bytearray(self._flows[name][tuple_bytes(key)])
                STAMP.pack_into(raw, STAMP_AT, self._stamp(entry.last_seen))
                self.bed.maps[name].update(tuple_bytes(key), bytes(raw))
        for (client, service), (_, since) in self.model.chooser.affinity.items():
            key = packed(client) + struct.pack("=I", service)
            raw = self.bed.maps["affinities"].lookup(key)
            self.bed.maps["affinities"].update(key, STAMP.pack(self._stamp(since)) + raw[STAMP.size :])

    def _stamp(self, then: float) -> int:
        """Jiffies at a time of the history; two ticks before that, since a stamp of the future is none."""
        return self._stamped + self._ahead - 2 - round((self.now - then) * clock.HZ)

    def _send(self, send: Send) -> None:
        """A packet, through both."""
        if ticks() - self._stamped > clock.HZ // 50:
            self._stamp_all()
        raw = frame(send.packet, MACS.get(send.device, ELSEWHERE_MAC))
        outcome = self.bed.run(KernelHook[send.hook.name], raw, device=send.device)
        if ticks() - self._stamped > clock.HZ * STILL:
            raise Paused
        self.packets += 1
        flows = {name: dict(self.bed.maps[name].items()) for name in self._flows}
        now_counted = counted(self.bed)
        moved = {
            name: count - self._counted[name] for name, count in now_counted.items() if count != self._counted[name]
        }
        chosen = self._chosen(send.packet, outcome, flows["half_open"], moved)
        self._flows, self._counted = flows, now_counted
        try:
            verdict = self.model.receive(send.hook, send.packet, self.now, chosen=chosen, interface=send.device or None)
        except Impossible as impossible:
            raise Differs(f"the kernel's choice: {impossible}") from None
        check("counted", moved, dict.fromkeys(verdict.counted, 1))
        self._check_leaving(send, raw, outcome, verdict)
        self._check_flows()
        self._check_affinities()
        self._sent.append((send, verdict))

    def _chosen(
        self, packet: Packet, outcome: Outcome, half_open: Mapping[bytes, bytes], moved: Mapping[str, int]
    ) -> Choice:
        """What the kernel chose, read off the packet that left, or off the claim where it left as it came."""
        if "drop_ports_taken" in moved:
            return Choice(gave_up=True)
        if not moved.keys().isdisjoint(REFUSED):
            return Choice()
        service = self.model.world.services.get(packet.tuple.called)
        backends = {*service.inside, *service.outside} if service else set()
        left = tuple_in(outcome.packet)
        if left != packet.tuple:
            found = [one for one in backends if (one.address, one.port) == (left.destination, left.destination_port)]
            return Choice(found[0] if found else None, left.source_port)
        for key, raw in half_open.items() - self._flows["half_open"].items():
            to, _, _, _, number, generation, _, _ = FLOW.unpack(raw)
            if to == tuple_bytes(packet.tuple.reverse):
                found = [one for one in backends if (one.number, one.generation) == (number, generation)]
                return Choice(found[0] if found else None, tuple_of(key).destination_port)
        return Choice()

    # What must be equal

    def _check_leaving(self, send: Send, raw: bytes, outcome: Outcome, verdict: Verdict) -> None:
        check("walked", outcome.walked, verdict.walked)
        if verdict.refused:
            check("refused", (outcome.verdict, refusal(outcome.packet)), (REDIRECT, expected_refusal(raw)))
            return
        redirected = verdict.kind == "forward" or verdict.to in {"bridge", "uplink"}
        check("verdict", outcome.verdict, DROP if verdict.kind == "drop" else REDIRECT if redirected else PASS)
        to_mac = raw[:6].hex(":")
        if verdict.kind == "node":
            to_mac = UPLINK_MAC if verdict.to == "uplink" else MAC[NODE]
        elif verdict.kind == "forward" and verdict.to != "route":
            to_mac = MACS[self.model.world.endpoints[verdict.to]]
        want = frame(verdict.packet, raw[6:12].hex(":"), to_mac)
        if outcome.packet != want:
            raise Differs(f"left as {shown(outcome.packet)}\n  model: {shown(want)}")

    def _check_flows(self) -> None:
        for name, table in (("flows", self.model.flows.main), ("half_open", self.model.flows.half_open)):
            kernel, model = self._flows[name], {tuple_bytes(key): entry for key, entry in table.items()}
            check(f"keys of {name}", sorted(map(tuple_of, kernel)), sorted(table))
            for key, entry in model.items():
                have, want = kernel[key], flow_bytes(entry)
                if have[:STAMP_AT] + have[STAMP_END:] != want[:STAMP_AT] + want[STAMP_END:]:
                    raise Differs(f"{tuple_of(key)} in {name}: {entry_in(have)}\n  model: {entry_in(want)}")
                self._check_age(f"{tuple_of(key)} in {name}", STAMP.unpack_from(have, STAMP_AT)[0], entry.last_seen)

    def _check_affinities(self) -> None:
        for (client, service), (backend, since) in self.model.chooser.affinity.items():
            raw = self.bed.maps["affinities"].lookup(packed(client) + struct.pack("=I", service))
            kept = (0, 0, 0) if raw is None else AFFINITY.unpack(raw)
            check(f"what {client} keeps of {service}", kept[1:3], (backend.number, backend.generation))
            self._check_age(f"what {client} keeps of {service}", kept[0], since)

    def _check_age(self, what: str, stamp: int, then: float) -> None:
        age, want = (ticks() + self._ahead - stamp) / clock.HZ, self.now - then
        if abs(age - want) > 0.4:
            raise Differs(f"{what}: {age:.2f} s old, model: {want:.2f} s")


def check(what: str, kernel: object, model: object) -> None:
    """Raises Differs where these are not equal."""
    if kernel != model:
        raise Differs(f"{what}: {kernel}\n  model: {model}")


# What the kernel has, in the model's words


def told(live: Live, world: World) -> World:
    """The world with the services as the maps have them."""
    backends = {
        number: Backend(one.address.address, one.address.port, number, one.generation)
        for number, one in live.backends.items()
    }
    draining = {number for number, one in live.backends.items() if one.draining}

    def run(slots: Slots) -> tuple[Backend, ...]:
        numbers = live.slots[slots.first_slot] if slots.slot_count else ()
        return tuple(backends[number] for number in numbers)

    services = {}
    for at, called in live.services.items():
        flags = called.flags
        ranges = tuple(one.network for one in live.guards.ranges if one.service == called.number)
        services[Address(at.address, at.port, at.protocol)] = Service(
            called.number,
            run(called.inside),
            run(called.outside),
            drop_inside=ServiceFlag.DROP_INSIDE in flags,
            drop_outside=ServiceFlag.DROP_OUTSIDE in flags,
            affinity=called.affinity,
            sources=ranges if ServiceFlag.RANGES in flags else None,
        )
    drained = {live.backends[number].address for number in draining}
    return replace(
        world,
        services=services,
        cluster_ips=frozenset(at for at, kind in live.guards.vips.items() if kind is VipKind.CLUSTER),
        targets=frozenset(Address(one.address, one.port, one.protocol) for one in drained),
        draining=frozenset(backends[number] for number in draining),
    )


# The kernel's side


def ticks() -> int:
    """The coarse clock in ticks: as fast as jiffies, but from another beginning."""
    return time.clock_gettime_ns(clock.CLOCK_MONOTONIC_COARSE) * clock.HZ // 1_000_000_000


def jiffies_ahead(bed: Bed) -> int:
    """How far jiffies are ahead of the coarse clock, by the stamp of a flow that begins now; it is forgotten again."""
    target = tables.pack_address(tables.Address(BACKEND, 9, "TCP"))
    bed.maps["targets"].update(target, struct.pack("=I", 1))
    bed.run(KernelHook.FROM_POD, frame(Packet(CLIENT, 9, BACKEND, 9, flags="S"), MAC[CLIENT]))
    ahead = next(entry.last_seen for entry in bed.entries("half_open").values()) - ticks()
    bed.forget_flows()
    bed.maps["targets"].delete(target)
    return ahead


def give_all_numbers_once(bed: Bed) -> None:
    """As if every backend's number had been another's before: who comes when one has gone is given that one's again."""
    gone = BACKEND_STRUCT.pack(bytes(4), bytes(2), 0, BackendState.GONE, 7, 0)
    bed.maps["backends"].update_many({struct.pack("=I", number): gone for number in range(1, SIZES.backends)})


@cache
def _counter_bytes() -> int:
    """Bytes of one counter, of all CPUs together."""
    return 8 * possible_cpus()


def counted(bed: Bed) -> dict[str, int]:
    """All counters, in one call where Bed.counted makes one for each."""
    size = _counter_bytes()
    raw = libbpf.batch_read(bed.maps["counters"].descriptor, 4, size, len(Counter))[1]
    return {one.name.lower(): sum(memoryview(raw)[one * size : (one + 1) * size].cast("Q")) for one in Counter}


def refusal(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Who is refused by whom, and what by: TCP's ports and RST, or ICMP's type, code and quotation."""
    if raw[23] == 6:
        return raw[26:30], raw[30:34], raw[34:38] + bytes([raw[47] & 4])
    return raw[26:30], raw[30:34], raw[34:36] + raw[42:70]


def expected_refusal(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """The same, from the packet that is refused (C2)."""
    if raw[23] == 6:
        return raw[30:34], raw[26:30], raw[36:38] + raw[34:36] + b"\4"
    return raw[30:34], raw[26:30], b"\3\3" + raw[14:42]


# Whole histories


class Run(NamedTuple):
    """What became of a history: on what the two differ, "" for nothing; after how many packets."""

    difference: str
    packets: int


def compare(bed: Bed, steps: Iterable[Step], model: Callable[[World], Model] = Model) -> Run:
    """Takes both through a history; again where the machine stood still meanwhile."""
    for _ in range(ATTEMPTS):
        twins = Twins(bed, model(HERE))
        try:
            for step in steps:
                twins.take(step)
        except Paused:
            continue
        except Differs as differs:
            return Run(str(differs), twins.packets)
        return Run("", twins.packets)
    raise Paused(f"the machine stood still for over {STILL} s in {ATTEMPTS} attempts at one history")


def shortest(bed: Bed, steps: Sequence[Step], model: Callable[[World], Model] = Model) -> list[Step]:
    """A history that differs, without the steps that it differs without."""
    left, place = list(steps), len(steps) - 1
    while place >= 0:
        fewer = left[:place] + left[place + 1 :]
        if compare(bed, fewer, model).difference:
            left = fewer
        place -= 1
    return left
