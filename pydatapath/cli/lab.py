"""`pydatapath lab`: clusters made of network namespaces, to try the datapath without any other machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydatapath.lab import Host, Lab

__all__ = ["lab"]

_name = click.option("--name", default="lab", show_default=True, metavar="NAME", help="Which lab; several can be up.")


@click.group()
def lab() -> None:
    r"""A cluster on this machine, made of network namespaces.

    A switch, nodes with a bridge each and routes between them, pods with eth0 (node1-pod1 has two containers, app
    and sidecar), and a client outside. Each is a namespace: `ip netns list` shows them.

    \b
    Examples:
      pydatapath lab up --nodes 3
      pydatapath lab show
      pydatapath lab exec lab-node1-pod1 -- ping -c 3 10.244.2.11
      pydatapath lab exec lab-node1-pod1/sidecar -- hostname
      pydatapath lab down
    """


@lab.command()
@click.option("--nodes", default=2, show_default=True, metavar="N", help="How many nodes, 1 to 89.")
@click.option("--pods", default=2, show_default=True, metavar="N", help="How many pods on each node, 0 to 244.")
@_name
def up(nodes: int, pods: int, name: str) -> None:
    r"""Bring a lab up.

    \b
    Examples:
      pydatapath lab up
      pydatapath lab up --nodes 3 --pods 4 --name big
    """
    from pydatapath.lab import Lab, LabSpec

    start = time.monotonic()
    made = Lab.up(LabSpec(name, nodes, pods))
    seconds = time.monotonic() - start
    click.echo(f"lab {name}: {_count(nodes, 'node')} with {_count(pods, 'pod')} each, up in {seconds:.2f} s")
    option = "" if name == "lab" else f" --name {name}"
    click.echo(f"  pydatapath lab show{option}")
    if made.pods:
        pair = f"{made.pods[0].netns} -- ping -c 3 {made.pods[-1].address}"
        click.echo(f"  pydatapath lab exec {pair}")
    click.echo(f"  pydatapath lab down{option}")


@lab.command()
@_name
def down(name: str) -> None:
    r"""Take a lab away, with all processes that run in it.

    \b
    Example:
      pydatapath lab down --name big
    """
    from pydatapath.lab import Lab

    Lab.open(name).down()
    click.echo(f"lab {name}: down")


@lab.command("list")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(output: str) -> None:
    r"""List the labs that are up, with their namespaces and addresses.

    \b
    Example:
      pydatapath lab list -o json
    """
    from pydatapath.lab import labs

    found = labs()
    if output == "json":
        import json

        click.echo(json.dumps([_as_json(one) for one in found], indent=2))
        return
    if not found:
        click.echo("no lab is up; `pydatapath lab up` makes one", err=True)
        return
    rows = [("LAB", "KIND", "NAMESPACE", "ADDRESS", "CONTAINERS")]
    rows += [
        (one.name, host.place.kind, host.netns, host.address or "-", ",".join(host.containers) or "-")
        for one in found
        for host in one.hosts
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@lab.command()
@_name
def show(name: str) -> None:
    """Draw a lab as a tree, with interfaces and addresses."""
    from pydatapath.lab import Lab
    from pydatapath.lab.topology import UPLINK_NETWORK

    drawn = Lab.open(name)
    click.echo(f"{drawn.name}-switch   bridge uplink, {UPLINK_NETWORK}")
    # Each entry: the line, and the lines of what hangs below it.
    branches = [
        (
            f"{node.netns}   {node.uplink} {node.address}, {node.bridge} {node.gateway}/24",
            [f"{pod.netns}   eth0 {pod.address}{_containers(pod)}" for pod in drawn.pods_of(node)],
        )
        for node in drawn.nodes
    ]
    outside = drawn.outside
    branches.append((f"{outside.netns}   eth0 {outside.address}", []))
    for number, (line, leaves) in enumerate(branches, start=1):
        last = number == len(branches)
        click.echo(("└── " if last else "├── ") + line)
        for leaf_number, leaf in enumerate(leaves, start=1):
            click.echo(("    " if last else "│   ") + ("└── " if leaf_number == len(leaves) else "├── ") + leaf)


@lab.command(
    "exec",
    short_help="Run a command in a pod, one of its containers or a node.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("pod", metavar="POD[/CONTAINER]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARG]...")
def exec_(pod: str, command: tuple[str, ...]) -> None:
    r"""Run CMD in a pod, or in any other namespace of a lab; its exit code is passed on.

    POD is the namespace (lab-node1-pod1), or its name within the lab (node1-pod1) when only one lab has it. With
    /CONTAINER, CMD gets its own host name, process ids and mounts beside the pod's network, as a container does.

    \b
    Examples:
      pydatapath lab exec lab-node1-pod1 -- ip address
      pydatapath lab exec node1-pod1/sidecar -- sh -c 'hostname; ps ax'
      pydatapath lab exec lab-outside -- ping -c 1 192.168.50.11
    """
    from pydatapath.lab import find_host

    name, _, container = pod.partition("/")
    argv = command[1:] if command[0] == "--" else command  # click leaves it in, because options end at POD already
    if not argv:
        raise click.UsageError("there is no command after --")
    find_host(name).become(argv, container=container)


def _as_json(one: Lab) -> dict[str, Any]:
    """A lab as `list -o json` shows it."""
    nodes = [
        {
            "name": node.netns,
            "address": node.address,
            "pods": [
                {"name": pod.netns, "address": pod.address, "containers": list(pod.containers)}
                for pod in one.pods_of(node)
            ],
        }
        for node in one.nodes
    ]
    return {"name": one.name, "nodes": nodes, "outside": {"name": one.outside.netns, "address": one.outside.address}}


def _containers(host: Host) -> str:
    return f", containers {' and '.join(host.containers)}" if host.containers else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
