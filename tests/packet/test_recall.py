"""While flows move to a table of another size: what stands in the former one alone is found there, and taken along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from frames import PASS, REDIRECT, Packet, Raw, addresses, answer_to, frame, key_of, reverse, sctp, tcp, udp
from packetbed import Bed
from places import V4, V6, Places, at
from programs import EMULATED, NAME, masquerading_program, own_bed
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach
from test_nat_icmp import ping

from pydatapath import carrying
from pydatapath.kernel import bpffs, compile, libbpf, netns, recalling
from pydatapath.kernel.layout import MAPS, Family, Hook
from pydatapath.kernel.maps import Map

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
FORMER = 4096  # entries of the table that is left: not those of the new one


class Moving:
    """A bed whose programs look in another table, too."""

    def __init__(self, bed: Bed, former: Path, program: compile.Program) -> None:
        self.bed, self.former, self.program = bed, former, program

    def put_aside(self) -> int:
        """All flows stand in the former table alone. How many halves."""
        count = 0
        for name in ("flows", "flows6"):
            with Map(MAPS[name], self.former / name) as table:
                table.delete_many([key for key, _ in table.items()])
                found = dict(self.bed.maps[name].items())
                table.update_many(found)
                count += len(found)
        self.bed._empty("flows")
        return count


@pytest.fixture(scope="module")
def loaded_moving(
    namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[Bed, Path, compile.Program]]:
    """Programs that masquerade and hand pods' packets past the bridge, and a table that is left."""
    if EMULATED:
        pytest.skip("a compilation of its own: not in an emulator")
    program = masquerading_program(namespace["uplink"], "moving", compile.Masquerade(), pod_fast_path=True)
    former = program.map_directory.with_name(f"{program.map_directory.name}_former")
    try:
        with own_bed(namespace, keep, program) as made:
            bpffs.make_private(former)
            for name in ("flows", "flows6"):
                contract = MAPS[name]
                size = contract.key_size, contract.value_size, FORMER, contract.flags
                with libbpf.opened(libbpf.create_map(contract.type, name, *size)) as descriptor:
                    libbpf.pin(descriptor, str(former / name))
            recalling.begin(program, former, tuple(Family))
            yield made, former, program
    finally:
        bpffs.remove_tree(former)


@pytest.fixture
def moving(loaded_moving: tuple[Bed, Path, compile.Program]) -> Iterator[Moving]:
    """In the middle of a move."""
    bed, former, program = loaded_moving
    with netns.entered(netns.path_of(NAME)):
        bed.reset()
        bed.serve(
            {
                where.called(f"{port}/{protocol}"): [at(where.BACKEND, 8080)]
                for where in (V4, V6)
                for port, protocol in ((80, "TCP"), (53, "UDP"), (3868, "SCTP"))
            }
        )
        yield Moving(bed, former, program)


CALLS: dict[str, Callable[[Places], Packet]] = {
    "TCP": lambda where: tcp(where.CLIENT, 40000, where.VIP, 80),
    "UDP": lambda where: udp(where.CLIENT, 40000, where.VIP, 53),
    "SCTP": lambda where: sctp(where.CLIENT, 40000, where.VIP, 3868),
}


def again(call: Packet) -> Packet:
    """What the client sends once it is connected."""
    return tcp(*addresses(call), "A") if "TCP" in call else call


@FAMILIES
@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_flow_of_the_former_table_goes_on(
    moving: Moving, where: Places, call: Callable[[Places], Packet], first: str
):
    """Whoever of the two speaks first; both directions are taken along as they stand there, and counted on."""
    bed, packet = moving.bed, call(where)
    there = bed.establish(packet)
    before = bed.entries()
    assert moving.put_aside() == 2
    served = addresses(there)

    def client() -> None:
        sent = bed.run(Hook.FROM_POD, again(packet))
        assert (sent.verdict, addresses(sent)) == (REDIRECT, served)

    def server() -> None:
        answered = bed.answer(there, "A")
        assert (answered.verdict, addresses(answered)) == (REDIRECT, reverse(addresses(packet)))

    for speaks in (client, server) if first == "client" else (server, client):
        speaks()
    after = bed.entries()
    assert after.keys() == before.keys()
    for key, entry in after.items():
        assert entry.packets == before[key].packets + 1
        assert (entry.to, entry.backend, entry.state, entry.flags) == (
            before[key].to,
            before[key].backend,
            before[key].state,
            before[key].flags,
        )


@FAMILIES
def test_without_it_an_answer_reaches_its_client_from_another_address(moving: Moving, where: Places):
    """What this is for; and behind the move nobody looks there any more."""
    bed = moving.bed
    there = bed.establish(tcp(where.CLIENT, 40000, where.VIP, 80))
    moving.put_aside()
    recalling.end(moving.program.program_directory, tuple(Family))
    try:
        answered = bed.answer(there, "A")
        assert addresses(answered) == reverse(addresses(there))
        assert bed.entries() == {}
    finally:
        recalling.begin(moving.program, moving.former, tuple(Family))


