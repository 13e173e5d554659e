"""Timers (C14), with given time: as they are by default, and as they were said otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from frames import DROP, PASS, Packet, addresses, answer_to, key_of, reverse, sctp, tcp, udp
from packetbed import FEW_PORTS, OTHER_TIMEOUTS, Bed
from places import V4, V6, Places

from pydatapath.kernel.layout import TIMEOUTS, Family, FlowFlag, FlowState, Hook, timeout

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
HOUR = 3600
MAPS = [f"{name}{family.suffix}" for name in ("flows", "half_open", "mappings") for family in Family]


@pytest.fixture(params=["masquerading", "timed"], ids=["default", "said"])
def bed(request: pytest.FixtureRequest) -> tuple[Bed, dict[str, int]]:
    """The programs with masquerading and the times that they were given."""
    times = TIMEOUTS if request.param == "masquerading" else OTHER_TIMEOUTS
    return request.getfixturevalue(request.param), dict(times)


def let_pass(bed: Bed, seconds: float) -> None:
    """Gives so much time to all that has a time."""
    bed.age(seconds)
    bed.age_mappings(seconds)


@FAMILIES
@pytest.mark.parametrize("over", [False, True], ids=["just before", "just after"])
def test_N34_N42_an_idle_mapping_of_UDP_is_gone_after_its_time(
    bed: tuple[Bed, dict[str, int]], where: Places, over: bool
):
    """Who was not asked is dropped by name while it is there, and the node's own business then."""
    programs, times = bed
    call = udp(where.CLIENT, 5000, where.FAR, 53)
    there = programs.run(Hook.FROM_POD, call)
    assert addresses(programs.run(Hook.FROM_UPLINK, answer_to(there))) == reverse(addresses(call))
    let_pass(programs, times["UDP_ESTABLISHED"] + (1 if over else -1))
    unasked = udp(where.FAR, 54, where.UPLINK, 5000)
    assert programs.run(Hook.FROM_UPLINK, unasked).verdict == (PASS if over else DROP)
    late = programs.run(Hook.FROM_UPLINK, answer_to(there))
    assert addresses(late)[2:] == ((where.UPLINK, 5000) if over else (where.CLIENT, 5000))


@FAMILIES
def test_N35_a_busy_mapping_of_UDP_stays_for_an_hour(bed: tuple[Bed, dict[str, int]], where: Places):
    """One packet outwards shortly before each end of its time: one port, and every answer arrives."""
    programs, times = bed
    blocking = programs.run(Hook.FROM_POD, udp(where.BACKEND, 5000, where.FAR, 53), device="pod3")
    assert addresses(blocking)[1] == 5000
    call, passed = udp(where.CLIENT, 5000, where.FAR, 53), 0
    outside = addresses(programs.run(Hook.FROM_POD, call))[:2]
    assert outside != (where.UPLINK, 5000)
    while passed <= HOUR:
        let_pass(programs, times["UDP_ESTABLISHED"] - 1)
        passed += times["UDP_ESTABLISHED"] - 1
        # Of the flow that is not answered it may be over: the mapping is what keeps the port
        there = programs.run(Hook.FROM_POD, call)
        assert addresses(there)[:2] == outside
        assert addresses(programs.run(Hook.FROM_UPLINK, answer_to(there))) == reverse(addresses(call))
    assert programs.counted().get("drop_ports_taken", 0) == 0


FLOWS = [
    *(("TCP", state) for state in FlowState),
    *((protocol, state) for protocol in ("UDP", "SCTP") for state in (FlowState.NEW, FlowState.ESTABLISHED)),
]


