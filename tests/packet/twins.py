"""The kernel's programs and the model at the same point of a history: each packet goes through both.

Compared after each packet: the verdict, every byte that leaves, the counters, whether it took `walk`, both flow tables,
which datagrams' first fragments were seen, and which backend a client keeps. Where the kernel is free (which backend,
which port), the model is told what it chose.

Time is the history's own: it passes by writing older stamps into the maps. What the test itself takes is taken out
again before it counts.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

from frames import DROP, PASS, REDIRECT, Outcome, packed, shown
from moments import STILL, Paused, jiffies_ahead, ticks
from packetbed import SIZES, Bed, Serving, whole
from places import (
    DEVICES,
    MAC,
    NODE,
    UPLINK_MAC,
)
from steps import (
    Across,
    Again,
    Answer,
    Direct,
    Interface,
    Lose,
    Nodes,
    Piece,
    Send,
    Serve,
    Step,
    Tell,
    Unasked,
    Wait,
    follow_up,
)
from wire import (
    ELSEWHERE_MAC,
    NO_MAC,
    budget_key,
    entry_in,
    flow_bytes,
    fragment_bytes,
    fragment_key_in,
    frame,
    layout_of,
    mapping_bytes,
    mapping_key,
    mapping_key_in,
    refusal,
    told,
    tuple_bytes,
    tuple_in,
    tuple_of,
)
from worlds import HERE, MACS

from pydatapath.kernel import clock, libbpf, tables
from pydatapath.kernel.compile import NAT_POD_PARTS
from pydatapath.kernel.layout import AFFINITY, BackendState, Counter, Family, MappingSide
from pydatapath.kernel.layout import BACKEND as BACKEND_STRUCT
from pydatapath.kernel.layout import Hook as KernelHook
from pydatapath.kernel.maps import Map, possible_cpus
from pydatapath.model import Node
from pydatapath.reference import NODE as THE_NODE
from pydatapath.reference import (
    Address,
    Choice,
    Entry,
    FlowTuple,
    Hook,
    Impossible,
    Machine,
    Masquerade,
    Model,
    Packet,
    State,
    Verdict,
    World,
)
from pydatapath.reference.flows import Table
from pydatapath.reference.nat import Inside, Mappings
from pydatapath.reference.services import service_called

__all__ = ["Differs", "Run", "Twins", "check", "compare", "counted", "refused_pods", "shortest", "tables_of"]

REFUSED = ("drop_no_backend", "drop_no_service", "drop_pod_gone")
PROHIBITED = ("drop_ports_taken", "drop_pod_limit")
TABLES = ("flows", "half_open")
COUNTERS = [one.name.lower() for one in Counter]
STAMP = struct.Struct("=Q")  # last_seen of struct flow, behind the tuple
WAITS = 8  # see histories.ODD
ATTEMPTS = 5


class Differs(AssertionError):
    """The kernel and the model do not agree; the message says on what."""


class Twins:
    """The kernel's programs and the model, at the same point of a history. `taken`: its steps, as they were taken."""

    def __init__(self, bed: Bed, model: Model, taken: list[Step]) -> None:
        bed.reset()
        give_all_numbers_once(bed)
        self.bed, self.model, self.taken = bed, model, taken
        self.now = 1_000_000.0  # the history's own time, in seconds
        self._ahead = jiffies_ahead(bed)
        self._stamped = self._ran = ticks()
        self._services: dict[str, Serving] = {}
        self._left: list[tuple[Send, Packet]] = []
        # By the names of the maps, which each family has of its own
        self._raw: dict[str, dict[bytes, bytes]] = {f"{name}{one.suffix}": {} for name in TABLES for one in Family}
        self._flows = dict(self._raw)  # as all who read them see them
        masquerades = model.world.masquerade is not None
        self._mappings: dict[str, dict[bytes, bytes]] = {f"mappings{one.suffix}": {} for one in Family if masquerades}
        self._served = True
        self._counted = counted(bed)

    # What happens

    def take(self, step: Step) -> None:
        """One step of a history, whatever it is; raises Differs. What it refers to may not be there: then nothing."""
        for one in self._exactly(step):
            self.taken.append(one)
            match one:
                case Send():
                    self._send(one)
                case Wait(seconds):
                    self.now += seconds
                    self._stamp_all()
                case Serve(called, serving):
                    self._serve(called, serving)
                case Nodes(nodes):
                    self._join(nodes)
                case Lose(half) if isinstance(half, FlowTuple):
                    self._lose(half)
                case Lose(half) if not isinstance(half, int):
                    self._lose_mapping(half)
                case Interface(pod, is_there):
                    self._put_interface(pod, is_there=is_there)

    def end(self) -> None:
        """What no packet has looked at since: the other family's tables are as they were. Raises Differs."""
        self._read_flows(*self._flows)
        for family in Family:
            for name, table in self._model_tables():
                self._check_keys(name, table, family)
            self._check_mappings(family)
            self._check_fragments(family)

    def _exactly(self, step: Step) -> list[Step]:
        """The step, or what it is here where it says "one of the last"."""
        match step:
            case Wait():
                return [step] if sum(isinstance(one, Wait) for one in self.taken) < WAITS else []
            case Lose(int() as place):
                mappings = self.model.mappings
                keys = [*self.model.flows.main, *self.model.flows.half_open, *mappings.outside, *mappings.inside]
                return [Lose(keys[place])] if place < len(keys) else []
            case Answer() | Again() | Direct() | Unasked() | Across() | Piece() | Tell():
                sent = self._left[-1 - step.back] if step.back < len(self._left) else None
                one = follow_up(step, *sent) if sent else None
                return [one] if one else []
        return [step]

    def _serve(self, called: str, serving: Serving | None) -> None:
        self._services.pop(called, None)
        if serving is not None:
            self._services[called] = serving
        self._served = False

    def _join(self, nodes: Sequence[Machine]) -> None:
        self.bed.join(
            *(Node(str(place), one.pod_networks, tuple(sorted(one.addresses))) for place, one in enumerate(nodes))
        )
        self.model.world = replace(self.model.world, nodes=tuple(nodes))

    def _serve_now(self) -> None:
        """Several services that change one after the other are one change."""
        if not self._served:
            self.bed.serve(self._services)
            self.model.world = told(self.model.world, tables.read_live(self.bed.maps, None))
            self._served = True

    def _read_flows(self, *tables: str) -> None:
        self._raw = self._raw | {name: dict(self.bed.maps[name].items()) for name in tables}
        self._flows = self._flows | {name: whole(self._raw[name]) for name in tables}

    def _lose(self, key: FlowTuple) -> None:
        self.model.flows.forget(key)
        self.bed.settle("half_open")
        for table in tables_of(key.source):
            self.bed.maps[table].delete(tuple_bytes(key))
        self._read_flows(*self._flows)

    def _lose_mapping(self, half: Inside | Address) -> None:
        self.model.mappings.forget(half)
        end, side = (half.end, MappingSide.INSIDE) if isinstance(half, Inside) else (half, MappingSide.OUTSIDE)
        name, key = f"mappings{Family.of(end.address).suffix}", mapping_key(end, side)
        self.bed.maps[name].delete(key)
        self._mappings[name].pop(key, None)

    def _put_interface(self, pod: str, *, is_there: bool) -> None:
        (self.bed.revive if is_there else self.bed.kill)(pod)
        others = self.model.world.interfaces - {DEVICES[pod]}
        self.model.world = replace(self.model.world, interfaces=others | {DEVICES[pod]} if is_there else others)

    def _stamp_all(self) -> None:
        """Gives every entry the age that it has in the history, whatever time the test itself has taken."""
        self._stamped = ticks()
        for name, table in self._model_tables():
            for key, entry in table.items():
                own, packed_key = self._raw[name + Family.of(key.source).suffix], tuple_bytes(key)
                if packed_key not in own:
                    continue  # of an answered claim that is alone
                raw = bytearray(own[packed_key])
                STAMP.pack_into(raw, len(packed_key), self._stamp(entry.last_seen))
                own[packed_key] = bytes(raw)
        for name, entries in self._raw.items():
            if entries:
                self.bed.maps[name].update_many(entries)
        self._read_flows(*self._flows)
        self._stamp_mappings()
        self._stamp_fragments()
        for (client, service), (_, since) in self.model.chooser.affinity.items():
            affinities, key = self._affinities(client), packed(client) + struct.pack("=I", service)
            affinities.update(key, STAMP.pack(self._stamp(since)) + affinities.lookup(key)[STAMP.size :])

    def _stamp_mappings(self) -> None:
        for name, entries in self._mappings.items():
            family = Family.IPV6 if name.endswith(Family.IPV6.suffix) else Family.IPV4
            for key, (end, last_seen) in mapping_bytes(self.model.mappings, family).items():
                entries[key] = STAMP.pack(self._stamp(last_seen)) + end
            for key, paid in self._budgets(family).items():
                entries[key] = STAMP.pack(self._stamp(paid) * NAT_POD_PARTS) + entries[key][STAMP.size :]
            if entries:
                self.bed.maps[name].update_many(entries)

    def _budgets(self, family: Family) -> dict[bytes, float]:
        """Until when what each pod of a family has begun is paid for."""
        return {budget_key(pod): paid for pod, paid in self.model.mappings.paid.items() if Family.of(pod) is family}

    def _stamp_fragments(self) -> None:
        for family in Family if self.model.fragments.noted else ():
            entries = {
                key: STAMP.pack(self._stamp(first_seen)) + value
                for key, (value, first_seen) in fragment_bytes(self.model.fragments, family).items()
            }
            if entries:
                self.bed.maps[f"fragments{family.suffix}"].update_many(entries)

    def _stamp(self, then: float) -> int:
        """Jiffies at a time of the history; two ticks before that, since a stamp of the future is none."""
        return self._stamped + self._ahead - 2 - round((self.now - then) * clock.HZ)

    def _send(self, send: Send) -> None:
        """A packet, through both."""
        self._serve_now()
        if ticks() - self._stamped > clock.HZ // 50:
            self._stamp_all()
        by_loopback = send.hook is Hook.TO_LOOPBACK
        macs = (NO_MAC, NO_MAC) if by_loopback else (MACS.get(send.device, ELSEWHERE_MAC), MACS.get(send.meant, ""))
        raw = frame(send.packet, *macs, send.wrong)
        outcome = self.bed.run(KernelHook[send.hook.name], raw, device=send.device)
        self._ran = ticks()
        if self._ran - self._stamped > clock.HZ * STILL:
            raise Paused
        before = self._flows
        self._read_flows(*tables_of(send.packet.source))
        now_counted = counted(self.bed)
        moved = {
            name: count - self._counted[name] for name, count in now_counted.items() if count != self._counted[name]
        }
        chosen = self._or_lost(self._chosen(send.packet, outcome, before, moved), send.hook, send.packet, moved)
        self._counted = now_counted
        try:
            way_in = {"interface": send.device or None, "meant": send.meant}
            verdict = self.model.receive(send.hook, send.packet, self.now, chosen=chosen, **way_in)
        except Impossible as impossible:
            raise Differs(f"the kernel's choice: {impossible}") from None
        check("counted", moved, dict.fromkeys(verdict.counted, 1))
        self._check_leaving(send, raw, outcome, verdict)
        self._check_flows(Family.of(send.packet.source))
        self._check_mappings(Family.of(send.packet.source))
        if send.packet.fragment:
            self._check_fragments(Family.of(send.packet.source))
        if chosen.gave_up:
            self._bind_all_the_same(send.hook, send.packet)
        self._check_affinities()
        if verdict.kind not in {"drop", "answer"}:
            self._left.append((send, verdict.packet))

    def _chosen(
        self, packet: Packet, outcome: Outcome, before: Mapping[str, dict[bytes, bytes]], moved: Mapping[str, int]
    ) -> Choice:
        """What the kernel chose, read off the packet that left, or off the claim where it left as it came."""
        if not moved.keys().isdisjoint(PROHIBITED) or ("drop_untranslated" in moved and packet.has_port_0):
            return Choice(gave_up=True)
        if not moved.keys().isdisjoint(REFUSED) or packet.error or packet.is_later:
            return Choice()
        service = self.model.world.services.get(packet.tuple.called)
        backends = {*service.inside, *service.outside} if service else set()
        left = tuple_in(outcome.packet)
        if left != packet.tuple:
            found = [one for one in backends if (one.address, one.port) == (left.destination, left.destination_port)]
            return Choice(found[0] if found else None, left.source_port)
        _, half_open = tables_of(packet.source)
        for key, raw in self._flows[half_open].items() - before[half_open].items():
            to, _, _, _, number, generation, *_ = layout_of(raw).flow.struct.unpack(raw)
            if to == tuple_bytes(packet.tuple.reverse):
                found = [one for one in backends if (one.number, one.generation) == (number, generation)]
                return Choice(found[0] if found else None, tuple_of(key).destination_port)
        return Choice()

    def _or_lost(self, chosen: Choice, hook: Hook, packet: Packet, moved: Mapping[str, int]) -> Choice:
        """Of what has no way, or no hop left, and enters no flow, nothing shows which backend it was for: one that is
        not here, of a call that has no hop left no node's own.
        """
        service = service_called(packet, hook, self.model.world)
        lost = moved.keys() & {"drop_hops", "drop_no_route"}
        if chosen != Choice() or not lost or service is None:
            return chosen
        here = self.model.world.endpoints
        kept = self._kept(packet.source, service.clients)[1]
        away = [
            one
            for one in (*service.inside, *service.outside)
            if (one.address not in here if "drop_no_route" in lost else here.get(one.address) != THE_NODE)
        ]
        return Choice(next((one for one in away if one.number == kept), next(iter(away), None)))

    def _bind_all_the_same(self, hook: Hook, packet: Packet) -> None:
        """Who finds no port is bound to a backend before, as by kube-proxy; the model leaves that open (S74)."""
        service = service_called(packet, hook, self.model.world)
        if service is not None and service.affinity:
            _, *kept = self._kept(packet.source, service.clients)
            bound = {(one.number, one.generation): one for one in service.inside + service.outside}[tuple(kept)]
            self.model.chooser.affinity[packet.source, service.clients] = (bound, self.now)

    def _kept(self, client: str, service: int) -> tuple[int, ...]:
        """What a client keeps: since when, the number and generation of the backend."""
        raw = self._affinities(client).lookup(packed(client) + struct.pack("=I", service))
        return (0, 0, 0) if raw is None else AFFINITY.unpack(raw)[:3]

    def _affinities(self, client: str) -> Map:
        return self.bed.maps["affinities" + Family.of(client).suffix]

    # What must be equal

    def _check_leaving(self, send: Send, raw: bytes, outcome: Outcome, verdict: Verdict) -> None:
        check("walked", outcome.walked, verdict.walked)
        if verdict.refused:
            check("verdict", outcome.verdict, REDIRECT)
            check_packet(outcome.packet, refusal(send.packet, raw, prohibited=verdict.reason in PROHIBITED))
            return
        redirected = verdict.kind in {"forward", "answer"} or verdict.to in {"bridge", "uplink", "loopback"}
        check("verdict", outcome.verdict, DROP if verdict.kind == "drop" else REDIRECT if redirected else PASS)
        to_mac, from_mac = raw[:6].hex(":"), raw[6:12].hex(":")
        if verdict.kind == "answer":
            to_mac, from_mac = from_mac, to_mac
        elif verdict.kind == "node":
            to_mac = {"uplink": UPLINK_MAC, "loopback": NO_MAC}.get(verdict.to, MAC[NODE])
        elif verdict.kind == "forward" and verdict.to != "route":
            to_mac = MACS[self.model.world.endpoints[verdict.to]]
        check_packet(outcome.packet, frame(verdict.packet, from_mac, to_mac, send.wrong))

    def _model_tables(self) -> Iterable[tuple[str, Table]]:
        """Of both families, by the names of IPv4's maps."""
        return zip(TABLES, (self.model.flows.main, self.model.flows.half_open), strict=True)

    def _check_keys(self, name: str, table: Table, family: Family) -> dict[bytes, Entry]:
        """A family's entries of the model's table, by the keys that the kernel's has, too."""
        model = {tuple_bytes(key): entry for key, entry in table.items() if Family.of(key.source) is family}
        check(f"keys of {name}", sorted(map(tuple_of, self._flows[name + family.suffix])), sorted(map(tuple_of, model)))
        return model

    def _check_flows(self, family: Family) -> None:
        """Both tables of the family that the packet was of."""
        for name, table in self._model_tables():
            kernel = self._flows[name + family.suffix]
            for key, entry in self._check_keys(name, table, family).items():
                have, want, at = kernel[key], flow_bytes(entry), len(key)
                if have[:at] + have[at + STAMP.size :] != want[:at] + want[at + STAMP.size :]:
                    raise Differs(f"{tuple_of(key)} in {name}: {entry_in(have)}\n  model: {entry_in(want)}")
                self._check_age(f"{tuple_of(key)} in {name}", STAMP.unpack_from(have, at)[0], entry.last_seen)

    def _check_mappings(self, family: Family) -> None:
        """Of the family that the packet was of, if anybody is masqueraded; not of what is over, whoever collects it."""
        name = f"mappings{family.suffix}"
        if name not in self._mappings:
            return
        kernel = self._mappings[name] = dict(self.bed.maps[name].items())
        model = mapping_bytes(self.model.mappings, family)
        life = self.model.world.timeouts["UDP", State.ESTABLISHED]
        over = {key for key, (_, last_seen) in model.items() if self.now - last_seen > life}
        budgets = self._budgets(family)
        check(
            "mappings",
            sorted(map(mapping_key_in, kernel.keys() - over)),
            sorted(map(mapping_key_in, (model.keys() | budgets.keys()) - over)),
        )
        for key, paid in budgets.items():
            self._check_age(f"the {mapping_key_in(key)}", STAMP.unpack_from(kernel[key])[0] // NAT_POD_PARTS, paid)
        for key, (end, last_seen) in model.items():
            if key in over:
                continue
            what = f"the mapping {mapping_key_in(key)}"
            check(what, kernel[key][STAMP.size :], end)
            self._check_age(what, STAMP.unpack_from(kernel[key])[0], last_seen)

    def _check_fragments(self, family: Family) -> None:
        """Of which datagrams of the family the first fragment was seen."""
        kernel = dict(self.bed.maps[f"fragments{family.suffix}"].items())
        model = fragment_bytes(self.model.fragments, family)
        check("fragments", sorted(map(fragment_key_in, kernel)), sorted(map(fragment_key_in, model)))
        for key, (value, first_seen) in model.items():
            what = f"the datagram {fragment_key_in(key)}"
            check(what, kernel[key][STAMP.size :], value)
            self._check_age(what, STAMP.unpack_from(kernel[key])[0], first_seen)

    def _check_affinities(self) -> None:
        for (client, service), (backend, since) in self.model.chooser.affinity.items():
            stamp, *kept = self._kept(client, service)
            check(f"what {client} keeps of {service}", kept, [backend.number, backend.generation])
            self._check_age(f"what {client} keeps of {service}", stamp, since)

    def _check_age(self, what: str, stamp: int, then: float) -> None:
        age, want = (self._ran + self._ahead - stamp) / clock.HZ, self.now - then
        if abs(age - want) > 0.4:
            raise Differs(f"{what}: {age:.2f} s old, model: {want:.2f} s")


def check(what: str, kernel: object, model: object) -> None:
    """Raises Differs where these are not equal."""
    if kernel != model:
        raise Differs(f"{what}: {kernel}\n  model: {model}")


def check_packet(kernel: bytes, model: bytes) -> None:
    """As check, of packets that leave."""
    if kernel != model:
        raise Differs(f"left as {shown(kernel)}\n  model: {shown(model)}")


# The kernel's side


def tables_of(address: str) -> tuple[str, str]:
    """The names of the flow tables of an address's family."""
    flows, half_open = (name + Family.of(address).suffix for name in TABLES)
    return flows, half_open


@contextlib.contextmanager
def refused_pods() -> Iterator[list[str]]:
    """The pods that may begin no more flows (N24), as often as they are told so; so does the kernel, or it differs."""
    refused: list[str] = []
    pay = Mappings.pay

    def noted(self: Mappings, pod: str, how: Masquerade | None, now: float) -> bool:
        may = pay(self, pod, how, now)
        if not may:
            refused.append(pod)
        return may

    with mock.patch.object(Mappings, "pay", noted):
        yield refused


def give_all_numbers_once(bed: Bed) -> None:
    """As if every backend's number had been another's before: who comes when one has gone is given that one's again."""
    gone = BACKEND_STRUCT.pack(bytes(16), bytes(2), 0, BackendState.GONE, 7, 0)
    bed.maps["backends"].update_many({struct.pack("=I", number): gone for number in range(1, SIZES.backends)})


def counted(bed: Bed) -> dict[str, int]:
    """All counters, in one call where Bed.counted makes one for each."""
    raw = libbpf.batch_read(bed.maps["counters"].descriptor, 4, 8 * possible_cpus(), len(COUNTERS))[1]
    each = [memoryview(raw).cast("Q")[cpu :: possible_cpus()].tolist() for cpu in range(possible_cpus())]
    return dict(zip(COUNTERS, map(sum, zip(*each, strict=True)), strict=True))


# Whole histories


class Run(NamedTuple):
    """What became of a history: on what the two differ, "" for nothing; the steps until then, as they were taken."""

    difference: str
    steps: tuple[Step, ...]


def compare(bed: Bed, steps: Sequence[Step], model: Callable[[World], Model] = Model, world: World = HERE) -> Run:
    """Takes both through a history; again where the machine stood still meanwhile. `world`: as the programs are."""
    for _ in range(ATTEMPTS):
        taken: list[Step] = []
        try:
            twins = Twins(bed, model(world), taken)
            for step in steps:
                twins.take(step)
            twins.end()
        except Paused:
            continue
        except Differs as differs:
            return Run(str(differs), tuple(taken))
        return Run("", tuple(taken))
    raise Paused(f"the machine stood still for over {STILL} s in {ATTEMPTS} attempts at one history")


def shortest(bed: Bed, run: Run, model: Callable[[World], Model] = Model, world: World = HERE) -> Run:
    """A history that differs, without the steps that it differs without."""
    place = len(run.steps) - 1
    while place >= 0:
        fewer = compare(bed, run.steps[:place] + run.steps[place + 1 :], model, world)
        if fewer.difference:
            run = fewer
        place = min(place, len(run.steps)) - 1
    return run
