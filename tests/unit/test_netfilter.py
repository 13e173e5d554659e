"""Rules of others that would translate what pods send (N89): `nft -j list ruleset` as it is told, read."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pydatapath.kernel import netfilter
from pydatapath.kernel.netfilter import Rule, ruleset, translating

PODS = [ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")]
POSTROUTING = {"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
MASQUERADE: dict[str, Any] = {"masquerade": None}
SNAT = {"snat": {"family": "ip", "addr": "192.0.2.1"}}


def source(right: object, op: str = "==", protocol: str = "ip") -> dict[str, Any]:
    """A condition on where a packet is from."""
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": "saddr"}}, "right": right}}


def prefix(network: str) -> dict[str, Any]:
    address, _, length = network.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def found(*parts: dict[str, Any], family: str = "inet", chain: str = "out", more: Any = ()) -> list[str]:
    """Who is said to translate, of one rule in a chain by which packets leave."""
    place = {"family": family, "table": "t"}
    rules = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": family, "name": "t", "handle": 1}},
        {"chain": {**place, "name": "out", "handle": 1, **POSTROUTING}},
        {"chain": {**place, "name": "mine", "handle": 2}},
        *more,
        {"rule": {**place, "chain": chain, "handle": 3, "expr": list(parts)}},
    ]
    return [f"{one.family} {one.table} {one.chain}" for one in translating(rules, PODS)]


PORT = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}
OUT = {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "eth0"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
SIX = {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([MASQUERADE], id="everybody"),
        pytest.param([OUT, COUNTER, {"masquerade": {"flags": "random"}}], id="by an interface"),
        pytest.param([source(prefix("10.244.0.0/16")), SNAT], id="the cluster"),
        pytest.param([source("10.244.1.7"), PORT, SNAT], id="one pod"),
        pytest.param([source(prefix("192.0.2.0/24"), "!="), MASQUERADE], id="all but others"),
        pytest.param([source(prefix("10.244.1.0/25"), "!="), MASQUERADE], id="all but half of the pods"),
        pytest.param([source({"range": ["10.244.1.9", "10.245.0.0"]}), MASQUERADE], id="a range"),
        pytest.param([source({"set": ["192.0.2.1", prefix("10.244.1.8/29")]}), MASQUERADE], id="a set"),
        pytest.param([source("@pods"), MASQUERADE], id="a named set"),
        pytest.param([source(prefix("fd00:10:244::/48"), protocol="ip6"), MASQUERADE], id="IPv6"),
        pytest.param([SIX, MASQUERADE], id="all of IPv6"),
        pytest.param([source({"&": ["10.0.0.0", "255.0.0.0"]}), MASQUERADE], id="what is not understood"),
        pytest.param([{"xt": {"type": "target", "name": "MASQUERADE"}}], id="iptables' target"),
        pytest.param([COUNTER, {"xt": None}], id="iptables' target that nft does not tell"),
    ],
)
def test_N89_rules_that_translate_pods_are_found(parts: list[dict[str, Any]]) -> None:
    """By the networks that they name; a condition that is not understood may be met by a pod."""
    named = {"set": {"family": "inet", "table": "t", "name": "pods", "elem": [prefix("10.244.1.0/24")]}}
    assert found(*parts, more=[named]) == ["inet t out"]


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        pytest.param("inet", [source(prefix("172.17.0.0/16")), MASQUERADE], id="another bridge's"),
        pytest.param(
            "inet", [source(prefix("10.244.0.0/16"), "!="), source(prefix("2001:db8::/32"), protocol="ip6"), SNAT]
        ),
        pytest.param("ip", [source(prefix("10.244.0.0/16"), "!="), MASQUERADE], id="all but the cluster"),
        pytest.param("ip6", [source(prefix("2001:db8::/32"), protocol="ip6"), MASQUERADE], id="IPv6 of others"),
        pytest.param("inet", [source("@nobody"), MASQUERADE], id="an empty set"),
        pytest.param("bridge", [MASQUERADE], id="no family of ours"),
        pytest.param("inet", [PORT, {"dnat": {"addr": "10.244.1.7"}}], id="destinations"),
        pytest.param("inet", [{"jump": {"target": "mine"}}], id="a jump"),
        pytest.param("inet", [{"xt": {"type": "target", "name": "MARK"}}], id="iptables' mark"),
        pytest.param("inet", [], id="nothing"),
    ],
)
def test_N89_others_are_not_told(family: str, parts: list[dict[str, Any]]) -> None:
    """Docker's own bridge, say."""
    assert found(*parts, family=family) == []


def test_N89_each_chain_is_told_once() -> None:
    """With its table; also a chain that is only jumped to."""
    assert found(MASQUERADE, chain="mine") == ["inet t mine"]
    assert found({"xt": None}, chain="mine") == []
    rules = [{"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING", "expr": [MASQUERADE]}}] * 2
    (one,) = translating(rules, PODS)
    assert one == Rule("ip", "nat", "POSTROUTING")
    assert str(one).startswith("chain POSTROUTING of the nftables table ip nat translates what pods send, too")
    assert translating(rules, []) == []


@pytest.mark.parametrize(
    ("script", "many"),
    [
        ("echo '{}'", 0),
        ("echo '{\"nftables\": 7}'", 0),
        ("echo not JSON", 0),
        ("exit 1", 0),
        ("exec sleep 30", 0),
        (f"echo '{json.dumps({'nftables': [{'metainfo': {}}]})}'", 1),
        (None, 0),
    ],
    ids=["no rules", "no list", "no JSON", "refused", "too slow", "rules", "no nft"],
)
def test_N89_where_nft_says_nothing_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, many: int
) -> None:
    """An nft of an older or newer make, one without rights, one that takes too long, or none."""
    if script:
        program = tmp_path / "nft"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}" if script else str(tmp_path))
    monkeypatch.setattr(netfilter, "_SECONDS", 0.5 if script and "sleep" in script else 60)
    assert len(ruleset()) == many
