"""`load` with other sizes, or over another layout: open connections live on, or it says what would break."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from calls import KINDS, ask, ask_many, dial, volley
from moving import FLOW, VIP, Sockets, broken, folders, load, packets, pins, recalls, sizes, talk
from rows import tell, tell_more
from scene import VIP_PORT, Cluster, pydatapath
from streaming import say

from pydatapath import carrying, connecting
from pydatapath.errors import KernelError, LayoutError
from pydatapath.kernel import bpffs, libbpf
from pydatapath.kernel.layout import LAYOUT_VERSION, MAPS, FlowFlag, MapContract, Record
from pydatapath.kernel.maps import Map, Maps

LOAD = "ten connections of TCP and ten of UDP, which talk before and after"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"max_flows": 4096}, (8192, 65_536)),
        ({"max_flows": 200_000}, (400_000, 65_536)),
        ({"max_backends": 1024}, (262_144, 1024)),
        ({"max_backends": 100_000, "max_flows": 2048, "algorithm": "maglev"}, (4096, 100_000)),
    ],
)
def test_F30_connections_live_on_in_maps_of_another_size(
    cluster: Cluster, sockets: Sockets, options: dict[str, Any], wanted: tuple[int, int]
):
    """Each has its backend and its counts still; new ones are answered; what was before is gone; and so it is back."""
    names, counts = talk(sockets), packets(cluster)
    for more, size in ((options, wanted), ({}, (262_144, 131_072 // 2))):
        load(cluster, **more)
        tell_more(repeats=1)
        assert sizes(cluster) == size
        assert packets(cluster) == counts
        assert broken(sockets, names) == []
        assert folders(cluster) == {f"maps_v{LAYOUT_VERSION}", "programs"}
        cluster.apply("web", VIP[0], cluster.lab.pods[1:2])  # by a handle that was opened before
        cluster.apply("web", VIP[0], cluster.lab.pods[1:])
        for kind in KINDS.values():
            assert len(ask_many(cluster.lab.pod(1, 1), kind, VIP, 60).names) == 2
        assert cluster.datapaths[1].status().drift == ()
        counts = packets(cluster)


def test_what_would_break_is_said_first(cluster: Cluster, sockets: Sockets):
    """Fewer flows than are open: refused, and nothing has changed; with --break-flows the longest idle go."""
    node = cluster.lab.node(1).netns
    host = cluster.lab.pod(1, 1)
    assert ask_many(host, KINDS["UDP"], VIP, 1000, at_once=100).failures == []
    names, before = talk(sockets), folders(cluster)
    asked = ("--netns", node, "load", "--node-name", node, "--cluster-cidr", "10.244.0.0/16", "--max-flows", "1024")
    refused = pydatapath(*asked)
    assert refused.returncode == 1
    said = (
        r"Error: [\d,]+ connections are open, and --max-flows 1,024 has room for (\d+) of them: the \d+ that have been"
    )
    found = re.match(said, refused.stderr)
    assert found, refused.stderr
    assert 768 <= int(found[1]) < 1024
    assert refused.stderr.splitlines()[-1] == "Hint: load with a larger --max-flows, or with --break-flows"
    assert (sizes(cluster), folders(cluster), talk(sockets)) == ((262_144, 65_536), before, names)
    done = pydatapath(*asked, "--break-flows")
    assert (done.returncode, sizes(cluster)[0]) == (0, 2048)
    assert broken(sockets, names) == [], "they have talked last: others were forgotten"
    assert ask_many(host, KINDS["TCP"], VIP, 60).failures == []


def test_backends_for_which_there_is_no_room_are_told(cluster: Cluster, sockets: Sockets):
    """Numbers that were given are not given again; one beyond the new size cannot be kept."""
    for _ in range(20):
        cluster.apply("web", VIP[0], ())
        cluster.apply("web", VIP[0], cluster.lab.pods[1:])
    with dial(cluster.lab.pod(1, 1), VIP) as high:
        name = ask(high).name
        with pytest.raises(LayoutError, match=r"1 open connections go to backends whose numbers --max-backends 16 has"):
            load(cluster, max_backends=16)
        assert ask(high).name == name
        load(cluster, max_backends=16, break_flows=True)
        assert sizes(cluster)[1] == 16
        for kind in KINDS.values():
            assert len(ask_many(cluster.lab.pod(1, 1), kind, VIP, 60).names) == 2
        status = cluster.datapaths[1].status()
        assert (status.backends, status.drift) == (4, ())


def both_have_closed(table: Map, wanted: int, seconds: float = 5.0) -> bool:
    """Waits until so many connections of a table have had a FIN from either side."""
    deadline = time.monotonic() + seconds
    while (found := sum(bool(FLOW.unpack(one)[7] & FlowFlag.FIN) for _, one in table.items())) < 2 * wanted:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return found == 2 * wanted


# What a client does that has sent its SYN and no ACK yet, for as long as it takes
SILENCE = f"""
table inet silence {{
  chain out {{
    type filter hook output priority 0
    tcp dport {VIP_PORT} tcp flags & (syn | ack) == ack drop
  }}
}}
"""


@pytest.mark.parametrize("more", [{}, {"max_flows": 2048}, {"max_backends": 1024}], ids=["same", "flows", "backends"])
def test_F30_a_connection_that_is_answered_and_not_confirmed_is_carried(
    cluster: Cluster, later: Sockets, more: dict[str, Any]
):
    """Between SYN-ACK and ACK it stands in half_open: the client's ACK goes where its SYN went."""
    client, (_, one, other) = cluster.lab.pod(1, 1), cluster.lab.pods
    cluster.apply("web", VIP[0], [one])
    client.exec(["nft", "-f", "-"], stdin=SILENCE, check=True)
    later["waits"] = dial(client, VIP)
    load(cluster, **more)
    tell(repeats=1, load="one connection whose server has answered, and whose client has not")
    cluster.apply("web", VIP[0], [other])
    assert [flow.state for flow in cluster.datapaths[1].flows()] == ["answered"]
    client.exec(["nft", "delete", "table", "inet", "silence"], check=True)
    assert broken(later, {"waits": one.name}) == []
    assert [flow.state for flow in cluster.datapaths[1].flows()] == ["established"]


