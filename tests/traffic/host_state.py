"""All that a datapath could leave in a lab, written down the same way each time: two such dumps can be compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydatapath.instance import RUN
from pydatapath.kernel.bpffs import BPFFS
from pydatapath.kernel.netns import RUN_NETNS
from pydatapath.lab import Host, Lab

__all__ = ["dump", "filters", "surviving", "tc"]

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


def dump(lab: Lab) -> dict[str, str]:
    """Names, pins, records; and of each namespace links, addresses, routes, neighbours, qdiscs, filters, sysctls."""
    found = {str(root): "\n".join(sorted(map(str, root.rglob("*")))) for root in (RUN_NETNS, RUN, BPFFS)}
    for host in lab.hosts:
        for what in ("link", "address", "rule", "route show table all"):
            found[f"{host.name} {what}"] = _told(host.exec(["ip", "-j", "-d", *what.split()], check=True).stdout)
        neighbours = json.loads(host.exec(["ip", "-j", "neigh"], check=True).stdout)
        found[f"{host.name} neighbours"] = _told(json.dumps([one for one in neighbours if "PERMANENT" in one["state"]]))
        found[f"{host.name} qdiscs"] = _told(tc(host, "-j", "qdisc", "show"))
        for link in json.loads(host.exec(["ip", "-j", "link"], check=True).stdout):
            for hook in HOOKS:
                name = link["ifname"]
                found[f"{host.name} {name} {hook}"] = _told(tc(host, "-j", "filter", "show", "dev", name, hook) or "[]")
        found[f"{host.name} sysctls"] = _sysctls(host)
    return found


def _told(text: str) -> str:
    """JSON, sorted, without what changes by itself."""
    return json.dumps(_still(json.loads(text)), sort_keys=True, indent=1)


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _still(one) for key, one in value.items() if not key.endswith(RESTLESS_KEYS)}
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


def surviving(kind: str, ids: Iterable[int]) -> set[int]:
    """Which of these programs or maps (`kind` as bpftool calls it: prog, map) are in the kernel."""
    listed = json.loads(subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, check=True).stdout)
    return {one["id"] for one in listed} & set(ids)
