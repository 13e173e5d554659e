"""A lab as a tree of lines: who has which address."""

from __future__ import annotations

from pydatapath.lab.cluster import Lab
from pydatapath.lab.hosts import Host, Node, Pod
from pydatapath.lab.topology import UPLINK_NETWORK, UPLINK_NETWORK6

__all__ = ["tree"]


def tree(lab: Lab) -> list[str]:
    """The switch, below it the nodes with their pods, and the outside."""
    both = bool(lab.dual_stack)
    lines = [f"{lab.name}-switch   bridge uplink, {_pair(UPLINK_NETWORK, UPLINK_NETWORK6, both)}"]
    # Each entry: the line, and the lines of what hangs below it.
    branches = [(_node(node, both), [_pod(pod, both) for pod in lab.pods_of(node)]) for node in lab.nodes]
    branches.append((f"{lab.outside.netns}   eth0 {_addresses(lab.outside, both)}", []))
    for number, (line, leaves) in enumerate(branches, start=1):
        last = number == len(branches)
        lines.append(("└── " if last else "├── ") + line)
        for leaf_number, leaf in enumerate(leaves, start=1):
            lines.append(("    " if last else "│   ") + ("└── " if leaf_number == len(leaves) else "├── ") + leaf)
    return lines


def _node(node: Node, both: bool) -> str:
    gateways = _pair(f"{node.gateway}/24", f"{node.gateway6}/64", both)
    return f"{node.netns}   {node.uplink} {_addresses(node, both)}, {node.bridge} {gateways}"


def _pod(pod: Pod, both: bool) -> str:
    return f"{pod.netns}   eth0 {_addresses(pod, both)}{_containers(pod)}"


def _addresses(host: Host, both: bool) -> str:
    return _pair(host.address, host.address6, both)


def _pair(ipv4: str, ipv6: str, both: bool) -> str:
    return f"{ipv4} {ipv6}" if both else ipv4


def _containers(host: Host) -> str:
    return f", containers {' and '.join(host.containers)}" if host.containers else ""