def fails(*_: object) -> None:
    raise KernelError("cannot be attached")


def test_what_happens_while_programs_are_exchanged_is_carried_too(
    cluster: Cluster, sockets: Sockets, later: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """After the copy, and before the new programs are there: what is counted, opened, and closed."""
    names, counts, real = talk(sockets), packets(cluster), connecting.connected

    @contextlib.contextmanager
    def connected(*arguments: Any) -> Iterator[None]:
        later.update({f"{kind} new": dial(cluster.lab.pod(1, 1), VIP, KINDS[kind]) for kind in KINDS})
        names.update(talk(later))
        talk(sockets)
        assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 5).failures == []
        assert both_have_closed(running, 5)
        with real(*arguments):
            talk(sockets)
            yield

    with (
        monkeypatch.context() as patch,
        Map(MAPS["flows"], cluster.datapaths[1].instance.map_pins / "flows") as running,
    ):
        patch.setattr(connecting, "connected", connected)
        load(cluster, max_flows=2048)
    assert sum(one.state == "closing" for one in cluster.datapaths[1].flows()) == 5
    found = packets(cluster)
    for flow, (asked, answered) in counts.items():
        if flow.startswith("UDP"):
            assert found[flow] == (asked + 2, answered + 2)
        else:  # delayed acknowledgements come when they like
            assert found[flow][0] >= asked + 2
            assert found[flow][1] >= answered + 2
    assert broken(sockets | later, names) == []
    assert len(found) == len(counts) + len(later) + 5


