"""Every way into a service, and which backends serve it there: traffic policies, locality and hints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from pydatapath.guarding import Guard, Guards, guard_change
from pydatapath.kernel.layout import Family, ServiceFlag, VipKind
from pydatapath.model import Endpoint, EndpointPort, EndpointSlice, Policy, Service, ServicePort
from pydatapath.plan import Frontend, FrontendKind, Here, PortPlan, plan_service, used_endpoints

HERE = Here("node1", ("192.168.50.11", "192.168.50.12"), "a")
HTTP = ServicePort("http", "TCP", 80, node_port=30080)
CLUSTER_IP, NODE_PORT, NODE_PORT_2 = "10.96.0.10:80", "192.168.50.11:30080", "192.168.50.12:30080"
EXTERNAL, BALANCER = "192.0.2.1:80", "192.0.2.9:80"
WEB = Service(
    "shop",
    "web",
    type="LoadBalancer",
    cluster_ips=("10.96.0.10",),
    ports=(HTTP,),
    external_ips=("192.0.2.1",),
    load_balancer_ips=("192.0.2.9",),
)
OUTER = [BALANCER, EXTERNAL, NODE_PORT, NODE_PORT_2]


def pod(last: int, node: str | None = "node1", **fields: Any) -> Endpoint:
    return Endpoint((f"10.244.1.{last}",), node_name=node, **fields)


def ending(last: int, node: str | None = "node1", *, serving: bool = True) -> Endpoint:
    return pod(last, node, ready=False, terminating=True, serving=serving)


def a_slice(*found: Endpoint) -> EndpointSlice:
    return EndpointSlice("shop", "web-1", "web", "IPv4", ports=(EndpointPort("http", "TCP", 8080),), endpoints=found)


def plan(*found: Endpoint, service: Service = WEB, here: Here = HERE, **fields: Any) -> PortPlan:
    (made,) = plan_service(replace(service, **fields), [a_slice(*found)], here)
    return made


def ways(made: PortPlan) -> dict[str, Frontend]:
    """The frontends of a port by `address:port`, none of them twice."""
    found = {f"{one.address.address}:{one.address.port}": one for one in made.frontends}
    assert len(found) == len(made.frontends)
    return found


def lasts(made: PortPlan, called: str, side: str) -> list[int]:
    """Who serves callers of one side at one address, by the last byte."""
    chosen: Literal["cluster", "local"] = getattr(ways(made)[called], side)
    return [int(at.address.rpartition(".")[2]) for at in made.sets[chosen]]


def served(made: PortPlan, called: str) -> tuple[list[int], list[int]]:
    """Who serves callers inside the cluster, and outside."""
    return lasts(made, called, "inside"), lasts(made, called, "outside")


def kinds(made: PortPlan) -> dict[str, FrontendKind]:
    return {called: one.kind for called, one in ways(made).items()}


# Where a service is called


def test_S46_S57_S59_a_service_is_called_at_all_its_addresses() -> None:
    """ClusterIP, the balancer's IPs and external IPs at the service port, the node's addresses at the node port."""
    assert kinds(plan(pod(1))) == {
        CLUSTER_IP: "cluster-ip",
        BALANCER: "load-balancer-ip",
        EXTERNAL: "external-ip",
        NODE_PORT: "node-port",
        NODE_PORT_2: "node-port",
    }


def test_S61_without_a_node_port_the_balancers_ip_works_the_same() -> None:
    """allocateLoadBalancerNodePorts=false takes away one way in, and no other."""
    made = plan(pod(1), ports=(replace(HTTP, node_port=None),))
    assert list(ways(made)) == [CLUSTER_IP, BALANCER, EXTERNAL]


def test_a_node_without_addresses_has_no_node_ports() -> None:
    """Without an uplink nobody calls from there; the other ways in stay."""
    assert list(ways(plan(pod(1), here=Here("node1")))) == [CLUSTER_IP, BALANCER, EXTERNAL]


def test_S7_S8_each_family_is_called_at_its_own_addresses() -> None:
    """The two halves of a dual-stack service have their addresses of every kind, and node ports at the node's."""
    service = replace(
        WEB,
        cluster_ips=("fd00::a", "10.96.0.10"),
        external_ips=("2001:db8::1", "192.0.2.1"),
        load_balancer_ips=("192.0.2.9", "2001:db8::9"),
    )
    here = Here("node1", ("fd00:50::11", "192.168.50.11"), families=(Family.IPV4, Family.IPV6))
    four, six = plan_service(service, [a_slice(pod(1))], here)
    assert [str(one.address) for one in four.frontends] == [
        f"{at}/tcp" for at in (CLUSTER_IP, BALANCER, EXTERNAL, NODE_PORT)
    ]
    assert [str(one.address) for one in six.frontends] == [
        "[fd00::a]:80/tcp",
        "[2001:db8::9]:80/tcp",
        "[2001:db8::1]:80/tcp",
        "[fd00:50::11]:30080/tcp",
    ]
    assert [[one.owned for one in half.frontends] for half in (four, six)] == [[True, True, True, False]] * 2


