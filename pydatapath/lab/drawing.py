"""A lab as a tree of lines: who has which address."""

from __future__ import annotations

from pydatapath.lab.cluster import Lab
from pydatapath.lab.hosts import Host
from pydatapath.lab.topology import UPLINK_NETWORK

__all__ = ["tree"]


def tree(lab: Lab) -> list[str]:
    """The switch, below it the nodes with their pods, and the outside."""
    lines = [f"{lab.name}-switch   bridge uplink, {UPLINK_NETWORK}"]
    # Each entry: the line, and the lines of what hangs below it.
    branches = [
        (
            f"{node.netns}   {node.uplink} {node.address}, {node.bridge} {node.gateway}/24",
            [f"{pod.netns}   eth0 {pod.address}{_containers(pod)}" for pod in lab.pods_of(node)],
        )
        for node in lab.nodes
    ]
    branches.append((f"{lab.outside.netns}   eth0 {lab.outside.address}", []))
    for number, (line, leaves) in enumerate(branches, start=1):
        last = number == len(branches)
        lines.append(("└── " if last else "├── ") + line)
        for leaf_number, leaf in enumerate(leaves, start=1):
            lines.append(("    " if last else "│   ") + ("└── " if leaf_number == len(leaves) else "├── ") + leaf)
    return lines


def _containers(host: Host) -> str:
    return f", containers {' and '.join(host.containers)}" if host.containers else ""
