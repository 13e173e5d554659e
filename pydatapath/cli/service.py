"""`service`: list, show, add, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target, say
from pydatapath.cli.types import ADDRESS, BACKEND, FAMILIES, IP_FAMILY, PORT, TARGET_PORT
from pydatapath.editing import backend_text

if TYPE_CHECKING:
    from pydatapath.editing import PortSpec
    from pydatapath.model import Backend, ServicePort
    from pydatapath.views import ServiceStatus

__all__ = ["backend_rows", "service"]

BACKEND_HEAD = ["BACKEND", "NODE", "NAME", "LOCAL", "STATE", "FLOWS"]


@click.group()
def service() -> None:
    """Services: addresses that outlive the pods behind them.

    \b
    Examples:
      pydatapath service list
      pydatapath service show web
      pydatapath service add web --port 80 --target-port 8080 --cluster-ip 10.96.0.10 --backend 10.244.1.11
      pydatapath service delete web
    """


@service.command("list")
@output_option
@click.pass_obj
def list_(target: Target, output: str) -> None:
    """All services and how many backends serve each.

    \b
    Example:
      pydatapath service list -o json
    """
    with target.open() as datapath:
        found = datapath.services
    if output in ("json", "yaml"):
        dump([one.as_json() for one in found], output)
        return
    head = ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "PORTS", "BACKENDS", "FLOWS"]
    table(head + (["ADDRESSES"] if output == "wide" else []), [_row(one, output) for one in found])


def _row(one: ServiceStatus, output: str) -> list[object]:
    row: list[object] = [
        one.service.namespace,
        one.service.name,
        one.service.type,
        ",".join(one.service.cluster_ips),
        ",".join(_port(port) for port in one.service.ports),
        len(one.backends),
        sum(backend.flows for backend in one.backends),
    ]
    if output == "wide":
        row.append(",".join(backend_text(backend.address, backend.port) for backend in one.backends))
    return row


def _port(port: ServicePort) -> str:
    return f"{port.port}/{port.protocol.lower()}"


@service.command()
@click.argument("name")
@output_option
@click.pass_obj
def show(target: Target, name: str, output: str) -> None:
    """One service and its backends.

    \b
    Example:
      pydatapath service show default/web
    """
    with target.open() as datapath:
        one = datapath.service(name)
    if output in ("json", "yaml"):
        dump(one.as_json(), output)
        return
    click.echo(f"service     {one.service.key}")
    click.echo(f"type        {one.service.type}")
    click.echo(f"cluster IP  {', '.join(one.service.cluster_ips) or 'none'}")
    for port in one.service.ports:
        click.echo(
            f"port        {_port(port)}{f' ({port.name})' if port.name else ''} to {port.target_port or port.port}"
        )
    click.echo()
    table(BACKEND_HEAD, backend_rows(one.backends))


def backend_rows(backends: tuple[Backend, ...]) -> list[list[object]]:
    """A table's rows for backends."""
    return [
        [
            f"{backend_text(one.address, one.port)}/{one.protocol.lower()}",
            one.node,
            one.name,
            "yes" if one.local else "no",
            one.state,
            one.flows,
        ]
        for one in backends
    ]


@service.command()
@click.argument("name")
@click.option(
    "--port", "ports", type=PORT, multiple=True, required=True, help="[NAME=]PORT[/tcp|udp|sctp]; repeatable."
)
@click.option("--target-port", type=TARGET_PORT, metavar="PORT", help="Where backends listen (default: the port).")
@click.option(
    "--cluster-ip",
    "cluster_ips",
    type=ADDRESS,
    multiple=True,
    metavar="IP",
    help="The service's address, one of each family at most (default: a free one of the service networks).",
)
@click.option(
    "--ip-family",
    type=IP_FAMILY,
    help="Its families (default: those of its addresses; else IPv4, and IPv6 where there are no others).",
)
@click.option(
    "--backend", "backends", type=BACKEND, multiple=True, metavar="IP[:PORT]", help="Repeatable; IPv6: [IP]:PORT."
)
@click.pass_obj
def add(
    target: Target,
    name: str,
    ports: tuple[PortSpec, ...],
    target_port: int | None,
    cluster_ips: tuple[str, ...],
    ip_family: str | None,
    backends: tuple[tuple[str, int | None], ...],
) -> None:
    """Add a service by hand; it is the same object as a manifest makes.

    \b
    Examples:
      pydatapath service add web --port 80 --target-port 8080 --backend 10.244.1.11 --backend 10.244.1.12
      pydatapath service add dns --port dns=53/udp --port dns-tcp=53/tcp --cluster-ip 10.96.0.53
      pydatapath service add web --port 80 --cluster-ip fd00:10:96::20 --backend '[fd00:10:244:1::11]:8080'
      pydatapath service add web --port 80 --ip-family dual
    """
    with target.open() as datapath:
        if target_port is not None:
            ports = tuple(replace(port, target_port=target_port) for port in ports)
        families = FAMILIES[ip_family] if ip_family else ()
        outcomes = datapath.add_service(name, ports, cluster_ips, backends, families=families)
    for one in outcomes:
        say(target, str(one))


@service.command()
@click.argument("name")
@click.pass_obj
def delete(target: Target, name: str) -> None:
    """Delete a service and its slices. Open connections go on.

    \b
    Example:
      pydatapath service delete web
    """
    with target.open() as datapath:
        outcomes = datapath.delete_service(name)
    for one in outcomes:
        say(target, str(one))