@pytest.mark.parametrize(
    ("ranges", "four", "six"),
    [
        ((), None, None),
        (("192.0.2.0/24",), ("192.0.2.0/24",), ()),
        (("2001:db8::/32",), (), ("2001:db8::/32",)),
        (("2001:db8::/32", "10.0.0.0/8", "192.0.2.0/24"), ("10.0.0.0/8", "192.0.2.0/24"), ("2001:db8::/32",)),
    ],
)
def test_C6_S66_source_ranges_are_each_familys_own(
    ranges: tuple[str, ...], four: tuple[str, ...] | None, six: tuple[str, ...] | None
) -> None:
    """Ranges of one family close the other one: where no entry is of it, nobody may call."""
    addresses = {"cluster_ips": ("10.96.0.10", "fd00::a"), "load_balancer_ips": ("192.0.2.9", "2001:db8::9")}
    service = replace(WEB, source_ranges=ranges, **addresses)
    found = plan_service(service, [a_slice(pod(1))], replace(HERE, families=(Family.IPV4, Family.IPV6)))
    assert [one.sources for one in found] == [four, six]
    for one in found:
        balancers = [frontend for frontend in one.frontends if frontend.kind == "load-balancer-ip"]
        assert [bool(one.flags(frontend) & ServiceFlag.RANGES) for frontend in balancers] == [bool(ranges)]
        assert {Family.of(address) for address in one.guard(7).vips} == {one.family}


@pytest.mark.parametrize("field", ["external_ips", "load_balancer_ips"])
def test_S48_an_exact_address_comes_before_a_node_port(field: str) -> None:
    """Where an external or balancer's IP is a node's address and its port a node port, the first has it."""
    odd = ServicePort("http", "TCP", 30080, node_port=30080)
    addresses = {"external_ips": (), "load_balancer_ips": (), field: ("192.168.50.11",)}
    made = plan(pod(1), ports=(odd,), **addresses)
    assert kinds(made)[NODE_PORT] == field.removesuffix("s").replace("_", "-")
    assert kinds(made)[NODE_PORT_2] == "node-port"


def test_S48_between_ports_of_a_service_too() -> None:
    """A port that is called at a node's address exactly has it, whatever node port comes first in the list."""
    exact = ServicePort("exact", "TCP", 30080)
    service = replace(WEB, ports=(HTTP, exact), external_ips=("192.168.50.11",))
    first, second = plan_service(service, [a_slice(pod(1))], HERE)
    assert NODE_PORT not in kinds(first)
    assert kinds(second)[NODE_PORT] == "external-ip"


def test_S69_an_address_that_is_external_and_the_balancers_is_the_balancers() -> None:
    """It is there once, as the kind that source ranges filter."""
    assert kinds(plan(pod(1), external_ips=("192.0.2.9",)))[BALANCER] == "load-balancer-ip"


def test_S48_a_cluster_ip_that_is_an_external_ip_too_is_a_cluster_ip() -> None:
    """The same address is the same place, once."""
    assert kinds(plan(pod(1), external_ips=("10.96.0.10",)))[CLUSTER_IP] == "cluster-ip"


