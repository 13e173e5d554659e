"""`port-forward`: ports of the node that lead to a pod."""

from __future__ import annotations

import re
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target, say

__all__ = ["port_forward"]

MOST = 65_535


class EndType(click.ParamType[tuple[str, int]]):
    """`192.0.2.1:8080`, `[2001:db8::1]:8080`, and where the address may be left out `8080`."""

    name = "end"
    _form = re.compile(r"(?:\[([^\]]+)\]:|([^:]+):)?(\d{1,5})", re.ASCII)

    def __init__(self, example: str, *, bare: bool) -> None:
        self._example, self._bare = example, bare

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """To an address ("": none) and a port."""
        if isinstance(value, tuple):
            return value
        match = self._form.fullmatch(value)
        address = (match[1] or match[2] or "") if match else ""
        if match is None or not 1 <= int(match[3]) <= MOST or not (address or self._bare):
            self.fail(f"{value!r} is not what is expected: such as {self._example}", param, ctx)
        try:
            return str(ip_address(address)) if address else "", int(match[3])
        except ValueError:
            self.fail(f"{value!r} is not what is expected: {address!r} is no IP address", param, ctx)


PLACE = EndType("8080, 192.0.2.1:8080 or [2001:db8::1]:8080", bare=True)
POD = EndType("10.244.1.11:80 or [fd00:10:244:1::b]:80", bare=False)
protocol_option = click.option(
    "--proto", type=click.Choice(["tcp", "udp", "sctp"]), default="tcp", show_default=True, help="The protocol."
)


@click.group()
def port_forward() -> None:
    """Ports of the node's addresses that lead to a pod, as `docker run -p` makes them.

    \b
    Examples:
      pydatapath port-forward add 8080 10.244.1.11:80
      pydatapath port-forward list
      pydatapath port-forward delete 8080
    """


@port_forward.command()
@click.argument("place", type=PLACE, metavar="[ADDRESS:]PORT")
@click.argument("pod", type=POD, metavar="POD-IP:PORT")
@protocol_option
@click.pass_obj
def add(target: Target, place: tuple[str, int], pod: tuple[str, int], proto: str) -> None:
    """Let a port of the node lead to a pod. Without an address: of all where node ports answer.

    \b
    Examples:
      pydatapath port-forward add 8080 10.244.1.11:80
      pydatapath port-forward add 192.0.2.1:53 10.244.1.12:5353 --proto udp
      pydatapath port-forward add "[2001:db8::1]:8080" "[fd00:10:244:1::b]:80"
    """
    from pydatapath.forwarding import Forward
    from pydatapath.plan import Address

    address, port = place
    given = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}[proto]
    end = Address(*pod, given)  # type: ignore[arg-type]  # one of Protocol
    forward = Forward(address, port, end)
    with target.open() as datapath:
        datapath.add_port_forward(forward)
    say(target, f"port-forward {forward.name} added")


@port_forward.command("list")
@output_option
@click.pass_obj
def list_(target: Target, output: str) -> None:
    """All of them: where they are called, and where they lead.

    \b
    Example:
      pydatapath port-forward list -o json
    """
    with target.open() as datapath:
        found = datapath.port_forwards
    if output in ("json", "yaml"):
        dump([asdict(one) | {"addresses": list(one.addresses)} for one in found], output)
        return
    rows = [(one.protocol, " ".join(one.addresses), one.port, one.target, one.flows) for one in found]
    table(["PROTO", "ADDRESSES", "PORT", "POD", "FLOWS"], rows)


@port_forward.command()
@click.argument("place", type=PLACE, metavar="[ADDRESS:]PORT")
@protocol_option
@click.pass_obj
def delete(target: Target, place: tuple[str, int], proto: str) -> None:
    """Let a port be the node's own again; connections that are open go on.

    \b
    Example:
      pydatapath port-forward delete 192.0.2.1:53 --proto udp
    """
    address, port = place
    with target.open() as datapath:
        gone = datapath.delete_port_forward(port, proto, address)
    for name in gone:
        say(target, f"port-forward {name} deleted")