def test_what_opens_just_before_the_exchange_is_answered_behind_it(
    cluster: Cluster, later: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """A connection that opened, and has asked, while all else was carried: its answer meets the new programs first."""
    real = connecting.connected

    @contextlib.contextmanager
    def connected(*arguments: Any) -> Iterator[None]:
        for _ in range(10):
            one = later[f"TCP {len(later)}"] = dial(cluster.lab.pod(1, 1), VIP)
            one.send(b"wait for it\n")
        with real(*arguments):
            time.sleep(1.5)  # before what comes behind the exchange
            yield

    with monkeypatch.context() as patch:
        patch.setattr(connecting, "connected", connected)
        load(cluster, max_flows=2048)
    answers = [one.recv(2048).split() for one in later.values()]
    assert {tuple(one[3:]) for one in answers} == {(b"wait", b"for", b"it")}
    assert broken(later, talk(later)) == []


@pytest.mark.parametrize("way", ["never", "always"])
def test_F30_what_was_entered_behind_the_last_look_is_known_to_the_new_programs(
    cluster: Cluster, later: Sockets, monkeypatch: pytest.MonkeyPatch, way: str
):
    """Before anybody has carried it: TCP that has asked, and UDP that was answered. Past the bridge, too."""
    load(cluster, pod_fast_path=way)
    real, looks, heard = carrying.Move.catch_up, [], []

    def catch_up(move: carrying.Move, maps: Maps) -> None:
        looks.append(move)
        if len(looks) == 1:
            real(move, maps)
            for place in range(10):
                one = later[f"TCP {place}"] = dial(cluster.lab.pod(1, 1), VIP)
                one.send(b"wait for it\n")
                other = later[f"UDP {place}"] = dial(cluster.lab.pod(1, 1), VIP, KINDS["UDP"])
                ask(other)
        else:
            heard.extend(one.recv(2048).split()[3:] for label, one in later.items() if label.startswith("TCP"))
            volley({label: one for label, one in later.items() if label.startswith("UDP")}, 3)
            real(move, maps)

    with monkeypatch.context() as patch:
        patch.setattr(carrying.Move, "catch_up", catch_up)
        load(cluster, pod_fast_path=way, max_flows=2048)
    tell(repeats=1, load="ten connections of TCP and ten of UDP, which begin between the last look and the exchange")
    assert heard == [[b"wait", b"for", b"it"]] * 10
    counts = {one.packets for one in cluster.datapaths[1].flows() if one.protocol == "UDP"}
    assert counts == {(4, 4)}, "nothing is counted twice"
    assert not recalls(cluster)
    assert broken(later, talk(later)) == []


@pytest.mark.parametrize("exchanged", [False, True], ids=["before the exchange", "after it"])
def test_a_move_that_fails_leaves_all_as_it_was(
    cluster: Cluster, sockets: Sockets, later: Sockets, monkeypatch: pytest.MonkeyPatch, exchanged: bool
):
    """Whether or not the new programs have run: the old ones do again, and know all connections, the newest, too."""
    names, before, real = talk(sockets), folders(cluster), connecting.connected

    @contextlib.contextmanager
    def connected(*arguments: Any) -> Iterator[None]:
        with real(*arguments) if exchanged else contextlib.nullcontext():
            if exchanged:
                later.update({f"{kind} new": dial(cluster.lab.pod(1, 1), VIP, KINDS[kind]) for kind in KINDS})
                names.update(talk(later))
                assert talk(sockets).items() <= names.items()
            fails()
            yield

    with monkeypatch.context() as patch:
        patch.setattr(connecting, "connected", connected)
        with pytest.raises(KernelError, match="cannot be attached"):
            load(cluster, max_flows=2048, max_backends=100)
    assert (sizes(cluster), folders(cluster)) == ((262_144, 65_536), before)
    flows = {one.state for one in cluster.datapaths[1].flows()}
    assert flows == {"established"}
    assert broken(sockets | later, names) == []
    volley({label: one for label, one in (sockets | later).items() if label.startswith("UDP")}, 3)
    assert all(one.packets[0] >= 3 for one in cluster.datapaths[1].flows() if one.protocol == "UDP")


def test_a_signal_that_has_waited_undoes_nothing(cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in the exchange: it is finished, and its maps stay pinned."""
    names, real = talk(sockets), carrying.Move.catch_up

    def interrupted(move: carrying.Move, maps: Maps) -> None:
        signal.raise_signal(signal.SIGINT)
        real(move, maps)

    with monkeypatch.context() as patched:
        patched.setattr(carrying.Move, "catch_up", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(cluster, max_flows=2048)
    assert (sizes(cluster)[0], folders(cluster)) == (4096, {f"maps_v{LAYOUT_VERSION}", "programs"})
    assert cluster.datapaths[1].status().drift == ()
    assert talk(sockets) == names


def as_another_layout(cluster: Cluster, version: int) -> None:
    """As if another version had loaded what runs."""
    pins(cluster).joinpath(f"maps_v{LAYOUT_VERSION}").rename(pins(cluster) / f"maps_v{version}")


@pytest.mark.parametrize("version", [LAYOUT_VERSION - 1, LAYOUT_VERSION + 1])
def test_F30_another_layout_is_refused_unless_flows_may_break(cluster: Cluster, sockets: Sockets, version: int):
    """Older or newer: what runs goes on; with --break-flows it is exchanged, and services are as they were."""
    as_another_layout(cluster, version)
    before = folders(cluster)
    node = cluster.lab.node(1).netns
    refused = pydatapath("--netns", node, "load", "--node-name", node)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"Error: what is loaded keeps its connections in layout {version}, and this version's is {LAYOUT_VERSION}: all"
        " open connections would break\nHint: load with --break-flows, or with the version that is loaded\n"
    )
    assert folders(cluster) == before
    names = talk(sockets)
    load(cluster, break_flows=True)
    assert folders(cluster) == {f"maps_v{LAYOUT_VERSION}", "programs"}
    assert cluster.datapaths[1].flows() == []
    for one in sockets.values():
        one.settimeout(1)
    tell(repeats=1)
    broken(sockets, names)  # a figure: with that option they may
    for kind in KINDS.values():
        assert len(ask_many(cluster.lab.pod(1, 1), kind, VIP, 60).names) == 2


def test_F30_a_migration_carries_flows_from_another_layout(
    cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Of a layout whose flows have eight bytes more each, by a function that takes them away."""
    names, version, counts = talk(sockets), LAYOUT_VERSION - 1, packets(cluster)
    as_another_layout(cluster, version)
    folder = pins(cluster) / f"maps_v{version}"
    contract = MAPS["flows"]
    wider = libbpf.create_map(contract.type, "flows", contract.key_size, contract.value_size + 8, 4096)
    with Maps(folder) as maps:
        for key, value in maps["flows"].items():
            assert libbpf.update(wider, key, value + b"8 bytes!") == 0
    (folder / "flows").unlink()
    libbpf.pin(wider, str(folder / "flows"))
    os.close(wider)
    monkeypatch.setitem(carrying.MIGRATIONS, version, {"flows": lambda key, value: (key, value[:-8])})
    load(cluster)
    tell(repeats=1)
    assert folders(cluster) == {f"maps_v{LAYOUT_VERSION}", "programs"}
    assert packets(cluster) == counts
    assert broken(sockets, names) == []
    for kind in KINDS.values():
        assert len(ask_many(cluster.lab.pod(1, 1), kind, VIP, 60).names) == 2
    say(capsys, f"{len(counts)} flows carried from a layout with wider entries: 0 broken")


def test_flows_that_change_while_they_move_are_joined():
    """Each side has counted since, and each has seen an end: both count."""
    to = bytes(range(16))
    before = FLOW.pack(to, 100, 10, 1000, 1, 1, 1, 0, bytes(4), bytes(4), 0)
    one = FLOW.pack(to, 110, 13, 1300, 1, 1, 2, 4, b"then", b"now.", 0)
    other = FLOW.pack(to, 120, 11, 1100, 1, 1, 2, 8, b"here", b"too.", 0)
    assert carrying._joined(MAPS["flows"], before, one, other) == FLOW.pack(
        to, 120, 14, 1400, 1, 1, 2, 12, b"here", b"too.", 0
    )
    assert carrying._joined(MAPS["flows"], None, one, other) == other
    stranger = FLOW.pack(bytes(16), 90, 1, 1, 1, 1, 1, 0, bytes(4), bytes(4), 0)
    assert carrying._joined(MAPS["flows"], before, one, stranger) == stranger
    assert carrying._joined(MAPS["flows"], None, one, stranger) == one, "it is older, wherever it leads"
    retired = FLOW.pack(to, 0, 11, 1100, 1, 1, 2, 8, b"here", b"too.", 0)
    assert carrying._joined(MAPS["flows"], None, one, retired) == retired, "it is over, and the next one is coming"


def test_what_keeps_its_size_is_the_same_map(cluster: Cluster):
    """Nothing is copied that need not be: a map is known by its id."""

    def numbers() -> dict[str, int]:
        with Maps(cluster.datapaths[1].instance.map_pins) as maps:
            return {path.name: maps[path.name].info.id for path in maps.directory.iterdir()}

    before = numbers()
    load(cluster, max_flows=2048)
    after = numbers()
    assert {name for name, number in before.items() if after[name] != number} == {"flows"}
    load(cluster, max_flows=2048)
    assert numbers() == after


@contextlib.contextmanager
def into(contract: MapContract) -> Iterator[Map]:
    """An empty map of this kind."""
    pin = bpffs.BPFFS / f"test-carrying-{os.getpid()}"
    descriptor = libbpf.create_map(contract.type, "test", contract.key_size, contract.value_size, 4096)
    try:
        libbpf.pin(descriptor, str(pin))
        with Map(contract, pin) as table:
            yield table
    finally:
        os.close(descriptor)
        pin.unlink(missing_ok=True)


STAMPS = {"fragments": "first_seen", "affinities": "last_used"}


@pytest.mark.parametrize("name", ["flows", "half_open", "fragments", "affinities", "mappings"])
def test_what_two_folders_know_is_as_the_newer_one_has_it(name: str):
    """Where both were written, and nobody knows what they began with; what is there alone stays."""
    contract = MAPS[name]
    assert isinstance(contract.value, Record)
    place = {field: at for field, at, _ in contract.value.shape}[STAMPS.get(name, "last_seen")]

    def entry(seen: int, fill: int) -> bytes:
        made = bytearray([fill]) * contract.value_size
        made[place : place + 8] = seen.to_bytes(8, sys.byteorder)
        return bytes(made)

    keys = [bytes([number]) * contract.key_size for number in range(4)]
    there = {keys[0]: entry(10, 1), keys[1]: entry(30, 1), keys[2]: entry(5, 1)}
    found = {keys[0]: entry(20, 2), keys[1]: entry(20, 2), keys[3]: entry(1, 2)}
    with into(contract) as table:
        table.update_many(there)
        carrying._carry(found, {}, table)
        assert dict(table.items()) == {**there, keys[0]: found[keys[0]], keys[3]: found[keys[3]]}