@FAMILIES
def test_an_error_about_a_flow_of_the_former_table_finds_its_sender(moving: Moving, where: Places):
    """It quotes what the sender has sent."""
    bed = moving.bed
    there = bed.establish(udp(where.CLIENT, 40000, where.VIP, 53))
    moving.put_aside()
    layer = ICMPv6DestUnreach(code=4) if where is V6 else ICMP(type=3, code=3)
    quoted = bytes(there.ip)[: (40 if where is V6 else 20) + 8]
    told = bed.run(Hook.FROM_POD, frame(where.BACKEND, where.CLIENT) / layer / Raw(quoted), device="pod3")
    assert (told.verdict, told.ip.src, told.ip.dst) == (REDIRECT, where.VIP, where.CLIENT)


@FAMILIES
def test_the_answer_to_a_ping_of_the_former_table_finds_its_pod(moving: Moving, where: Places):
    """By its identifier outside."""
    bed = moving.bed
    there = bed.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR))
    answer = ping(where, where.FAR, where.UPLINK, there.ip.payload.id, answer=True)
    assert bed.run(Hook.FROM_UPLINK, answer).ip.dst == where.CLIENT
    moving.put_aside()
    late = bed.run(Hook.FROM_UPLINK, answer)
    assert (late.verdict, late.ip.dst) == (REDIRECT, where.CLIENT)


@FAMILIES
@pytest.mark.parametrize("over", ["retired", "another's", "another's that waits"])
def test_what_stands_is_newer(moving: Moving, where: Places, over: str):
    """The other direction is over, or its tuple has been given to a direct call: the flow is not taken along."""
    bed, packet = moving.bed, tcp(where.CLIENT, 40000, where.VIP, 80)
    there = bed.establish(packet)
    moving.put_aside()
    direct = tcp(where.CLIENT, 40000, where.BACKEND, 8080)
    if over == "retired":
        assert bed.answer(there, "A").verdict == REDIRECT
        bed.maps[f"flows{Family.of(where.VIP).suffix}"].delete(key_of(packet))
        bed.amend("flows", key_of(answer_to(there)), last_seen=0)
    elif over == "another's":
        assert bed.establish(direct).packet == bytes(direct)
    else:
        assert bed.run(Hook.FROM_POD, direct).packet == bytes(direct)
        for _ in range(2):
            assert addresses(bed.answer(there)) == reverse(addresses(direct)), "its SYN-ACK is its own"
    bed.run(Hook.FROM_POD, tcp(*addresses(packet), "A"))
    found = bed.entry(packet)
    assert found is None or found.packets == 1


@FAMILIES
def test_what_has_timed_out_in_the_former_table_is_over(moving: Moving, where: Places):
    """By its own stamp."""
    bed, packet = moving.bed, udp(where.CLIENT, 40000, where.VIP, 53)
    there = bed.establish(packet)
    bed.age(1000)
    moving.put_aside()
    assert addresses(bed.answer(there)) == reverse(addresses(there))


@FAMILIES
def test_a_live_flow_teaches_nothing_meanwhile(moving: Moving, where: Places):
    """Of a pod that ends a late answer may come when another has the address."""
    bed = moving.bed
    there = bed.establish(udp(where.CLIENT, 40000, where.VIP, 53))
    known = bed.endpoint(where.BACKEND)
    for aside in (False, True):
        bed.age(2)
        if aside:
            moving.put_aside()
        late = answer_to(there)
        late.src = "02:00:00:00:00:99"
        assert bed.run(Hook.FROM_POD, late, device="pod4").verdict == REDIRECT
        assert bed.endpoint(where.BACKEND) == known


@FAMILIES
def test_what_is_retired_in_the_former_table_is_over(moving: Moving, where: Places):
    """Nobody goes on by it."""
    bed, packet = moving.bed, tcp(where.CLIENT, 40000, where.VIP, 80)
    there = bed.establish(packet)
    for key in bed.entries():
        bed.amend("flows", key, last_seen=0)
    moving.put_aside()
    answered = bed.answer(there, "A")
    assert addresses(answered) == reverse(addresses(there))
    assert bed.entries() == {}


@FAMILIES
def test_what_is_no_flow_is_walked_as_ever(moving: Moving, where: Places):
    """Pods talk past the bridge, new calls are served, and what nobody knows is the stack's."""
    bed = moving.bed
    plain = tcp(where.CLIENT, 40001, where.BACKEND, 9999, "A")
    for _ in range(2):
        assert bed.run(Hook.FROM_POD, plain).packet == bytes(plain)
    bed.establish(tcp(where.CLIENT, 40002, where.VIP, 80))
    unknown = tcp(where.UPLINK, 40003, where.FAR, 443, "A")
    assert bed.run(Hook.TO_UPLINK, unknown)[:2] == (PASS, bytes(unknown))


@FAMILIES
def test_what_a_packet_has_taken_along_is_not_written_over(
    moving: Moving, where: Places, monkeypatch: pytest.MonkeyPatch
):
    """It may come between the reading of what stands in the new table and the writing."""
    bed, packet = moving.bed, tcp(where.CLIENT, 40000, where.VIP, 80)
    bed.establish(packet)
    table = bed.maps[f"flows{Family.of(where.VIP).suffix}"]
    bed.age(2)
    before = dict(table.items())
    bed.run(Hook.FROM_POD, tcp(*addresses(packet), "FA"))
    since = dict(table.items())
    monkeypatch.setattr(carrying, "_standing", lambda *_: {})
    carrying._carry(before, {}, table, runs=True)
    assert dict(table.items()) == since != before
    table.delete_many(before)
    carrying._carry(before, {}, table, runs=True)
    assert dict(table.items()) == before, "what nobody has taken along"
