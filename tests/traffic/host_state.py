"""All that a datapath could leave in a lab, written down the same way each time: two such dumps can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydatapath.instance import RUN
from pydatapath.kernel.bpffs import BPFFS
from pydatapath.kernel.netns import RUN_NETNS
from pydatapath.lab import Host, Lab

__all__ = ["dump", "filters", "tc"]

HOOKS = ("ingress", "egress")
# What these say changes by itself
RESTLESS = ("nf_conntrack_count", "random/", "ns_last_pid")
RESTLESS_KEYS = ("_timer", "stats", "installed", "last_used")


def tc(host: Host, *arguments: str) -> str:
    """What `tc ARGUMENTS` prints in a namespace."""
    return host.exec(["tc", *arguments], check=True).stdout


def filters(host: Host, interface: str, hook: str) -> list[dict[str, Any]]:
    """The tc filters at a hook with their counters, without the heads and hash tables that the kernel lists too."""
    found = json.loads(tc(host, "-s", "-j", "filter", "show", "dev", interface, hook) or "[]")
    return [one for one in found if "ht_divisor" not in one.get("options", {"ht_divisor": 0})]


def dump(lab: Lab, hosts: Iterable[Host] = ()) -> dict[str, str]:
    """Names, pins, records; and of each namespace links, addresses, routes, neighbours, qdiscs, filters, sysctls.

    `hosts`: only these of the lab, for quick looks.
    """
    found = {str(root): "\n".join(sorted(map(str, root.rglob("*")))) for root in (RUN_NETNS, RUN, BPFFS)}
    for host in hosts or lab.hosts:
        told = _batch(host, ["ip", "-j", "-d"], ["link", "address", "rule", "route show table all", "neigh"])
        told["neigh"] = [one for one in told["neigh"] if "PERMANENT" in one["state"]]
        names = [one["ifname"] for one in told["link"]]
        asked = [f"filter show dev {name} {hook}" for name in names for hook in HOOKS]
        told |= _batch(host, ["tc", "-j"], ["qdisc show", *asked])
        found |= {f"{host.name}: {what}": json.dumps(_still(one), indent=1) for what, one in told.items()}
        found[f"{host.name}: sysctls"] = _sysctls(host)
    return found


def _batch(host: Host, command: list[str], lines: list[str]) -> dict[str, Any]:
    """What a command answers to each line: JSON, one text after the other."""
    text = host.exec([*command, "-batch", "-"], stdin="\n".join(lines), check=True).stdout.strip()
    answers = []
    while text:
        answer, end = json.JSONDecoder().raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return dict(zip(lines, answers, strict=True))


def _still(value: Any) -> Any:
    """Sorted, without what changes by itself."""
    if isinstance(value, dict):
        return {key: _still(one) for key, one in sorted(value.items()) if not key.endswith(RESTLESS_KEYS)}
    if isinstance(value, list):
        return sorted((_still(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True))
    return value


def _sysctls(host: Host) -> str:
    """All sysctls of the network that can be read."""
    lines = []
    with host.entered():
        for path in sorted(Path("/proc/sys/net").rglob("*")):
            if path.is_file() and not any(word in str(path) for word in RESTLESS):
                try:
                    lines.append(f"{path}: {path.read_text().strip()}")
                except OSError:
                    lines.append(f"{path}: cannot be read")
    return "\n".join(lines)
