"""`pydatapath lab`: clusters made of network namespaces, to try the datapath without any other machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target, say

if TYPE_CHECKING:
    from pydatapath.lab import Host, Lab
    from pydatapath.lab.stage import Kind

__all__ = ["lab"]

_name = click.option("--name", default="lab", show_default=True, metavar="NAME", help="Which lab; several can be up.")

# How the demo's lines look: what stands before them, and their style where there are colours
_STYLES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "title": ("\n", {"bold": True}),
    "line": ("    ", {}),
    "ok": ("  + ", {"fg": "green"}),
    "failed": ("  ! ", {"fg": "red"}),
    "why": ("    ", {"fg": "cyan"}),
}


@click.group()
def lab() -> None:
    """A cluster on this machine, made of network namespaces.

    A switch, nodes with a bridge each and routes between them, pods with eth0 (node1-pod1 has two containers, app
    and sidecar), and a client outside. Each is a namespace: `ip netns list` shows them.

    \b
    Examples:
      pydatapath lab demo
      pydatapath lab up --nodes 3
      pydatapath lab show
      pydatapath lab exec lab-node1-pod1 -- ping -c 3 10.244.2.11
      pydatapath lab exec lab-node1-pod1/sidecar -- hostname
      pydatapath lab down
    """


@lab.command()
@click.option("--nodes", default=2, show_default=True, metavar="N", help="How many nodes, 1 to 89.")
@click.option("--pods", default=2, show_default=True, metavar="N", help="How many pods on each node, 0 to 244.")
@click.option("--dual-stack", is_flag=True, help="IPv6 beside IPv4: each host has an address of both.")
@_name
@click.pass_obj
def up(target: Target, nodes: int, pods: int, dual_stack: bool, name: str) -> None:
    """Bring a lab up.

    With --dual-stack, node N is 2001:db8:50::(10+N) too, its bridge fd00:10:244:N::1, and its pod I
    fd00:10:244:N::(10+I): digits as in the IPv4 addresses.

    \b
    Examples:
      pydatapath lab up
      pydatapath lab up --nodes 3 --pods 4 --name big
      pydatapath lab up --dual-stack
    """
    from pydatapath.lab import Lab, LabSpec

    start = time.monotonic()
    made = Lab.up(LabSpec(name, nodes, pods, dual_stack))
    seconds = time.monotonic() - start
    size = f"{_count(nodes, 'node')} with {_count(pods, 'pod')} each{', IPv4 and IPv6' if dual_stack else ''}"
    say(target, f"lab {name}: {size}, up in {seconds:.2f} s")
    option = "" if name == "lab" else f" --name {name}"
    say(target, f"  pydatapath lab show{option}")
    if made.pods:
        caller, called = made.pods[0], made.pods[-1]
        for address in (called.address, called.address6) if dual_stack else (called.address,):
            say(target, f"  pydatapath lab exec {caller.netns} -- ping -c 3 {address}")
    say(target, f"  pydatapath lab down{option}")


@lab.command()
@_name
@click.pass_obj
def down(target: Target, name: str) -> None:
    """Take a lab away, with what runs in it.

    Its processes are ended, and datapaths that are loaded on its nodes are unloaded.

    \b
    Example:
      pydatapath lab down --name big
    """
    from pydatapath.lab import Lab

    for one in Lab.open(name).down():
        say(target, f"instance {one.name} unloaded from {one.netns}")
    say(target, f"lab {name}: down")


@lab.command("list")
@output_option
def list_(output: str) -> None:
    """List the labs that are up.

    With their namespaces and addresses; `-o wide` also says where the cables end.

    \b
    Example:
      pydatapath lab list -o json
    """
    from pydatapath.lab import labs

    found = labs()
    if output in ("json", "yaml"):
        dump([_as_json(one) for one in found], output)
        return
    if not found:
        click.echo("no lab is up; `pydatapath lab up` makes one", err=True)
        return
    head = ["LAB", "KIND", "NAMESPACE", "ADDRESS", "CONTAINERS", "CABLE"]
    rows = [row for one in found for row in _rows(one)]
    columns = len(head) if output == "wide" else len(head) - 1
    table(head[:columns], [row[:columns] for row in rows])


@lab.command()
@_name
@output_option
def show(name: str, output: str) -> None:
    """Draw a lab as a tree, with interfaces and addresses.

    \b
    Example:
      pydatapath lab show --name big
    """
    from pydatapath.lab import Lab

    found = Lab.open(name)
    if output in ("json", "yaml"):
        dump(_as_json(found), output)
        return
    from pydatapath.lab import drawing

    for line in drawing.tree(found):
        click.echo(line)


@lab.command()
@click.pass_obj
def demo(target: Target) -> None:
    """See it work: a cluster, a service, real packets.

    A cluster comes up, and packets reach a service through eBPF in all the ways there are. It takes a few seconds,
    touches no network of this machine, and leaves nothing behind.

    \b
    Example:
      pydatapath lab demo
    """
    from pydatapath.lab import demo as story

    def tell(kind: Kind, text: str) -> None:
        if not target.quiet:
            before, style = _STYLES[kind]
            click.secho(before + text, **style)

    story.run(tell)
    for line in _to_go_on():
        say(target, line)


@lab.command(
    "exec",
    short_help="Run a command in a pod, one of its containers or a node.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("pod", metavar="POD[/CONTAINER]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARG]...")
def exec_(pod: str, command: tuple[str, ...]) -> None:
    """Run CMD in a pod, or in any other namespace of a lab; its exit code is passed on.

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


