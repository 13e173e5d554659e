"""`flow`: what is tracked now, and an end to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target, say
from pydatapath.cli.types import ADDRESS
from pydatapath.kernel.layout import FlowState

if TYPE_CHECKING:
    from pydatapath.views import Flow

__all__ = ["flow"]

Command = TypeVar("Command", bound=Callable[..., Any])
STATE = click.Choice([state.name.lower() for state in FlowState], case_sensitive=False)


def _filters(command: Command) -> Command:
    for option in (
        click.option("--state", type=STATE, help="How far it has come."),
        click.option("--dst", type=ADDRESS, metavar="IP", help="Called address, or the backend's."),
        click.option("--src", type=ADDRESS, metavar="IP", help="Who called."),
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
      pydatapath flow flush --service web
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


@flow.command()
@_filters
@click.pass_obj
def flush(target: Target, /, **wanted: str | None) -> None:
    """End flows: all, as `conntrack -F` does, or those that match.

    No backend is told. A connection goes on where its client speaks next and the service's backends are as they were:
    its packet begins a flow to the same one. Else it is reset, by the backend that gets it now, or by the client, which
    does not know the backend's own address.

    \b
    Examples:
      pydatapath flow flush
      pydatapath flow flush --service web --src 10.244.1.11
    """
    from pydatapath.tracking import FlowFilter

    with target.open() as datapath:
        ended = datapath.flush_flows(FlowFilter(**wanted))
    say(target, f"{ended} flow{'' if ended == 1 else 's'} ended")


def _select(target: Target, /, **wanted: str | None) -> list[Flow]:
    from pydatapath.tracking import FlowFilter

    with target.open() as datapath:
        return datapath.flows(FlowFilter(**wanted))


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