# Traffic policies


def test_S49_with_policy_cluster_all_endpoints_serve_everybody() -> None:
    """Pods, the node and clients outside get any endpoint of the cluster, at every address."""
    made = plan(pod(1), pod(2, "node2"))
    for called in (CLUSTER_IP, *OUTER):
        assert served(made, called) == ([1, 2], [1, 2])
    assert (made.local, list(made.sets)) == ((), ["cluster"])


def test_S35_S55_internal_policy_local_is_for_the_cluster_ip() -> None:
    """There pods, the node and clients outside get what is on this node; elsewhere the policy means nothing."""
    made = plan(pod(1), pod(2, "node2"), internal_policy="Local")
    assert served(made, CLUSTER_IP) == ([1], [1])
    for called in OUTER:
        assert served(made, called) == ([1, 2], [1, 2])


def test_S50_S52_S53_external_policy_local_is_for_callers_outside() -> None:
    """They get what is on this node; pods and the node itself may go anywhere, as by the balancer and back."""
    made = plan(pod(1), pod(2, "node2"), external_policy="Local")
    assert served(made, CLUSTER_IP) == ([1, 2], [1, 2])
    for called in OUTER:
        assert served(made, called) == ([1, 2], [1])


def test_S55_with_both_policies_local_the_short_cut_has_all() -> None:
    """The ClusterIP has the Local set, a pod that calls the node port the Cluster set."""
    made = plan(pod(1), pod(2, "node2"), external_policy="Local", internal_policy="Local")
    assert served(made, CLUSTER_IP) == ([1], [1])
    assert served(made, NODE_PORT) == ([1, 2], [1])


NEVER, INSIDE, OUTSIDE = ServiceFlag(0), ServiceFlag.DROP_INSIDE, ServiceFlag.DROP_OUTSIDE


@pytest.mark.parametrize(
    ("policies", "found", "at_cluster_ip", "at_node_port"),
    [
        pytest.param(("Cluster", "Local"), pod(1, "node2"), INSIDE | OUTSIDE, NEVER, id="S36 elsewhere"),
        pytest.param(("Cluster", "Local"), ending(1, "node2"), INSIDE | OUTSIDE, NEVER, id="S36 elsewhere, ending"),
        pytest.param(("Cluster", "Local"), pod(1), NEVER, NEVER, id="S36 here"),
        pytest.param(("Cluster", "Local"), pod(1, "node2", ready=False), NEVER, NEVER, id="S36 nothing usable"),
        pytest.param(("Local", "Cluster"), pod(1, "node2"), NEVER, OUTSIDE, id="S51 elsewhere"),
        pytest.param(("Local", "Cluster"), pod(1), NEVER, NEVER, id="S51 here"),
        pytest.param(("Local", "Cluster"), pod(1, "node2", ready=False), NEVER, NEVER, id="S51 nothing usable"),
        pytest.param(("Cluster", "Cluster"), pod(1, "node2", ready=False), NEVER, NEVER, id="S41 nothing usable"),
    ],
)
def test_S36_S41_S51_dropped_or_refused(
    policies: tuple[Policy, Policy], found: Endpoint, at_cluster_ip: ServiceFlag, at_node_port: ServiceFlag
) -> None:
    """With nothing here and something elsewhere callers are dropped, with nothing anywhere they are refused."""
    made = plan(found, external_policy=policies[0], internal_policy=policies[1])
    called = ways(made)
    assert made.flags(called[CLUSTER_IP]) == at_cluster_ip
    assert {made.flags(called[one]) for one in OUTER} == {at_node_port}


def test_S61_a_policy_without_a_way_in_asks_for_no_local_set() -> None:
    """A balancer that has no address yet costs nothing: no address uses the Local set."""
    made = plan(
        pod(1),
        external_policy="Local",
        external_ips=(),
        load_balancer_ips=(),
        ports=(replace(HTTP, node_port=None),),
    )
    assert (made.local, list(made.sets)) == ((), ["cluster"])