def _rows(one: Lab) -> list[tuple[str, ...]]:
    """A lab's lines in the table, all columns."""
    both = one.dual_stack
    return [
        (
            one.name,
            host.place.kind,
            host.netns,
            f"{host.address},{host.address6}" if both and host.address6 else host.address,
            ",".join(host.containers),
            _cable(one, host),
        )
        for host in one.hosts
    ]


def _as_json(one: Lab) -> dict[str, Any]:
    """A lab as `list -o json` shows it; `dual_stack` is null when that cannot be found out."""
    both = one.dual_stack

    def known(host: Host) -> dict[str, Any]:
        return {"name": host.netns, "address": host.address, "address6": host.address6 if both else ""}

    nodes = [
        {**known(node), "pods": [{**known(pod), "containers": list(pod.containers)} for pod in one.pods_of(node)]}
        for node in one.nodes
    ]
    return {"name": one.name, "dual_stack": both, "nodes": nodes, "outside": known(one.outside)}


def _cable(one: Lab, host: Host) -> str:
    """The other end of a host's eth0."""
    if host.place.kind == "switch":
        return ""
    if host.place.kind == "pod":
        return f"{one.name}-node{host.place.node}:pod{host.place.pod}"
    return f"{one.name}-switch:{host.name}"


def _to_go_on() -> list[str]:
    """The commands after the demo, as they can be typed here."""
    from pydatapath.lab import client, server
    from pydatapath.lab.stage import MANIFEST, VIP

    example = Path("examples", MANIFEST.name)
    called = Path(sys.argv[0])
    command = "pydatapath" if shutil.which("pydatapath") or called.name != "pydatapath" else _short(called)
    python = _short(Path(sys.executable))
    return [
        "",
        "Three commands to go on with:",
        f"  {command} lab up",
        f"  {command} --netns lab-node1 load --node-name node1",
        f"  {command} --netns lab-node1 apply -f {example if example.exists() else _short(MANIFEST)}",
        "",
        "Then servers in the pods behind the service, and a pod that calls it:",
        "  for pod in node1-pod2 node2-pod1 node2-pod2; do",
        f"      {command} lab exec lab-$pod -- {python} -m {server.__name__} $pod &",
        "  done",
        f"  {command} lab exec lab-node1-pod1 -- {python} -m {client.__name__} {VIP[0]} {VIP[1]}",
        f"  {command} lab down",
    ]


def _short(path: Path) -> str:
    """A path as it is typed from here."""
    absolute = Path(os.path.abspath(path))  # not resolved: a virtual environment's python is a link
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