@pytest.mark.parametrize(("protocol", "state"), FLOWS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("over", [False, True], ids=["just before", "just after"])
def test_C14_N34_N36_N37_a_flow_is_over_at_the_time_that_was_said(
    bed: tuple[Bed, dict[str, int]], protocol: str, state: FlowState, over: bool
):
    """A service's answer is no longer one: it keeps its own source."""
    programs, times = bed
    make = {"TCP": tcp, "UDP": udp, "SCTP": sctp}[protocol]
    programs.serve({f"{V4.VIP}:90/{protocol}": [f"{V4.BACKEND}:8080"]})
    call: Packet = make(V4.CLIENT, 40000, V4.VIP, 90)
    there = programs.run(Hook.FROM_POD, call)
    if state is not FlowState.NEW:
        programs.answer(there)
    if state not in {FlowState.NEW, FlowState.ANSWERED}:
        programs.confirm(call)
    if state is FlowState.CLOSING:
        for key, entry in programs.entries().items():
            programs.amend("flows", key, flags=entry.flags | FlowFlag.FIN)
    programs.age(timeout(protocol, state, times) + (1 if over else -1))
    back = programs.answer(there, "PA")
    assert addresses(back) == (reverse(addresses(there)) if over else reverse(addresses(call)))
    assert (key_of(call) in programs.entries()) == (not over)


# What was freed lately


def answered(programs: Bed, call: Packet) -> None:
    """A pod's first packet leaves by its own port, and is answered."""
    there = programs.run(Hook.FROM_POD, call)
    assert addresses(there)[1] == 5000
    assert addresses(programs.run(Hook.FROM_UPLINK, answer_to(there))) == reverse(addresses(call))
    programs.confirm(call)


def calls_again(programs: Bed, make: Callable[..., Packet], where: Places) -> tuple[int, int]:
    """The ports by which another pod's call to the same place leaves, and then the pod's own; both are forgotten."""
    kept = {name: dict(programs.maps[name].items()) for name in MAPS}
    ports = []
    for pod, device in ((where.BACKEND, "pod3"), (where.CLIENT, "pod2")):
        ports.append(addresses(programs.run(Hook.FROM_POD, make(pod, 5000, where.FAR, 53), device=device))[1])
        for name, entries in kept.items():
            programs.maps[name].delete_many([key for key, _ in programs.maps[name].items()])
            programs.maps[name].update_many(entries)
    return ports[0], ports[1]


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp, sctp], ids=["TCP", "UDP", "SCTP"])
def test_N25_a_freed_port_is_no_other_pods_for_two_minutes(
    bed: tuple[Bed, dict[str, int]], where: Places, make: Callable[..., Packet]
):
    """After its end, which is a timeout's; its own pod has it at once."""
    programs, times = bed
    answered(programs, make(where.CLIENT, 5000, where.FAR, 53))
    let_pass(programs, times[f"{make.__name__.upper()}_ESTABLISHED"] + 1)
    assert calls_again(programs, make, where)[0] != 5000
    let_pass(programs, times["QUARANTINE"] - 2)
    other, own = calls_again(programs, make, where)
    assert (other != 5000, own) == (True, 5000)
    let_pass(programs, 2)
    assert calls_again(programs, make, where) == (5000, 5000)


@FAMILIES
def test_N25_a_closed_connections_port_is_another_pods_after_two_minutes(
    bed: tuple[Bed, dict[str, int]], where: Places
):
    """As long as its server may remember it; its own pod may open it again at once (N95)."""
    programs, times = bed
    call = tcp(where.CLIENT, 5000, where.FAR, 53)
    answered(programs, call)
    there = programs.run(Hook.FROM_POD, tcp(where.CLIENT, 5000, where.FAR, 53, "FA"))
    programs.run(Hook.FROM_UPLINK, answer_to(there, "FA"))
    other, own = calls_again(programs, tcp, where)
    assert (other != 5000, own) == (True, 5000)
    programs.age(times["QUARANTINE"] - 1)
    assert calls_again(programs, tcp, where)[0] != 5000
    programs.age(2)
    assert calls_again(programs, tcp, where)[0] == 5000


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N25_what_was_another_pods_is_taken_where_there_is_little_else(
    timed: Bed, where: Places, make: Callable[..., Packet]
):
    """Of few ports, all of which were others' lately: no call fails, and none is found twice."""
    pods = [f"{where.CLIENT[:-1]}{number}" for number in range(20, 30)]
    for pod in pods[:5]:
        call = make(pod, 5000, where.FAR, 53)
        there = timed.run(Hook.FROM_POD, call)
        timed.run(Hook.FROM_UPLINK, answer_to(there))
        timed.confirm(call)
    timed.run(Hook.FROM_POD, make(pods[5], 5000, where.FAR, 53))
    assert timed.counted()["drop_ports_taken"] == 1
    let_pass(timed, OTHER_TIMEOUTS[f"{make.__name__.upper()}_ESTABLISHED"] + 1)
    ports = {addresses(timed.run(Hook.FROM_POD, make(pod, 5000, where.FAR, 53)))[1] for pod in pods[5:9]}
    assert ports == set(range(FEW_PORTS[0], FEW_PORTS[1] + 1, 2))
    assert timed.counted()["drop_ports_taken"] == 1