# The Local set


@pytest.mark.parametrize(
    ("found", "local"),
    [
        pytest.param([pod(1), pod(2, "node2")], [1], id="S23 ready and here"),
        pytest.param([ending(1), pod(2)], [2], id="S23 one that ends is not used beside one that is ready"),
        pytest.param([ending(1), pod(2, "node2")], [1], id="S24 ending here, ready elsewhere"),
        pytest.param([ending(1), pod(2, ready=False)], [1], id="S24 ending here beside one that is not ready"),
        pytest.param([ending(1, serving=False), pod(2, "node2")], [], id="S24 it must serve"),
        pytest.param([ending(1, "node2")], [], id="S24 ending elsewhere"),
        pytest.param([pod(1, ready=False)], [], id="S22 not ready"),
        pytest.param([pod(1, terminating=True)], [1], id="S25 ready while it ends"),
        pytest.param([pod(1, None)], [], id="S27 without nodeName it is elsewhere"),
        pytest.param([pod(1, "node10")], [], id="S27 the same name and not a part of it"),
    ],
)
def test_S22_to_S27_who_is_local(found: list[Endpoint], local: list[int]) -> None:
    """The ready ones with this node's name; where none is, those that serve while they terminate here."""
    made = plan(*found, external_policy="Local")
    assert lasts(made, NODE_PORT, "outside") == local


def test_S27_a_node_without_a_name_has_nothing_local() -> None:
    """An endpoint that says no node is not on one that says no name."""
    assert plan(pod(1, None), here=Here(""), internal_policy="Local").local == ()


def test_S24_the_fallback_does_not_reach_the_cluster_set() -> None:
    """A local endpoint that is ending serves outside callers while those inside get the ready ones elsewhere."""
    assert served(plan(ending(1), pod(2, "node2"), external_policy="Local"), NODE_PORT) == ([2], [1])


def test_S24_what_serves_by_a_policy_is_shown() -> None:
    """`backend list` has the endpoints of both sets, those of the second only where a policy is Local."""
    slices = [a_slice(ending(1), pod(2, "node2"))]
    for policy, shown in (("Cluster", [2]), ("Local", [1, 2])):
        service = replace(WEB, external_policy=policy)
        found = used_endpoints(service, HTTP, slices, HERE)
        assert [int(at.address[-1]) for at, _ in found] == shown


# Hints


def by_node(last: int, *nodes: str) -> Endpoint:
    return pod(last, for_nodes=nodes, for_zones=("b",))


def by_zone(last: int, *zones: str, node: str = "node2") -> Endpoint:
    return pod(last, node, for_zones=zones)


@pytest.mark.parametrize(
    ("found", "used"),
    [
        pytest.param([by_node(1, "node1"), by_node(2, "node2")], [1], id="S84 this node's"),
        pytest.param([by_node(1, "node1", "node2"), by_node(2, "node1")], [1, 2], id="S84 several are this node's"),
        pytest.param([by_zone(1, "a"), by_zone(2, "b")], [1], id="S84 this zone's"),
        pytest.param([by_zone(1, "a", "b"), by_zone(2, "b")], [1], id="S84 a hint for two zones"),
        pytest.param([by_node(1, "node1"), by_zone(2, "b")], [1, 2], id="S86 one has no node, none this zone"),
        pytest.param([by_node(1, "node1"), by_zone(2, "a")], [2], id="S86 one has no node: the zone counts"),
        pytest.param(
            [pod(1, for_nodes=("node2",), for_zones=("a",)), pod(2, for_nodes=("node3",), for_zones=("b",))],
            [1],
            id="S84 no node is this one: the zone counts",
        ),
        pytest.param([by_zone(1, "a"), pod(2)], [1, 2], id="S86 one has no hint"),
        pytest.param([by_zone(1, "b"), by_zone(2, "c")], [1, 2], id="S86 no hint for here"),
        pytest.param([by_zone(1, "a"), pod(2, ready=False)], [1], id="S86 one that is not ready has no say"),
        pytest.param([by_zone(1, "a"), ending(2)], [1], id="S86 nor has one that is ending"),
        pytest.param(
            [by_zone(1, "b"), by_zone(2, "c"), pod(3, ready=False, for_zones=("a",))], [1, 2], id="S86 as well"
        ),
        pytest.param([ending(1), ending(2)._replace(for_zones=("a",))], [1, 2], id="S87 the fallback knows no hints"),
    ],
)
def test_S84_S86_S87_hints_are_all_or_nothing(found: list[Endpoint], used: list[int]) -> None:
    """Where every ready endpoint is hinted and one for this node, else for its zone, only such are used; else all."""
    assert lasts(plan(*found), CLUSTER_IP, "inside") == used


