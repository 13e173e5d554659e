"""Any number of services, as Kubernetes' objects and in both of kube-proxy's layouts: the same, in the same order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from bench.kube_proxy import restore_input
from bench.kube_proxy_nft import nft_input, one_changed
from bench.many import SERVICE_NETWORK, Called, Many, restore_parts, resync
from bench.programmers import ipvs_changes
from bench.programming import ASKED, FIRST_VIP, LAST_VIP, changes, wanted
from pydatapath import EndpointSlice, Service, schema

CLUSTER = "10.244.0.0/16"
SERVICES, ENDPOINTS = 10, 2


def many(*, services: int = SERVICES, moved: bool = False) -> Many:
    """The first and the last are called."""
    first, last = (
        Called(name, vip, [backend], ports=[ASKED])
        for name, vip, backend in (("first", FIRST_VIP, "10.244.1.12"), ("last", LAST_VIP, "10.244.1.13"))
    )
    return Many(services, ENDPOINTS, [last], [first], moved)


def lines(rules: str, chain: str) -> list[str]:
    return [line for line in rules.splitlines() if line.startswith(f"-A {chain}")]


def test_objects_and_kube_proxys_services_are_the_same() -> None:
    """By virtual IP, port and backends, as our own parser understands the objects."""
    made = many()
    parsed = [schema.parse(one, "test") for one in made.manifests()]
    services = [one for one in parsed if isinstance(one, Service)]
    slices = [one for one in parsed if isinstance(one, EndpointSlice)]
    ports = made.service_ports()
    assert len(services) == len(slices) == len(ports) == SERVICES
    assert len({port.cluster_ip for port in ports}) == len({port.name for port in ports}) == SERVICES
    for manifest, port in zip(made.manifests()[::2], ports, strict=True):
        assert manifest["spec"]["clusterIP"] == port.cluster_ip
        assert manifest["spec"]["ports"][0]["port"] == port.port
    for manifest, port in zip(made.manifests()[1::2], ports, strict=True):
        target = manifest["ports"][0]["port"]
        assert tuple((one["addresses"][0], target) for one in manifest["endpoints"]) == port.backends


def test_what_is_called_is_first_and_last() -> None:
    """In iptables' layout the last one is what a packet reaches after all others."""
    ports = many().service_ports()
    assert (ports[0].cluster_ip, ports[-1].cluster_ip) == (FIRST_VIP, LAST_VIP)
    dispatched = lines(restore_input(ports, CLUSTER), "KUBE-SERVICES")
    assert f"-d {FIRST_VIP}/32" in dispatched[0]
    assert f"-d {LAST_VIP}/32" in dispatched[-2]
    assert "addrtype" in dispatched[-1]


def test_moved_services_have_other_pods_and_nothing_else_is_new() -> None:
    before, after = many().service_ports(), many(moved=True).service_ports()
    for old, new in zip(before[1:-1], after[1:-1], strict=True):
        assert replace(new, backends=()) == replace(old, backends=())
        assert not {*old.backends} & {*new.backends}
    pods = [backend for port in (*before[1:-1], *after[1:-1]) for backend in port.backends]
    assert max(Counter(pods).values()) == 1


def test_iptables_layout_has_three_rules_and_three_for_each_endpoint_of_a_service() -> None:
    """As recorded: a call, a masquerade and, for each endpoint, a choice, a masquerade and a translation."""
    rules = restore_input(many().service_ports(), CLUSTER)
    endpoints = (SERVICES - 2) * ENDPOINTS + 2
    assert len(lines(rules, "KUBE-SERVICES")) == SERVICES + 1
    assert len(lines(rules, "KUBE-SVC-")) == SERVICES + endpoints
    assert len(lines(rules, "KUBE-SEP-")) == 2 * endpoints


def test_nftables_layout_has_a_chain_and_an_element_for_each_service() -> None:
    table = nft_input(many().service_ports(), CLUSTER, SERVICE_NETWORK, ["192.168.50.11"])
    assert table.count("numgen random mod") == SERVICES
    assert table.count(": goto service-") == SERVICES


def test_fifty_thousand_services_have_addresses_of_their_own_in_the_service_network() -> None:
    """Which is 10.96.0.0/12."""
    ports = many(services=50_000).service_ports()
    assert len({port.cluster_ip for port in ports}) == 50_000
    octets = [tuple(map(int, port.cluster_ip.split("."))) for port in ports]
    assert all(one[0] == 10 and 96 <= one[1] < 112 for one in octets)


