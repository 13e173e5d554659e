"""`nat`: who leaves the cluster behind the node's address."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target

if TYPE_CHECKING:
    from pydatapath.views import NatMapping, NatStats

__all__ = ["nat"]


@click.group()
def nat() -> None:
    """What leaves the cluster behind the node's address: its ports, and who has them.

    \b
    Examples:
      pydatapath nat list
      pydatapath nat stats -o json
    """


@nat.command("list")
@output_option
@click.pass_obj
def list_(target: Target, output: str) -> None:
    """Every pod's port that is seen outside: as what, by whom, and for how long yet.

    \b
    Example:
      pydatapath nat list -o wide
    """
    with target.open() as datapath:
        found = datapath.nat_mappings()
    if output in ("json", "yaml"):
        dump([_as_json(one) for one in found], output)
        return
    rows = [
        (
            one.protocol,
            one.inside,
            one.outside,
            _remotes(one, wide=output == "wide"),
            f"{one.idle:.0f}s",
            f"{one.expires:.0f}s",
        )
        for one in found
    ]
    table(["PROTO", "INSIDE", "OUTSIDE", "REMOTES", "IDLE", "EXPIRES"], rows)


def _remotes(one: NatMapping, *, wide: bool) -> str:
    """All of them, or the first and how many more."""
    if wide or len(one.remotes) < 2:
        return " ".join(map(str, one.remotes))
    return f"{one.remotes[0]} +{len(one.remotes) - 1}"


def _as_json(one: NatMapping) -> dict[str, Any]:
    return {
        "family": one.family,
        "protocol": one.protocol,
        "inside": asdict(one.inside),
        "outside": asdict(one.outside),
        "remotes": [asdict(end) for end in one.remotes],
        "idle": one.idle,
        "expires": one.expires,
    }


@nat.command()
@output_option
@click.pass_obj
def stats(target: Target, output: str) -> None:
    """How many ports of each outside address are used, what was dropped and why, and who has the most flows.

    USED are OF so many that --snat-ports names and nobody else may have; BESIDE are pods' own ports that were kept.

    \b
    Example:
      pydatapath nat stats
    """
    with target.open() as datapath:
        found = datapath.nat_stats()
    if output in ("json", "yaml"):
        dump(_stats_as_json(found), output)
        return
    click.echo(f"masqueraded  {' and '.join(f'IPv{one}' for one in found.families) or 'nothing'}")
    click.echo(f"type         {found.type}")
    click.echo(f"ports        {found.ports}")
    click.echo()
    table(
        ["ADDRESS", "PROTO", "USED", "OF", "BESIDE"],
        [(one.address, one.protocol, one.used, one.of, one.beside) for one in found.addresses],
    )
    click.echo()
    table(["DROPPED", "PACKETS"], list(found.dropped.items()))
    if found.sources:
        click.echo()
        table(["SOURCE", "FLOWS"], found.sources)


def _stats_as_json(found: NatStats) -> dict[str, Any]:
    return {
        "families": list(found.families),
        "type": found.type,
        "ports": found.ports,
        "addresses": [asdict(one) for one in found.addresses],
        "dropped": found.dropped,
        "sources": [{"address": address, "flows": flows} for address, flows in found.sources],
    }