def test_S86_a_node_without_a_zone_ignores_the_hints_for_zones() -> None:
    """It cannot know which are meant."""
    assert lasts(plan(by_zone(1, "a"), by_zone(2, "b"), here=Here("node1")), CLUSTER_IP, "inside") == [1, 2]


def test_S85_S87_hints_steer_the_cluster_set_everywhere_and_the_local_set_nowhere() -> None:
    """ClusterIP, node port and the short cut follow them; callers outside with policy Local get what is here."""
    found = [by_zone(1, "a"), by_zone(2, "b", node="node1")]
    for called in (CLUSTER_IP, *OUTER):
        assert served(plan(*found), called) == ([1], [1])
    assert served(plan(*found, external_policy="Local"), NODE_PORT) == ([1], [2])


# Affinity


def test_S73_S75_affinity_is_the_service_ports() -> None:
    """Each port of a service has its seconds, at all its addresses."""
    service = replace(WEB, affinity=600, ports=(HTTP, ServicePort("dns", "UDP", 53)))
    assert [one.affinity for one in plan_service(service, [a_slice(pod(1))], HERE)] == [600, 600]
    assert plan(pod(1)).affinity == 0


def test_C11_a_service_says_that_its_ports_share_their_clients() -> None:
    """All of them do, then."""
    ports = (HTTP, ServicePort("dns", "UDP", 53))
    for scope, shared in (("port", False), ("service", True)):
        service = replace(WEB, affinity=600, affinity_scope=scope, ports=ports)
        assert [one.shared for one in plan_service(service, [a_slice(pod(1))], HERE)] == [shared, shared]


# Who rests: serves, and takes no new flows


@pytest.mark.parametrize(
    ("found", "resting"),
    [
        pytest.param([pod(1), ending(2)], [2], id="S94 it ends while others are ready"),
        pytest.param([pod(1), ending(2, serving=False)], [], id="S94 it has stopped serving"),
        pytest.param([pod(1), pod(2, ready=False)], [], id="S22 it is not ready"),
        pytest.param([ending(1), ending(2)], [], id="S21 all that end are used"),
        pytest.param([by_zone(1, "a"), by_zone(2, "b")], [2], id="S90 a hint leads elsewhere"),
    ],
)
def test_S90_S94_who_serves_keeps_its_flows(found: list[Endpoint], resting: list[int]) -> None:
    """Hints, policies and termination decide on new flows; open ones stay until their endpoint stops serving."""
    assert [int(at.address.rpartition(".")[2]) for at in plan(*found).draining] == resting


def test_S37_an_address_is_a_cluster_IP_to_all_services_that_share_it() -> None:
    """Whichever of them is planned last, or alone: its other ports are refused."""
    own = Guard(1, {"10.96.0.10": VipKind.CLUSTER})
    other = Guard(2, {"10.96.0.10": VipKind.EXTERNAL})
    for wanted in ([own, other], [other, own]):
        change = guard_change(wanted, {1, 2}, (), (), Guards(), whole=True)
        assert change.vips == {"10.96.0.10": VipKind.CLUSTER}
    live = Guards(vips={"10.96.0.10": VipKind.CLUSTER})
    assert guard_change([other], {2}, (), ["10.96.0.10"], live, whole=False, others=["10.96.0.10"]).vips == {}
