"""`load`, `unload`, `repair`, `status`, `doctor`: the datapath itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from pydatapath.cli.output import dump, output_option, size, table
from pydatapath.cli.target import Target, say
from pydatapath.fields import visible

if TYPE_CHECKING:
    from pydatapath.views import Status

__all__ = ["doctor", "load", "repair", "status", "unload"]

MAX_CONFIG_BYTES: Final = 1_000_000


@click.command()
@click.option("--config", metavar="FILE", help="A TOML file with these options, dashes written as underscores.")
@click.option("--node-name", metavar="N", help="As EndpointSlices call this node (default: the host's name).")
@click.option("--uplink", multiple=True, metavar="IF", help="Towards other nodes (default: the default route's).")
@click.option("--bridge", multiple=True, metavar="IF", help="Where the pods are (default: the only bridge).")
@click.option("--pod-interface", multiple=True, metavar="GLOB", help="More interfaces of pods, such as 'veth*'.")
@click.option("--node-ip", multiple=True, metavar="IP", help="The node's addresses (default: the uplink's).")
@click.option("--pod-cidr", multiple=True, metavar="CIDR", help="This node's pod networks (default: the bridge's).")
@click.option(
    "--cluster-cidr",
    multiple=True,
    metavar="CIDR",
    help="The pod networks of all nodes: calls from there are the cluster's own (default: this node's, and those of"
    " applied Node objects). It turns --masquerade on for its family.",
)
@click.option(
    "--service-cidr",
    multiple=True,
    metavar="CIDR",
    help="Service networks (default: 10.96.0.0/12, and with IPv6 fd00:10:96::/112).",
)
@click.option(
    "--nodeport-addresses",
    multiple=True,
    metavar="CIDR",
    help="Node ports answer at the host's addresses in these networks (default: at the node's addresses).",
)
@click.option(
    "--nodeport-range", metavar="A-B", help="Where node ports are, which no pod's call is given (30000-32767)."
)
@click.option(
    "--masquerade/--no-masquerade",
    default=None,
    help="Pods leave the cluster behind the node's address (default: of a family that --cluster-cidr names).",
)
@click.option(
    "--non-masquerade-cidr",
    multiple=True,
    metavar="CIDR",
    help="Networks where pods are seen as who they are, beside the cluster's own.",
)
@click.option(
    "--snat-address",
    multiple=True,
    metavar="[POD-CIDR=]ADDRESS",
    help="Which of the host's addresses pods leave behind, all or those of one network (default: the uplink's).",
)
@click.option(
    "--snat-ports",
    metavar="A-B",
    help="Ports for calls whose own port is taken there (1024-65535; below for low ones).",
)
@click.option(
    "--nat-type",
    type=click.Choice(["endpoint-independent", "symmetric", "full-cone"]),
    help="What a pod's UDP port is outside, and who may send to it (endpoint-independent).",
)
@click.option(
    "--pod-flow-rate",
    metavar="FLOWS/SECONDS",
    help="So many flows to the outside one pod may begin at once, and again in so many seconds (as many as it wants).",
)
@click.option(
    "--pod-fast-path",
    type=click.Choice(["never", "auto", "always"]),
    help="What this node's pods send to each other goes past the bridge; auto: unless rules, VLANs or isolated ports"
    " there would be passed by (never).",
)
@click.option(
    "--timeout",
    multiple=True,
    metavar="NAME=SECONDS",
    help="How long flows live without a packet: tcp-opening (120), tcp-established (432000), tcp-closing (240), "
    "udp-unanswered (120), udp (300), icmp (60), sctp-opening (120), sctp-established (210); "
    "and a port that was freed is no other pod's: port-quarantine (120).",
)
@click.option("--zone", metavar="NAME", help="This node's topology zone, for hints (default: its Node object's).")
@click.option(
    "--algorithm",
    type=click.Choice(["random", "maglev"]),
    help="How services that do not say share new flows among their backends (random).",
)
@click.option(
    "--max-flows",
    type=click.IntRange(1024, 1 << 24),
    metavar="N",
    help="Flows tracked (131072); each takes 288 bytes of memory, and of IPv6 416, set aside at once.",
)
@click.option(
    "--max-backends",
    type=click.IntRange(16, 1 << 22),
    metavar="N",
    help="Backends of all services (65536); each takes 240 bytes of memory.",
)
@click.option(
    "--max-services",
    type=click.IntRange(16, 1 << 22),
    metavar="N",
    help="Addresses and ports of all services (65536), and a quarter of that for source ranges; each takes 392 bytes "
    "of memory.",
)
@click.option("--break-flows", is_flag=True, help="Go on where open connections would break; else that is refused.")
@click.pass_obj
def load(target: Target, /, config: str | None, break_flows: bool, **given: Any) -> None:
    """Load the datapath, or exchange the one that is loaded, without a packet lost.

    Open connections live on, also where --max-flows, --max-backends or --max-services change.

    Addresses and networks may be of both families. IPv6 is loaded where the bridge has an address of it that is not
    link-local, or an option names one.

    \b
    Examples:
      pydatapath load
      pydatapath load --bridge br0 --uplink eth0 --service-cidr 10.96.0.0/16
      pydatapath load --cluster-cidr 10.244.0.0/16 --non-masquerade-cidr 203.0.113.0/24
      pydatapath load --timeout tcp-established=86400 --timeout udp=180
      pydatapath load --pod-fast-path auto
      pydatapath --netns node1 load --config node1.toml
    """
    from pydatapath import egress, timers
    from pydatapath.datapath import Datapath
    from pydatapath.node import Options

    values = _read_config(config) if config else {}
    values |= {name: value for name, value in given.items() if value not in (None, (), "")}
    options = Options.from_mapping(values)
    with Datapath.load(options, target.instance, target.netns, break_flows=break_flows) as datapath:
        node, mended = datapath.node, datapath.mended
        around = (*datapath.unreachable_port_forwards(), *datapath.translated_elsewhere())
    if node is not None:
        past = filter(None, (node.fast_path.warning,))
        few = egress.few_ports(node.masquerade) if node.masqueraded else []
        for warning in (*([mended] if mended else []), *timers.too_short(node.timeouts), *few, *past, *around):
            click.echo(visible(f"Warning: {warning}"), err=True)
        parts = (("pod interface", node.pods), ("bridge", node.bridges), ("uplink", node.uplinks))
        where = ", ".join(f"{len(found)} {what}{'s' if len(found) > 1 else ''}" for what, found in parts if found)
        say(target, f"loaded on node {node.name}: {where}")


def _read_config(path: str) -> dict[str, Any]:
    import tomllib

    from pydatapath.errors import DatapathError
    from pydatapath.reading import file_bytes

    try:
        text = file_bytes(path, MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DatapathError(f"the configuration {path} cannot be read: {why}") from None
    try:
        return tomllib.loads(text.decode())
    except RecursionError:
        raise DatapathError(f"the configuration {path} is not TOML: nested too deep") from None
    except ValueError as error:  # also of text that is no UTF-8, and of numbers of 4,300 digits and more
        raise DatapathError(f"the configuration {path} is not TOML: {error}") from None


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every instance on this machine, and what dead ones left.")
@click.pass_obj
def unload(target: Target, everything: bool) -> None:
    """Take the datapath out of the kernel; the host is left as it was.

    \b
    Examples:
      pydatapath unload
      pydatapath unload --all
    """
    from pydatapath import instance, loading
    from pydatapath.errors import NotLoaded

    loading.require_root("unload")
    meant, dead = [], []
    if everything:
        meant, dead = [*instance.loaded(), *instance.unfinished()], instance.left_behind()
    else:
        try:
            meant = [instance.find(target.instance, target.netns)]
        except NotLoaded:
            meant = [instance.here(target.instance, target.netns)]
    gone = [one for one in meant if loading.unload(one)]
    for one in gone:
        say(target, f"instance {one.name} unloaded{f' from {one.netns}' if one.netns else ''}")
    for one in dead:
        loading.clean_up(one)
        say(target, f"instance {one.name} is gone with its namespace: pins and records removed")
    if not gone and not dead:
        say(target, f"instance {target.instance} is not loaded: nothing to do")


@click.command()
@click.pass_obj
def repair(target: Target) -> None:
    """Mend what status calls drift: filters, pins, routes, entries of maps that were changed by hand or got lost.

    Damaged records are taken from their copy. Where the programs are still pinned nothing is compiled; where that is
    not enough, it does what load does, with the options that it was given last. Connections go on.

    \b
    Examples:
      pydatapath repair
      pydatapath --netns node1 repair
    """
    with target.open() as datapath:
        mended = datapath.repair()
    for one in mended:
        say(target, f"mended: {one}")
    if not mended:
        say(target, "nothing to do: all is as it should be")


@click.command()
@click.option("--check", is_flag=True, help="Compare the maps with all objects, however many they are.")
@output_option
@click.pass_obj
def status(target: Target, output: str, check: bool) -> None:
    """What is loaded, where, since when; how full the maps are; what drifted from what load and apply left.

    Entries of maps are compared with the objects where these are few, or with --check.

    \b
    Examples:
      pydatapath status
      pydatapath status --check -o json
    """
    import json

    from pydatapath.errors import NotLoaded
    from pydatapath.views import Status

    try:
        with target.open() as datapath:
            found = datapath.status(check=check or None)
    except NotLoaded:
        if output not in ("json", "yaml"):
            raise
        nothing = Status(instance=target.instance, netns=target.netns)
        dump(json.loads(json.dumps(asdict(nothing))), output)
        return
    if output in ("json", "yaml"):
        # By way of JSON's own types: YAML knows no tuples
        dump(json.loads(json.dumps(asdict(found))), output)
    else:
        _print_status(found, wide=output == "wide")


def _print_status(found: Status, *, wide: bool) -> None:
    from pydatapath import timers

    usual = timers.named(timers.read(()))
    click.echo(visible(f"instance   {found.instance}{f' in namespace {found.netns}' if found.netns else ''}"))
    click.echo(visible(f"node       {found.node_name} ({', '.join(found.node_ips) or 'no uplink address'})"))
    click.echo(f"loaded     {found.since} by pydatapath {found.version}")
    click.echo(f"serving    {found.services} services, {found.backends} backends, {found.flows} flows")
    told = [f"{name} {seconds} s" for name, seconds in found.timers.items() if wide or seconds != usual[name]]
    if told:
        click.echo(f"timers     {', '.join(told)}")
    if wide or found.pod_fast_path != "never":
        click.echo(visible(f"fast path  {found.pod_fast_path}"))
    click.echo()
    rows = [
        (one.name, one.role, program["hook"], program["name"], program["id"], program["tag"])
        for one in found.interfaces
        for program in one.programs
    ]
    table(["INTERFACE", "ROLE", "HOOK", "PROGRAM", "ID", "TAG"], rows)
    click.echo()
    maps = [(one.name, one.type, one.entries, one.max_entries, size(one.bytes)) for one in found.maps]
    table(["MAP", "TYPE", "ENTRIES", "MAX", "MEMORY"], maps)
    counted = [(name, count) for name, count in found.counters.items() if count or wide]
    if counted:
        click.echo()
        table(["COUNTER", "PACKETS"], counted)
    if found.drift or found.conflicts or found.unchecked:
        click.echo()
    for one in found.drift:
        click.secho(visible(f"drift: {one}"), fg="red")
    if found.unchecked:
        click.secho(visible(f"drift: {found.unchecked}"), fg="yellow")
    for one in found.conflicts:
        click.secho(visible(f"conflict: {one}"), fg="yellow")


@click.command()
@output_option
def doctor(output: str) -> None:
    """Each thing this host needs, found or not, and what to do about it. Exit code 1 when a load could not work.

    \b
    Example:
      pydatapath doctor
    """
    from pydatapath.instance import check_all_folders
    from pydatapath.kernel.features import checks

    found = list(checks(check_all_folders))
    if output in ("json", "yaml"):
        dump([asdict(one) for one in found], output)
    else:
        rows = [
            (one.name, "ok" if one.found else "MISSING", one.detail, "" if one.found else one.remedy) for one in found
        ]
        table(["NEEDED", "STATE", "FOUND", "WHAT TO DO"], rows)
    # load mounts the file system itself
    if not all(one.found for one in found if one.name != "bpf file system"):
        sys.exit(1)
