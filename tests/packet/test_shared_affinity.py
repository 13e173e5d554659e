"""Session affinity that a service's ports share (C11)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from frames import addresses, tcp
from packetbed import Bed, Serving
from places import V4, V6, Places, at

from pydatapath.kernel.layout import Family, Hook

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
LISTENS = {80: 8080, 443: 8443}


def serve(
    bed: Bed,
    where: Places,
    plain: Sequence[str] = (),
    secure: Sequence[str] = (),
    draining: Sequence[str] = (),
    **others: Serving,
) -> None:
    """A Service of two ports that share their clients, and the pods of each (by default two, the same ones); pods that
    drain at port 80; other ports of the address.
    """
    both = (where.BACKEND, where.SECOND)
    ports = {
        where.called(f"{port}/TCP"): Serving(
            [at(pod, LISTENS[port]) for pod in pods or both],
            affinity=100,
            service="web",
            draining=[at(pod, 8080) for pod in draining if port == 80],
        )
        for port, pods in ((80, plain), (443, secure))
    }
    bed.serve(ports | {where.called(f"{name[4:]}/TCP"): one for name, one in others.items()})


def reached(bed: Bed, where: Places, client: str, port: int, source_port: int = 40000) -> tuple[str, int]:
    """Where a client's new connection to a port of the service goes."""
    return addresses(bed.run(Hook.FROM_UPLINK, tcp(client, source_port, where.VIP, port)))[2:]


def clients(where: Places, count: int) -> list[str]:
    """As many clients outside."""
    base = ip_address("2001:db8:51::2:0" if where is V6 else "198.51.100.20")
    return [str(base + number) for number in range(count)]


@FAMILIES
def test_C11_ports_of_a_service_share_the_pod_of_a_client(bed: Bed, where: Places):
    """Whichever it calls first; each port has its own backend there, and it is one entry."""
    serve(bed, where)
    seen = set()
    for number, client in enumerate(clients(where, 16)):
        first, then = ((80, 443), (443, 80))[number % 2]
        pod, port = reached(bed, where, client, first)
        assert port == LISTENS[first]
        for source_port in (40001, 40002, 40003):
            assert reached(bed, where, client, then, source_port) == (pod, LISTENS[then])
            assert reached(bed, where, client, first, source_port) == (pod, port)
        seen.add(pod)
    assert seen == {where.BACKEND, where.SECOND}
    assert len(list(bed.maps[f"affinities{Family.of(where.VIP).suffix}"].items())) == 16


@FAMILIES
def test_C11_the_pod_is_found_wherever_it_is_in_the_other_ports_set(bed: Bed, where: Places):
    """The ports have some pods in common, and these in another order."""
    plain = [where.BACKEND, where.SECOND]
    serve(bed, where, plain, [where.NOWHERE, where.REMOTE, where.SECOND, where.BACKEND])
    seen = set()
    for client in clients(where, 16):
        pod, _ = reached(bed, where, client, 80)
        for source_port in (40001, 40002, 40003):
            assert reached(bed, where, client, 443, source_port) == (pod, 8443)
            assert reached(bed, where, client, 80, source_port) == (pod, 8080)
        seen.add(pod)
    assert seen == set(plain)


@FAMILIES
def test_C11_a_port_without_the_pod_chooses_anew_and_that_is_kept(bed: Bed, where: Places):
    """S76: what bound the client before is thrown away, for all ports."""
    elsewhere = [where.REMOTE[:-1] + "7", where.REMOTE]
    serve(bed, where, secure=elsewhere)
    for client in clients(where, 8):
        assert reached(bed, where, client, 80)[0] in {where.BACKEND, where.SECOND}
        other = reached(bed, where, client, 443)
        assert other[0] in {*elsewhere}
        assert {reached(bed, where, client, 443, source_port) for source_port in range(40001, 40005)} == {other}
        serve(bed, where, elsewhere, elsewhere)
        assert reached(bed, where, client, 80, 41000)[0] == other[0]
        serve(bed, where, secure=elsewhere)


@FAMILIES
def test_C11_S74_a_connection_to_any_port_begins_the_time_anew(bed: Bed, where: Places):
    """When it is over the client is free, by both ports."""
    serve(bed, where)
    (client,) = clients(where, 1)
    pod, _ = reached(bed, where, client, 80)
    for source_port, port in enumerate((443, 80, 443), 41000):
        bed.age_affinities(99)
        assert reached(bed, where, client, port, source_port)[0] == pod
    moved = set()
    for source_port in range(42000, 42040):
        bed.age_affinities(101)
        moved.add(reached(bed, where, client, (80, 443)[source_port % 2], source_port)[0])
    assert moved == {where.BACKEND, where.SECOND}


@FAMILIES
def test_C11_S76_a_client_whose_pod_has_left_both_ports_never_returns(bed: Bed, where: Places):
    """It is balanced anew at once, and stays there."""
    serve(bed, where)
    (client,) = clients(where, 1)
    pod, _ = reached(bed, where, client, 443)
    stays = where.SECOND if pod == where.BACKEND else where.BACKEND
    serve(bed, where, [stays], [stays])
    assert reached(bed, where, client, 80, 41000) == (stays, 8080)
    serve(bed, where)
    assert {reached(bed, where, client, (80, 443)[n % 2], n)[0] for n in range(42000, 42030)} == {stays}


@FAMILIES
def test_C11_C12_the_pod_that_drains_at_one_port_is_kept_by_the_other(bed: Bed, where: Places):
    """As long as the client calls that one; a call of the port that drains takes it elsewhere."""
    serve(bed, where)
    (client,) = clients(where, 1)
    pod, _ = reached(bed, where, client, 80)
    stays = where.SECOND if pod == where.BACKEND else where.BACKEND
    serve(bed, where, plain=[stays], draining=[pod])
    assert reached(bed, where, client, 443, 41000)[0] == pod
    assert reached(bed, where, client, 80, 41000)[0] == stays


@FAMILIES
def test_C11_S75_strangers_share_nothing(bed: Bed, where: Places):
    """Another service whose ports share, and one that does not."""
    pods = [at(where.BACKEND, 8080), at(where.SECOND, 8080)]
    serve(bed, where, port81=Serving(pods, affinity=100, service="shop"), port82=Serving(pods, affinity=100))
    for port in (81, 82):
        calls = [(reached(bed, where, one, 80), reached(bed, where, one, port)) for one in clients(where, 40)]
        assert {first[0] == second[0] for first, second in calls} == {True, False}
