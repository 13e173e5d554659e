"""From services and slices to what the kernel must hold: the rules of which backends serve which address."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydatapath.kernel.layout import Family
from pydatapath.model import Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort
from pydatapath.plan import Address, Frontend, Here, PortPlan, plan_service
from pydatapath.serving import cluster_set, known_endpoints, used_endpoints

HTTP = ServicePort("http", "TCP", 80, target_port=8080)
WEB = Service("shop", "web", cluster_ips=("10.96.0.10",), ports=(HTTP,))
SLICE = EndpointSlice(
    "shop",
    "web-1",
    "web",
    "IPv4",
    ports=(EndpointPort("http", "TCP", 8080),),
    endpoints=(Endpoint(("10.244.1.12",)), Endpoint(("10.244.1.11",))),
)
HERE = Here("node1")
BOTH = Here("node1", families=(Family.IPV4, Family.IPV6))
SIX = replace(SLICE, name="web-6", address_type="IPv6", endpoints=(Endpoint(("fd00::1",)),))
DUAL = replace(WEB, cluster_ips=("10.96.0.10", "fd00::10"))
READY = Endpoint(("10.244.1.11",))
UNREADY = READY._replace(ready=False)
TERMINATING = READY._replace(ready=False, terminating=True)


def tcp(text: str) -> Address:
    address, port = text.split(":")
    return Address(address, int(port), "TCP")


def endpoints(*found: Endpoint, name: str = "web-1", number: int = 8080) -> EndpointSlice:
    return replace(SLICE, name=name, ports=(EndpointPort("http", "TCP", number),), endpoints=found)


def backends(*slices: EndpointSlice, port: ServicePort = HTTP) -> list[str]:
    return [f"{at.address}:{at.port}" for at, _ in cluster_set(known_endpoints(port, slices), HERE)]


def plans(service: Service = WEB, *slices: EndpointSlice) -> dict[str, PortPlan]:
    return {one.port: one for one in plan_service(service, slices or (SLICE,), HERE)}


def test_S1_a_service_port_is_called_at_its_cluster_ip() -> None:
    """A plan names the port, where it is called and who answers, in the order of the backends' addresses."""
    assert plan_service(WEB, [SLICE], HERE) == [
        PortPlan(
            "shop",
            "web",
            "http",
            "TCP",
            frontends=(Frontend(tcp("10.96.0.10:80")),),
            cluster=(tcp("10.244.1.11:8080"), tcp("10.244.1.12:8080")),
        )
    ]


def test_S2_S3_S4_a_service_that_is_not_proxied_has_no_plan() -> None:
    """ExternalName, headless and handed over by label: nothing is programmed, whatever addresses are left in it."""
    assert plan_service(replace(WEB, proxied=False, external_ips=("192.0.2.1",)), [SLICE], HERE) == []


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(replace(SLICE, headless=True), id="S5 headless label"),
        pytest.param(replace(SLICE, service=None), id="S6 no service-name"),
        pytest.param(replace(SLICE, address_type="FQDN"), id="S6 FQDN"),
        pytest.param(replace(SLICE, address_type="IPv6", endpoints=(Endpoint(("fd00::1",)),)), id="S6 other family"),
    ],
)
def test_S5_S6_a_slice_that_does_not_count_brings_no_backend(hidden: EndpointSlice) -> None:
    """The service stays, at its address, with the backends of the other slices only."""
    other = endpoints(Endpoint(("10.244.2.11",)), name="web-2")
    assert plans(WEB, hidden)["http"].cluster == ()
    assert plans(WEB, hidden, other)["http"].cluster == (tcp("10.244.2.11:8080"),)


@pytest.mark.parametrize(
    ("cluster_ip", "family"), [("10.96.0.10", Family.IPV4), ("fd00::10", Family.IPV6)], ids=["IPv4", "IPv6"]
)
def test_S7_a_family_without_cluster_ip_is_not_there(cluster_ip: str, family: Family) -> None:
    """Without a ClusterIP of it there is no service in a family, whatever other addresses and slices there are."""
    others = ("192.0.2.1", "2001:db8::1")
    service = replace(
        WEB,
        cluster_ips=(cluster_ip,),
        external_ips=others,
        load_balancer_ips=others,
        ports=(replace(HTTP, node_port=30080),),
    )
    here = replace(BOTH, addresses=("192.168.50.11", "fd00:50::11"))
    (plan,) = plan_service(service, [SLICE, SIX], here)
    assert plan.family is family
    assert {one.address.family for one in plan.frontends} == {at.family for at in plan.cluster} == {family}
    assert [one.kind for one in plan.frontends] == ["cluster-ip", "load-balancer-ip", "node-port"]