def test_a_later_full_sync_does_not_add_the_jumps_again() -> None:
    """Else each one would make every packet pass the services once more."""
    rules = restore_input(many().service_ports(), CLUSTER)
    again = resync(rules)
    assert again.startswith("*nat\n")
    assert again.endswith("COMMIT\n")
    for chain in ("PREROUTING", "OUTPUT", "POSTROUTING", "INPUT", "FORWARD"):
        assert not lines(again, f"{chain} ")
    for chain in ("KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"):
        assert lines(again, chain) == lines(rules, chain)


def test_rules_laid_in_parts_are_the_same_rules_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each chain, also of KUBE-SERVICES, whose last one stays the last; a chain is emptied by no later part."""
    monkeypatch.setattr("bench.many.PART", 4)
    ports = many().service_ports()
    parts, whole = [*restore_parts(ports, CLUSTER)], restore_input(ports, CLUSTER)
    assert len(parts) == 4
    together = "".join(parts)
    for chain in {line.split()[1] for line in whole.splitlines() if line.startswith("-A ")}:
        assert lines(together, f"{chain} ") == lines(whole, f"{chain} ")
    declared = Counter(line for line in together.splitlines() if line.startswith(":"))
    assert declared == Counter(line for line in whole.splitlines() if line.startswith(":"))


def test_a_partial_sync_has_all_calls_and_the_chains_of_the_changed_service_alone() -> None:
    rules = restore_input(many().service_ports(), CLUSTER)
    partial = resync(rules, ["default/last:ask"])
    assert lines(partial, "KUBE-SERVICES") == lines(rules, "KUBE-SERVICES")
    assert lines(partial, "KUBE-SVC-") == [line for line in lines(rules, "KUBE-SVC-") if "default/last:ask" in line]
    assert lines(partial, "KUBE-SEP-") == [line for line in lines(rules, "KUBE-SEP-") if "default/last:ask" in line]
    own = {line.split()[1] for line in (*lines(partial, "KUBE-SVC-"), *lines(partial, "KUBE-SEP-"))}
    declared = {line[1:].split()[0] for line in partial.splitlines() if line.startswith((":KUBE-SVC-", ":KUBE-SEP-"))}
    assert declared == own
    assert len(own) == 2


def test_the_steps_of_programming_say_which_backend_must_answer() -> None:
    """One change is the last service's; where all change, the first and the last have others than before."""
    one, two = "10.244.1.12", "10.244.1.13"
    first, change, every = changes(SERVICES, ENDPOINTS, [one, two])
    assert wanted(first) == {FIRST_VIP: one, LAST_VIP: one}
    assert wanted(change) == {LAST_VIP: two}
    assert wanted(every) == {FIRST_VIP: two, LAST_VIP: one}
    before, after = first.to.service_ports(), change.to.service_ports()
    assert [old.name for old, new in zip(before, after, strict=True) if old != new] == ["default/last:ask"]
    assert "".join(map(one_changed, change.one.service_ports())).count("flush chain") == 1
    assert all(old.backends != new.backends for old, new in zip(after, every.to.service_ports(), strict=True))


def test_ipvs_takes_new_backends_before_it_gives_up_old_ones() -> None:
    """And nothing for a service that stays as it is."""
    first, change, _ = changes(SERVICES, ENDPOINTS, ["10.244.1.12", "10.244.1.13"])
    assert ipvs_changes(first.to.service_ports(), change.to.service_ports()) == (
        f"-a -u {LAST_VIP}:53 -r 10.244.1.13:9053 -m -w 1\n-d -u {LAST_VIP}:53 -r 10.244.1.12:9053\n"
    )


@pytest.mark.parametrize("count", [2, 7, 1000])
def test_a_ring_of_flows_goes_round_them_all(count: int) -> None:
    """Each packet becomes the next flow's; both directions are there, and each entry is another one."""
    from bench.flows import _entries, _reverse, ring
    from pydatapath.kernel.layout import LAYOUTS, Family

    layout = LAYOUTS[Family.IPV4]
    keys = ring(count, "10.244.1.12")
    entries = [*_entries(keys, 1)]
    table = dict(entries)
    assert len(table) == len(entries) == 2 * count
    key, seen = keys[0], set()
    while key not in seen:
        seen.add(key)
        to = layout.flow.struct.unpack(table[key])[0]
        back = layout.flow.struct.unpack(table[_reverse(to)])[0]
        assert back == _reverse(key)
        key = to
    assert seen == {*keys}
