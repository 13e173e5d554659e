"""`flow`: what is tracked now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target

if TYPE_CHECKING:
    from pydatapath.views import Flow

__all__ = ["flow"]

Command = TypeVar("Command", bound=Callable[..., Any])


def _canonical(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """An address as flows show it."""
    if value is None:
        return None
    try:
        return str(ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address: such as 10.244.1.11 or fd00:10:244:1::11") from None


def _filters(command: Command) -> Command:
    for option in (
        click.option("--state", metavar="S", help="new, established or closing."),
        click.option("--dst", metavar="IP", callback=_canonical, help="Called address, or the backend's."),
        click.option("--src", metavar="IP", callback=_canonical, help="Who called."),
        click.option("--service", metavar="NAME", help="Of one service."),
    ):
        command = option(command)
    return command


@click.group()
def flow() -> None:
    """The flows that are tracked: those to services, and plain ones to backends.

    \b
    Examples:
      pydatapath flow list
      pydatapath flow list --service web --limit 10
      pydatapath flow count --state established
    """


@flow.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many.")
@output_option
@click.pass_obj
def list_(target: Target, /, limit: int | None, output: str, **wanted: str | None) -> None:
    """Every flow in both its directions, as `conntrack -L` shows it.

    \b
    Example:
      pydatapath flow list --src 10.244.1.11 -o json
    """
    found = _select(target, **wanted)[:limit]
    if output in ("json", "yaml"):
        dump([_as_json(one) for one in found], output)
        return
    head = ["PROTO", "STATE", "ORIGINAL", "REPLY", "NAT", "SERVICE", "PACKETS", "IDLE", "EXPIRES"]
    rows = [
        (
            one.protocol.lower(),
            one.state,
            one.original,
            one.reply,
            one.nat,
            one.service,
            "{}/{}".format(*one.packets),
            f"{one.idle:.0f}s",
            f"{one.expires:.0f}s",
        )
        for one in found
    ]
    table(head, rows)


@flow.command()
@_filters
@output_option
@click.pass_obj
def count(target: Target, /, output: str, **wanted: str | None) -> None:
    """How many flows there are.

    \b
    Example:
      pydatapath flow count --service web
    """
    number = len(_select(target, **wanted))
    if output in ("json", "yaml"):
        dump({"flows": number}, output)
    else:
        click.echo(number)


def _select(target: Target, service: str | None, src: str | None, dst: str | None, state: str | None) -> list[Flow]:
    from pydatapath.datapath import split_key

    key = "/".join(split_key(service)) if service else None
    with target.open() as datapath:
        return [
            one
            for one in datapath.flows()
            if (key is None or (one.service or "").rpartition(":")[0] == key)
            and (src is None or one.original.src == src)
            and (dst is None or dst in (one.original.dst, one.reply.src))
            and (state is None or one.state == state.lower())
        ]


def _as_json(one: Flow) -> dict[str, Any]:
    return {
        "family": one.family,
        "protocol": one.protocol.lower(),
        "original": asdict(one.original),
        "reply": asdict(one.reply),
        "state": one.state,
        "service": one.service,
        "nat": one.nat,
        "packets": list(one.packets),
        "bytes": list(one.bytes),
        "idle": one.idle,
        "expires": one.expires,
    }