@pytest.mark.parametrize("cluster_ips", [("10.96.0.10", "fd00::10"), ("fd00::10", "10.96.0.10")])
def test_S8_the_order_of_families_does_not_matter(cluster_ips: tuple[str, ...]) -> None:
    """Of two families each has its own addresses and slices, whichever comes first."""
    found = plan_service(replace(WEB, cluster_ips=cluster_ips), [SIX, SLICE], BOTH)
    assert found == [
        plans()["http"],
        PortPlan(
            "shop",
            "web",
            "http",
            "TCP",
            frontends=(Frontend(Address("fd00::10", 80, "TCP")),),
            cluster=(Address("fd00::1", 8080, "TCP"),),
            family=Family.IPV6,
        ),
    ]
    assert len({one.key for one in found}) == 2


@pytest.mark.parametrize("given", [[SLICE], [SIX], []], ids=["IPv4", "IPv6", "none"])
def test_S8_one_family_may_be_empty(given: list[EndpointSlice]) -> None:
    """With slices of the other family only, the port is called in both and has no backend in one."""
    four, six = plan_service(DUAL, given, BOTH)
    assert four.frontends == (Frontend(tcp("10.96.0.10:80")),)
    assert six.frontends == (Frontend(Address("fd00::10", 80, "TCP")),)
    assert (bool(four.cluster), bool(six.cluster)) == (SLICE in given, SIX in given)


def test_S8_what_serves_in_one_family_does_not_decide_for_the_other() -> None:
    """Where one family has ready endpoints, those that end serve in the other one, where none is ready (S21)."""
    ending = replace(SIX, endpoints=(Endpoint(("fd00::2",), ready=False, terminating=True),))
    four, six = plan_service(DUAL, [SLICE, ending], BOTH)
    assert (len(four.cluster), six.cluster) == (2, (Address("fd00::2", 8080, "TCP"),))
    shown = [at.address for at, _ in used_endpoints(DUAL, HTTP, [SLICE, ending], BOTH)]
    assert shown == ["10.244.1.11", "10.244.1.12", "fd00::2"]


def test_a_family_that_is_not_loaded_has_no_plan() -> None:
    """Its service is kept in the records; a load with it plans it."""
    assert plan_service(DUAL, [SLICE, SIX], HERE) == [plans()["http"]]
    assert plan_service(replace(DUAL, cluster_ips=("fd00::10",)), [SIX], HERE) == []
    assert [at.address for at, _ in used_endpoints(DUAL, HTTP, [SLICE, SIX], HERE)] == ["10.244.1.11", "10.244.1.12"]


def test_an_IPv6_address_is_shown_with_brackets() -> None:
    """So that the port is told from the address."""
    assert str(Address("fd00::1", 80, "SCTP")) == "[fd00::1]:80/sctp"
    assert str(tcp("10.96.0.10:80")) == "10.96.0.10:80/tcp"


@pytest.mark.parametrize(
    ("name", "protocol", "found"),
    [("http", "TCP", True), ("web", "TCP", False), ("", "TCP", False), ("http", "UDP", False)],
)
def test_S11_a_port_is_matched_by_name_and_protocol(name: str, protocol: Protocol, found: bool) -> None:
    """The slice's number counts, and never the targetPort of the service."""
    one = replace(SLICE, ports=(EndpointPort(name, protocol, 9999),), endpoints=(READY,))
    assert backends(one) == (["10.244.1.11:9999"] if found else [])


def test_S12_slices_may_have_different_numbers_under_one_name() -> None:
    """Pods of an old and a new version serve side by side, each at its own port."""
    old, new = endpoints(READY), endpoints(READY, Endpoint(("10.244.1.12",)), name="web-2", number=9090)
    assert backends(old, new) == ["10.244.1.11:8080", "10.244.1.11:9090", "10.244.1.12:9090"]


def test_S13_ports_of_a_service_are_independent() -> None:
    """A port that no slice names has no backends; its neighbour has."""
    found = plans(replace(WEB, ports=(HTTP, ServicePort("metrics", "TCP", 9100))))
    assert len(found["http"].cluster) == 2
    assert found["metrics"] == PortPlan("shop", "web", "metrics", "TCP", (Frontend(tcp("10.96.0.10:9100")),), ())


