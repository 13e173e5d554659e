"""Other nodes, as Node objects name them: their pods are the cluster's, and all see our pods as who they are."""

from __future__ import annotations

import pytest
from frames import DROP, PASS, REDIRECT, addresses, sctp, tcp, udp
from packetbed import Bed, Serving
from places import V4, V6, Places, at

from pydatapath.errors import KernelError
from pydatapath.kernel import table_writes
from pydatapath.kernel.layout import Family, Hook
from pydatapath.model import Node

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKE = pytest.mark.parametrize("make", [tcp, udp, sctp], ids=["TCP", "UDP", "SCTP"])
NETWORKS = {V4: "198.51.100.0/24", V6: "2001:db8:51::/64"}  # FAR is in it
BESIDE = {V4: "198.51.100.8/32", V6: "2001:db8:51::8/128"}


@FAMILIES
@MAKE
def test_N85_a_pod_and_a_node_see_each_other_as_they_are(masquerading: Bed, where: Places, make):
    """As long as a Node object names that address: before and after it is outside."""
    there = tcp(where.CLIENT, 4001, where.FAR, 80) if make is tcp else make(where.CLIENT, 4001, where.FAR, 80)
    masquerading.join(Node("other", internal_ips=(where.FAR,)))
    shown = masquerading.run(Hook.FROM_POD, there)
    assert (shown.verdict, addresses(shown)[0]) == (PASS, where.CLIENT)
    by_uplink = masquerading.run(Hook.TO_UPLINK, there)
    assert (by_uplink.verdict, addresses(by_uplink)[0]) == (PASS, where.CLIENT)
    assert masquerading.entries() == masquerading.entries("half_open") == {}
    masquerading.join()
    assert addresses(masquerading.run(Hook.FROM_POD, there))[0] == where.UPLINK


@FAMILIES
def test_N85_pods_of_a_node_are_the_clusters(masquerading: Bed, where: Places):
    """Without --cluster-cidr, too; an address beside the network is outside."""
    masquerading.join(Node("other", pod_cidrs=(NETWORKS[where],)))
    assert masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 4001, where.FAR, 53)).verdict == PASS
    masquerading.join(Node("other", pod_cidrs=(BESIDE[where],)))
    assert addresses(masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 4001, where.FAR, 53)))[0] == where.UPLINK


@FAMILIES
def test_a_known_flow_stays_as_it_is(masquerading: Bed, where: Places):
    """What was masqueraded before its node was known goes on so, in both directions."""
    call = tcp(where.CLIENT, 4001, where.FAR, 80)
    there = masquerading.run(Hook.FROM_POD, call)
    masquerading.join(Node("other", internal_ips=(where.FAR,)))
    back = masquerading.run(Hook.FROM_UPLINK, tcp(where.FAR, 80, where.UPLINK, 4001, "SA"))
    assert (back.verdict, addresses(back)[2:]) == (REDIRECT, (where.CLIENT, 4001))
    masquerading.confirm(call)
    on = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 4001, where.FAR, 80, "A"))
    assert addresses(on) == addresses(there)
    assert not on.walked


@FAMILIES
def test_S28_a_backend_that_is_a_nodes_own_sees_the_pod(masquerading: Bed, where: Places):
    """Such as the API server: the service's address is translated, the pod's is not."""
    masquerading.serve({where.called("443/TCP"): [at(where.FAR, 6443)]})
    masquerading.join(Node("other", internal_ips=(where.FAR,)))
    found = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 4001, where.VIP, 443))
    assert addresses(found) == (where.CLIENT, 4001, where.FAR, 6443)


@FAMILIES
@pytest.mark.parametrize(
    ("node", "inside"),
    [
        (Node("other", pod_cidrs=("198.51.100.0/24", "2001:db8:51::/64")), True),
        (Node("other", internal_ips=(V4.FAR, V6.FAR)), False),
        (
            Node("other", ("198.51.100.0/24", "2001:db8:51::/64"), external_ips=(V4.FAR, V6.FAR)),
            False,
        ),
        (Node("other"), False),
    ],
    ids=["its pods", "itself", "itself, in its pods' network", "one without addresses"],
)
def test_S52_S54_who_calls_from_another_node(bed: Bed, where: Places, node: Node, inside: bool):
    """A pod there is inside, and has the Cluster set; the node itself is not, as for kube-proxy."""
    here, elsewhere = at(where.BACKEND, 8080), at(where.REMOTE, 8080)
    bed.serve({where.called("80/TCP"): Serving([elsewhere], [here], outside="local")})
    bed.join(node)
    found = bed.run(Hook.FROM_UPLINK, tcp(where.FAR, 4001, where.VIP, 80))
    assert addresses(found)[2] == (where.REMOTE if inside else where.BACKEND)


@FAMILIES
def test_N84_what_cannot_be_read_leaves_for_a_node_and_for_nobody_else(masquerading: Bed, where: Places):
    """At the uplink."""
    strange = tcp(where.CLIENT, 1, where.FAR, 1)
    field = "proto" if where is V4 else "nh"
    strange.payload.setfieldval(field, 253)
    assert masquerading.run(Hook.TO_UPLINK, strange).verdict == DROP
    masquerading.join(Node("other", internal_ips=(where.FAR,)))
    assert masquerading.run(Hook.TO_UPLINK, strange).verdict == PASS


def test_too_many_networks_are_refused_before_anything_is_written(bed: Bed):
    """By the map that would be full; where there cannot be too many, nobody counts."""
    six = {Family.IPV4: 64, Family.IPV6: 65}
    with pytest.raises(KernelError, match=r"^the map 'networks6' is full: it holds 64 entries, and .* 65 podCIDRs"):
        table_writes.check_members(bed.maps, 129, lambda: six)
    table_writes.check_members(bed.maps, 129, lambda: {Family.IPV4: 64})
    table_writes.check_members(bed.maps, 64, lambda: pytest.fail("they were counted"))
