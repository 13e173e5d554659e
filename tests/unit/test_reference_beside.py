"""From pod to pod of one node, past the bridge: what the model says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydatapath.reference import NODE, Backend, Hook, Model, Own, Packet, Service, World
from pydatapath.reference.packet import Address

NODES, CLIENT, OTHER, BACKEND = "10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.3"
AT = {NODES: NODE, CLIENT: "c", OTHER: "o", BACKEND: "b"}
WORLD = World(
    (Own(NODES),),
    services={Address("10.96.0.10", 80): Service.for_all(1, Backend(BACKEND, 8080))},
    endpoints=AT,
    interfaces=frozenset("cob"),
    pod_networks=("10.1.0.0/24",),
    service_networks=("10.96.0.0/12",),
    pod_fast_path=True,
)
DATA = Packet(CLIENT, 40000, OTHER, 9, flags="A")


def way(
    packet: Packet = DATA, world: World = WORLD, hook: Hook = Hook.FROM_POD, *, by: str = "c", meant: str = "o"
) -> str:
    """Where it goes, and whether it walked there."""
    verdict = Model(world).receive(hook, packet, 0, interface=by, meant=meant)
    assert verdict.packet == packet
    return f"{verdict.kind} {verdict.to}{' walked' if verdict.walked else ''}"


def test_from_pod_to_pod() -> None:
    """As it came; a SYN by the walk."""
    assert way() == f"forward {OTHER}"
    assert way(replace(DATA, flags="S")) == f"forward {OTHER} walked"
    assert way(world=replace(WORLD, pod_fast_path=False)) == "pass stack walked"


@pytest.mark.parametrize("meant", ["", "b", "c"])
def test_a_frame_for_another_is_bridged(meant: str) -> None:
    """The gateway's, another pod's, the sender's own."""
    assert way(meant=meant) == "pass stack walked"


def test_who_is_not_there_is_the_bridges() -> None:
    """Unknown, without an interface, behind the sender's, the node itself; and what is from no pod."""
    assert way(replace(DATA, destination="10.1.0.9")) == "pass stack walked"
    assert way(world=replace(WORLD, interfaces=frozenset("cb"))) == "pass stack walked"
    assert way(by="o") == "pass stack walked"
    assert way(replace(DATA, destination=NODES), meant=NODE) == "pass stack walked"
    assert way(hook=Hook.TO_BRIDGE) == "pass stack walked"


def test_a_sender_is_learned_by_the_walk() -> None:
    """Once."""
    model = Model(WORLD)
    new = replace(DATA, source="10.1.0.9")
    for walked in (True, False):
        verdict = model.receive(Hook.FROM_POD, new, 0, interface="c", meant="o")
        assert (verdict.kind, verdict.walked) == ("forward", walked)
    assert model.world.endpoints["10.1.0.9"] == "c"


def test_a_backends_answer_is_its_services() -> None:
    """Handed over, too, but under the address that was called."""
    model = Model(WORLD)
    call = Packet(CLIENT, 40000, "10.96.0.10", 80, flags="S")
    there = model.receive(Hook.FROM_POD, call, 0, interface="c")
    answer = replace(there.packet.turned_round(), flags="SA")
    back = model.receive(Hook.FROM_POD, answer, 0, interface="b", meant="c")
    assert (back.kind, back.to, back.packet.source) == ("forward", CLIENT, "10.96.0.10")


@pytest.mark.parametrize("flags", ["S", "A"])
def test_a_direct_connection_to_a_backend_is_entered(flags: str) -> None:
    """N93, whatever way it goes."""
    model = Model(WORLD)
    direct = Packet(CLIENT, 40000, BACKEND, 8080, flags=flags)
    verdict = model.receive(Hook.FROM_POD, direct, 0, interface="c", meant="b")
    assert (verdict.kind, verdict.to, verdict.walked, verdict.opened) == ("forward", BACKEND, True, True)
    assert direct.tuple.reverse in model.flows.half_open
