"""What programs keep of who answers to an address (bpf/endpoint.h) is good until that changes, whoever changes it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
from frames import Ether, udp
from packetbed import Bed
from places import BACKEND, CLIENT, MAC, VIP

from pydatapath.kernel.layout import EndpointKind, Hook

ELSEWHERE = "02:00:00:00:00:77"
CALLING = udp(CLIENT, 40000, VIP, 53)
CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def serving(bed: Bed) -> Iterator[None]:
    """A flow whose backend has been found by every CPU; the process is where it was afterwards."""
    bed.serve({f"{VIP}:53/UDP": [f"{BACKEND}:8080"]})
    bed.establish(CALLING)
    try:
        for cpu in CPUS:
            assert reached(bed, cpu) == MAC[BACKEND]
        yield
    finally:
        os.sched_setaffinity(0, CPUS)


def reached(bed: Bed, cpu: int) -> str:
    """The MAC to which this CPU sends the client's next packet."""
    os.sched_setaffinity(0, {cpu})
    return str(Ether(bed.run(Hook.FROM_POD, CALLING).packet).dst)


def told(bed: Bed) -> None:
    """Python writes it, as a load does."""
    bed.put_endpoint(BACKEND, bed.devices["pod4"], ELSEWHERE, EndpointKind.POD)


def taught(bed: Bed) -> None:
    """The pod is elsewhere, and calls from there."""
    moved = udp(BACKEND, 1, VIP, 53)
    moved[Ether].src = ELSEWHERE
    bed.run(Hook.FROM_POD, moved, device="pod4")


@pytest.mark.parametrize("change", [told, taught], ids=["told", "taught"])
def test_a_change_reaches_every_cpu_at_once(bed: Bed, change: Callable[[Bed], None]):
    """On the CPU that makes it, and on those that have found the address before."""
    os.sched_setaffinity(0, {CPUS[0]})
    change(bed)
    assert [reached(bed, cpu) for cpu in CPUS] == [ELSEWHERE] * len(CPUS)


def test_who_is_forgotten_is_not_reached(bed: Bed):
    """Where the node knows nobody any more the routing table is asked."""
    bed.maps["endpoints"].delete_many([bytes(map(int, BACKEND.split(".")))])
    assert reached(bed, CPUS[0]) != MAC[BACKEND]


def test_a_load_tells_again(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    """Who wrote last may have been killed before he said so: the next one says it, though he has nothing to write."""
    endpoints = bed.maps["endpoints"]
    with monkeypatch.context() as patched:
        patched.setattr(endpoints, "_told", contextlib.nullcontext)
        told(bed)
    assert reached(bed, CPUS[0]) == MAC[BACKEND]
    endpoints.update_many({})
    assert reached(bed, CPUS[0]) == ELSEWHERE