def test_S14_one_number_in_two_protocols_is_two_ports() -> None:
    """TCP, UDP and SCTP on port 53 have keys, addresses and backends of their own (S18)."""
    service = replace(
        WEB, ports=(ServicePort("a", "TCP", 53), ServicePort("b", "UDP", 53), ServicePort("c", "SCTP", 53))
    )
    numbers = (EndpointPort("a", "TCP", 5353), EndpointPort("b", "UDP", 5354), EndpointPort("c", "SCTP", 5355))
    one = replace(SLICE, ports=numbers, endpoints=(READY,))
    found = plan_service(service, [one], HERE)
    called = [[frontend.address for frontend in plan.frontends] for plan in found]
    assert [str(at) for plan, at_all in zip(found, called, strict=True) for at in (*at_all, *plan.cluster)] == [
        "10.96.0.10:53/tcp",
        "10.244.1.11:5353/tcp",
        "10.96.0.10:53/udp",
        "10.244.1.11:5354/udp",
        "10.96.0.10:53/sctp",
        "10.244.1.11:5355/sctp",
    ]
    assert len({plan.key for plan in found}) == 3


@pytest.mark.parametrize("number", [None, 0])
def test_S15_a_slice_port_without_a_number_is_ignored(number: int | None) -> None:
    """Nobody can be reached at no port."""
    assert backends(replace(SLICE, ports=(EndpointPort("http", "TCP", number),))) == []


def test_S15_an_empty_name_is_the_unnamed_port() -> None:
    """The only port of a service may have no name, in the service and in the slice."""
    one = replace(SLICE, ports=(EndpointPort("", "TCP", 8080),), endpoints=(READY,))
    assert backends(one, port=ServicePort("", "TCP", 80)) == ["10.244.1.11:8080"]


def test_S16_only_the_first_address_of_an_endpoint_is_used() -> None:
    """Further addresses of an endpoint are not backends."""
    assert backends(endpoints(Endpoint(("10.244.1.13", "10.244.1.2")))) == ["10.244.1.13:8080"]


def test_S17_an_address_in_several_slices_counts_once() -> None:
    """While an endpoint moves from slice to slice it is in both, and gets its share of flows once."""
    assert backends(endpoints(READY), endpoints(READY, name="web-2")) == ["10.244.1.11:8080"]


@pytest.mark.parametrize("order", [1, -1])
def test_S17_the_record_that_is_not_terminating_wins(order: int) -> None:
    """An address that passes from a pod on its way out to a new one is the new one's."""
    pair = [endpoints(TERMINATING), endpoints(READY._replace(target_name="new"), name="web-2")][::order]
    assert [one.target_name for _, one in known_endpoints(HTTP, pair)] == ["new"]


@pytest.mark.parametrize("order", [1, -1])
def test_S17_a_pod_that_is_not_ready_hides_one_that_terminates(order: int) -> None:
    """Not terminating wins, even where it does not serve: the address is the new pod's, which is not ready yet."""
    pair = [endpoints(TERMINATING), endpoints(UNREADY, name="web-2")][::order]
    assert backends(*pair) == []


@pytest.mark.parametrize(("first", "last", "used"), [(UNREADY, READY, True), (READY, UNREADY, False)])
def test_S17_of_two_that_do_not_terminate_the_last_seen_wins(first: Endpoint, last: Endpoint, used: bool) -> None:
    """Of two records of one address the later slice's is believed."""
    assert bool(backends(endpoints(first), endpoints(last, name="web-2"))) is used


@pytest.mark.parametrize(
    ("found", "used"),
    [
        pytest.param((READY, TERMINATING._replace(addresses=("10.244.1.12",))), ["10.244.1.11:8080"], id="S20"),
        pytest.param((UNREADY._replace(addresses=("10.244.1.12",)), TERMINATING), ["10.244.1.11:8080"], id="S21"),
        pytest.param((TERMINATING._replace(serving=False),), [], id="S21 it must serve"),
        pytest.param((TERMINATING._replace(node_name="far"),), ["10.244.1.11:8080"], id="S21 on any node"),
        pytest.param((UNREADY,), [], id="S22 even if serving"),
        pytest.param((UNREADY._replace(serving=False),), [], id="S22"),
        pytest.param((TERMINATING._replace(ready=True),), ["10.244.1.11:8080"], id="S25"),
    ],
)
def test_S20_S21_S22_S25_who_serves(found: tuple[Endpoint, ...], used: list[str]) -> None:
    """All that are ready; where none is, those that serve while they terminate; never one that is only not ready."""
    assert backends(endpoints(*found)) == used


def test_a_plan_does_not_depend_on_the_order_of_slices_and_endpoints() -> None:
    """The same objects give the same plan, so that applying them again changes nothing."""
    far = endpoints(Endpoint(("10.244.2.11",)), Endpoint(("10.244.2.9",)), name="web-2")
    mixed = [replace(one, endpoints=one.endpoints[::-1]) for one in (far, SLICE)]
    assert plan_service(WEB, [SLICE, far], HERE) == plan_service(WEB, mixed, HERE)
