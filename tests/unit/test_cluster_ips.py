"""ClusterIPs that a service cannot have, and services without one."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydatapath import applying, schema
from pydatapath.cluster_ips import Places, unserved
from pydatapath.errors import ManifestError, Refused
from pydatapath.model import Service
from pydatapath.records import Records

PODS = ("10.244.1.0/24", "fd00:10:244:1::/64")
PLACES = Places(["192.0.2.11", "2001:db8::11"], PODS)


def service(**spec: Any) -> Service:
    """Of a manifest."""
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}
    found = schema.parse({**document, "spec": {"ports": [{"port": 80}], **spec}}, "test")
    assert isinstance(found, Service)
    return found


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        (["10.96.0.1", "fd00:10:96::1"], ""),
        (["10.244.2.0"], ""),
        (["192.0.2.11"], "192.0.2.11 is an address of this node"),
        (["10.96.0.1", "2001:db8::11"], "2001:db8::11 is an address of this node"),
        (["10.244.1.255"], "10.244.1.255 is in the pod network 10.244.1.0/24"),
        (["fd00:10:244:1::7"], "fd00:10:244:1::7 is in the pod network fd00:10:244:1::/64"),
    ],
)
def test_a_ClusterIP_is_nobody_elses(addresses: list[str], said: str) -> None:
    """Neither the node's nor a pod's; the object is named, and what to do."""
    if not said:
        PLACES.check(service(clusterIPs=addresses))
        return
    with pytest.raises(ManifestError, match=f"^Service default/web: the ClusterIP {said}$") as caught:
        PLACES.check(service(clusterIPs=addresses))
    assert "--service-cidr" in caught.value.hint
    assert caught.value.key == ("Service", "default", "web")


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address), st.integers(0, 128))
def test_networks_are_told_as_by_the_module_ipaddress(address: IPv4Address | IPv6Address, length: int) -> None:
    """Of whatever length, in both families."""
    other = ip_network((type(address)(int(address) ^ 1), min(length, address.max_prefixlen)), strict=False)
    problem = Places((), [str(other)])._problem(str(address))
    assert bool(problem) == (address in other)


def test_what_is_no_ClusterIP_may_be_the_nodes() -> None:
    """S57: external IPs and a balancer's often are."""
    PLACES.check(service(clusterIP="10.96.0.1", externalIPs=["192.0.2.11", "10.244.1.9"]))


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """As `load` leaves them."""
    with Records(tmp_path / "state.db", create=True) as made:
        made.put({"node_name": "here", "node_ips": ["192.0.2.11"], "egress_addresses": ["192.0.2.12"]})
        made.put({"node_port_addresses": ["192.0.2.13"], "pod_networks": list(PODS)})
        yield made


@pytest.mark.parametrize("address", ["192.0.2.11", "192.0.2.12", "192.0.2.13", "10.244.1.9"])
def test_what_load_found_is_looked_at(records: Records, address: str) -> None:
    """Its addresses, those behind which pods leave, those of node ports; and the pods'."""
    with pytest.raises(Refused, match=f"the ClusterIP {address} is"):
        applying.edit(records, [service(clusterIP=address)])


def test_what_is_there_already_stays(records: Records) -> None:
    """Of before the node had that address: applying it again is no change, and no error; changing it is."""
    records.put({"node_ips": []})
    applying.edit(records, [service(clusterIP="192.0.2.11")])
    records.put({"node_ips": ["192.0.2.11"]})
    assert [one.action for one in applying.edit(records, [service(clusterIP="192.0.2.11")]).outcomes] == ["unchanged"]
    with pytest.raises(Refused):
        applying.edit(records, [service(clusterIP="192.0.2.11", ports=[{"port": 81}])])


@pytest.mark.parametrize(
    ("spec", "is_told"),
    [
        ({}, True),
        ({"clusterIP": ""}, True),
        ({"type": "NodePort"}, True),
        ({"clusterIP": "10.96.0.1"}, False),
        ({"clusterIPs": ["fd00:10:96::1"]}, False),
        ({"clusterIP": "None"}, False),
        ({"clusterIPs": ["None"]}, False),
        ({"type": "ExternalName", "externalName": "web.example"}, False),
    ],
)
def test_S1_who_has_no_ClusterIP_is_not_served(spec: dict[str, Any], is_told: bool) -> None:
    """But for headless services and other names, which want none."""
    said = unserved(service(**spec))
    assert said.startswith("Service default/web: it has no spec.clusterIP, and is not served") if is_told else not said
