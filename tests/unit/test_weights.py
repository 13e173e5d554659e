"""Weights and algorithms from the objects to the plan: who takes new flows, how many, and who drains."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import replace
from typing import Any

import pytest

from pydatapath.kernel.layout import ServiceFlag
from pydatapath.listing import _backends
from pydatapath.model import Algorithm, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from pydatapath.plan import Address, Here, PortPlan, plan_service, used_endpoints

HERE = Here("node1")
HTTP = ServicePort("http", "TCP", 80)
WEB = Service("shop", "web", cluster_ips=("10.96.0.10",), ports=(HTTP,))


def pod(last: int, weight: int = 1, node: str | None = "node1", **fields: Any) -> Endpoint:
    return Endpoint((f"10.244.1.{last}",), node_name=node, weight=weight, **fields)


def ending(last: int, weight: int = 1, *, serving: bool = True) -> Endpoint:
    return pod(last, weight, ready=False, terminating=True, serving=serving)


def a_slice(*found: Endpoint) -> EndpointSlice:
    return EndpointSlice("shop", "web-1", "web", "IPv4", ports=(EndpointPort("http", "TCP", 8080),), endpoints=found)


def plan(*found: Endpoint, here: Here = HERE, **fields: Any) -> PortPlan:
    (made,) = plan_service(replace(WEB, **fields), [a_slice(*found)], here)
    return made


def at(last: int) -> Address:
    return Address(f"10.244.1.{last}", 8080, "TCP")


@pytest.mark.parametrize(
    ("said", "by_load", "used"),
    [
        (None, "random", "random"),
        (None, "maglev", "maglev"),
        ("random", "maglev", "random"),
        ("maglev", "random", "maglev"),
    ],
)
def test_S26_the_service_says_how_its_flows_are_shared_and_else_the_node(
    said: Algorithm | None, by_load: Algorithm, used: Algorithm
) -> None:
    """An annotation counts before `load --algorithm`."""
    made = plan(pod(1), here=replace(HERE, algorithm=by_load), algorithm=said)
    assert made.algorithm == used
    assert len(made.slots["cluster"]) == {"random": 1, "maglev": 16_381}[used]


def test_C12_weights_are_slots() -> None:
    """Absent means 1; who has 0 has none, and is known to drain."""
    made = plan(pod(1), pod(2, 3), pod(3, 0), pod(4))
    assert made.cluster == (at(1), at(2), at(4))
    assert made.slots == {"cluster": (at(1), at(2), at(4), at(2), at(2))}
    assert (made.weights, made.draining) == ({at(2): 3, at(3): 0}, [at(3)])


@pytest.mark.parametrize(
    ("found", "cluster", "drains"),
    [
        pytest.param([pod(1, 0), pod(2)], [2], [1], id="ready"),
        pytest.param([pod(1, 0), ending(2)], [2], [1], id="S21 where all that are ready drain, those that end serve"),
        pytest.param([ending(1, 0), ending(2)], [2], [1], id="S21 ending"),
        pytest.param([ending(1, 0, serving=False), pod(2)], [2], [], id="S21 ending and not serving: it is gone"),
        pytest.param([pod(1, 0, ready=False), pod(2)], [2], [], id="S22 not ready: it is gone"),
        pytest.param([ending(1), pod(2)], [2], [1], id="S94 ending with a weight: it keeps its flows"),
        pytest.param([pod(1, 0), pod(2, 0)], [], [1, 2], id="S41 all drain"),
        pytest.param([pod(1, 0, for_zones=("a",)), pod(2, for_zones=("b",)), pod(3)], [2, 3], [1], id="S86"),
        pytest.param([pod(1, 0), pod(2, for_nodes=("node1",)), pod(3, for_nodes=("x",))], [2], [1, 3], id="S84 S90"),
    ],
)
def test_C12_a_backend_that_drains_is_in_no_set(found: list[Endpoint], cluster: list[int], drains: list[int]) -> None:
    """The others are chosen from as if it were not there; it is kept as long as it could serve."""
    made = plan(*found)
    assert made.cluster == tuple(at(last) for last in cluster)
    assert made.draining == [at(last) for last in drains]


def test_C12_S36_a_node_whose_own_all_drain_has_none() -> None:
    """With policy Local its callers are dropped while others serve elsewhere."""
    made = plan(pod(1, 0), pod(2, 1, "node2"), internal_policy="Local")
    assert (made.local, made.cluster, made.draining) == ((), (at(2),), [at(1)])
    assert made.flags(made.frontends[0]) == ServiceFlag.DROP_INSIDE | ServiceFlag.DROP_OUTSIDE


def test_C12_S23_the_local_set_is_weighted_too() -> None:
    """Each set has its own slots, of the same weights."""
    made = plan(pod(1, 2), pod(2), pod(3, 4, "node2"), internal_policy="Local")
    assert made.slots == {"local": (at(1), at(2), at(1))}


def test_C12_S17_of_an_address_in_two_slices_the_record_that_counts_has_the_weight() -> None:
    """The last that does not terminate, as for everything else."""
    slices = [a_slice(pod(1, 5)), replace(a_slice(pod(1, 0)), name="web-2")]
    assert [one.draining for one in plan_service(WEB, slices, HERE)] == [[at(1)]]
    assert [one.weights for one in plan_service(WEB, slices[::-1], HERE)] == [{at(1): 5}]


def test_C12_who_drains_is_shown_as_draining() -> None:
    """`backend list` has it beside the others, whether its pod is ready or on its way out."""
    slices = [a_slice(pod(1, 0), pod(2, 3), ending(3, 0), ending(4), pod(5, 0, ready=False))]
    assert [one.address for one, _ in used_endpoints(WEB, HTTP, slices, HERE)] == [at(n).address for n in (1, 2, 3)]
    shown = _backends(WEB, list(slices), HERE, Tally())
    assert [(one.address[-1], one.state) for one in shown] == [("1", "draining"), ("2", "active"), ("3", "draining")]
