"""Who else translates what pods send: rules of nftables, and of iptables where it is nftables' (N89).

Linux's masquerading comes before ours on the way out through the stack. What it has translated is the node's own to us:
it is not translated twice, but leaves by netfilter's ports, tracked by conntrack. Rules of the old iptables-legacy are
not seen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["Rule", "ruleset", "translating"]

Network: TypeAlias = IPv4Network | IPv6Network
_VERSIONS: Final = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_SECONDS: Final = 5  # for nft: a cluster's rules are many
_TARGETS: Final = ("MASQUERADE", "SNAT", None)  # None: an nft that does not tell iptables' targets (1.0.6)


class Rule(NamedTuple):
    """Where a rule stands that would translate pods' packets."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return (
            f"chain {self.chain} of the nftables table {self.family} {self.table} translates what pods send, too: what "
            "the stack forwards of that leaves by its ports, not by ours"
        )


def ruleset() -> Sequence[Mapping[str, Any]]:
    """The rules of the current namespace, as `nft -j list ruleset` tells them; none where it cannot, or not in time."""
    import json
    import shutil
    import subprocess

    nft = shutil.which("nft")
    if nft is None:
        return []
    try:
        done = subprocess.run([nft, "-j", "list", "ruleset"], capture_output=True, timeout=_SECONDS, check=True)
        found = json.loads(done.stdout)["nftables"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def translating(rules: Sequence[Mapping[str, Any]], pods: Sequence[Network]) -> list[Rule]:
    """The chains of which a rule may translate the source of what these networks send, each once.

    A condition that is not understood may be met by anybody's packet.
    """
    sets = {(one["family"], one["table"], one["name"]): one for one in _of(rules, "set")}
    hooked = {
        _place(one) for one in _of(rules, "chain") if (one.get("type"), one.get("hook")) == ("nat", "postrouting")
    }
    found: dict[Rule, None] = {}
    for one in _of(rules, "rule"):
        place, parts = _place(one), one.get("expr") or []
        # Of what iptables does and nft does not tell, a target is the last, and matters where packets leave
        known = any("masquerade" in part or "snat" in part for part in parts)
        if not known and not (parts and "xt" in parts[-1] and _target(parts[-1]) in _TARGETS and place in hooked):
            continue
        concerned = [pod for pod in pods if pod.version in _VERSIONS.get(place.family, ())]
        for part in parts:
            if "match" in part:
                concerned = [pod for pod in concerned if _may_meet(part["match"], pod, place, sets)]
        if concerned:
            found[place] = None
    return list(found)


def _of(rules: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (one[kind] for one in rules if kind in one)


def _place(one: Mapping[str, Any]) -> Rule:
    """Of a chain or a rule."""
    return Rule(one["family"], one["table"], one.get("chain") or one.get("name", ""))


def _target(part: Mapping[str, Any]) -> str | None:
    known = part["xt"]
    return known.get("name") if isinstance(known, dict) else None


def _may_meet(
    match: Mapping[str, Any], pod: Network, place: Rule, sets: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> bool:
    """Whether a packet of a pod network may be what a rule asks for."""
    left, right = match.get("left"), match.get("right")
    if left == {"meta": {"key": "nfproto"}}:
        return (right == f"ipv{pod.version}") == (match.get("op") != "!=")
    field = left.get("payload") if isinstance(left, dict) else None
    if not isinstance(field, dict) or field.get("field") != "saddr" or field.get("protocol") not in ("ip", "ip6"):
        return True
    if field["protocol"] != ("ip" if pod.version == 4 else "ip6"):
        return False
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": sets.get((place.family, place.table, right[1:]), {}).get("elem", [])}
    networks = _networks(right)
    if networks is None:
        return True
    if match.get("op") == "!=":
        return not any(one.version == pod.version and pod.subnet_of(one) for one in networks)  # type: ignore[arg-type]  # of one version
    return any(one.overlaps(pod) for one in networks)


def _networks(value: Any) -> list[Network] | None:
    """What a rule compares an address with; None: it is not understood."""
    try:
        if isinstance(value, str):
            return [ip_network(value)]
        if "prefix" in value:
            return [ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}")]
        if "range" in value:
            first, last = map(ip_address, value["range"])
            return [*summarize_address_range(first, last)]
        if "elem" in value:  # of a set, with a timeout or a comment
            return _networks(value["elem"]["val"])
        parts = [_networks(one) for one in value["set"]]
    except (KeyError, TypeError, ValueError):
        return None
    return None if None in parts else [one for part in parts for one in part or ()]
