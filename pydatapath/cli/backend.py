"""`backend`: list, add, remove, drain."""

from __future__ import annotations

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.service import BACKEND_HEAD, backend_rows
from pydatapath.cli.target import Target, say
from pydatapath.cli.types import BACKEND

__all__ = ["backend"]


@click.group()
def backend() -> None:
    """Backends: the endpoints that serve a service.

    \b
    Examples:
      pydatapath backend list
      pydatapath backend add web 10.244.1.13:8080
      pydatapath backend drain web 10.244.1.11:8080
      pydatapath backend remove web '[fd00:10:244:1::11]:8080'
    """


@backend.command("list")
@click.argument("service", required=False)
@output_option
@click.pass_obj
def list_(target: Target, service: str | None, output: str) -> None:
    """The backends of one service, or of all.

    \b
    Example:
      pydatapath backend list default/web
    """
    with target.open() as datapath:
        found = [datapath.service(service)] if service else datapath.services
    if output in ("json", "yaml"):
        dump([{"service": one.service.key, **row} for one in found for row in one.as_json()["backends"]], output)
        return
    rows = [[one.service.key, *row] for one in found for row in backend_rows(one.backends)]
    table(["SERVICE", *BACKEND_HEAD], rows)


@backend.command()
@click.argument("service")
@click.argument("address", type=BACKEND, metavar="IP[:PORT]")
@click.option("--node", default="", metavar="N", help="The node it is on (default: not said).")
@click.option(
    "--weight",
    type=click.IntRange(0, 1000),
    default=1,
    metavar="N",
    help="Its share of new flows beside the others' (default: 1; 0: none).",
)
@click.pass_obj
def add(target: Target, service: str, address: tuple[str, int | None], node: str, weight: int) -> None:
    """Add a backend to a service, or put one back that drains.

    \b
    Examples:
      pydatapath backend add web 10.244.1.13:8080
      pydatapath backend add web 10.244.1.14:8080 --weight 3
      pydatapath backend add web '[fd00:10:244:1::13]:8080'
    """
    with target.open() as datapath:
        outcomes = datapath.add_backend(service, *address, node=node, weight=weight)
    for one in outcomes:
        say(target, str(one))


@backend.command()
@click.argument("service")
@click.argument("address", type=BACKEND, metavar="IP[:PORT]")
@click.option("--reset", is_flag=True, help="End its flows, too: open connections to it are cut.")
@click.pass_obj
def remove(target: Target, service: str, address: tuple[str, int | None], reset: bool) -> None:
    """Take a backend from a service. New flows go to the others; open TCP connections to it go on.

    With --reset they do not: the client's next packet goes to another backend, which does not know the connection and
    resets it; where there is none, the datapath does. The removed backend learns of it when it next sends: its packet
    reaches the client from an address that it never called, and is answered by a reset. UDP moves at the next datagram,
    with --reset or without.

    \b
    Examples:
      pydatapath backend remove web 10.244.1.11:8080
      pydatapath backend remove --reset web 10.244.1.11:8080
    """
    with target.open() as datapath:
        if reset:
            outcomes, ended = datapath.reset_backend(service, *address)
        else:
            outcomes, ended = datapath.remove_backend(service, *address), None
    for one in outcomes:
        say(target, str(one))
    if ended is not None:
        say(target, f"{ended} flow{'' if ended == 1 else 's'} ended")


@backend.command()
@click.argument("service")
@click.argument("address", type=BACKEND, metavar="IP[:PORT]")
@click.pass_obj
def drain(target: Target, service: str, address: tuple[str, int | None]) -> None:
    """Give a backend no new flows; those that it has go on. `backend add` puts it back.

    \b
    Example:
      pydatapath backend drain web 10.244.1.11:8080
    """
    with target.open() as datapath:
        outcomes = datapath.drain_backend(service, *address)
    for one in outcomes:
        say(target, str(one))
