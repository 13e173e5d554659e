"""`node`: the machines of the cluster, as Node objects tell."""

from __future__ import annotations

import click

from pydatapath.cli.output import dump, output_option, table
from pydatapath.cli.target import Target

__all__ = ["node"]


@click.group()
def node() -> None:
    """The machines of the cluster, as `apply` was told by Node objects.

    \b
    Examples:
      kubectl get nodes -o json | pydatapath apply -f -
      pydatapath node list
      pydatapath delete node worker-2
    """


@node.command("list")
@output_option
@click.pass_obj
def list_(target: Target, output: str) -> None:
    """Every node: its addresses, where its pods are, its zone.

    Pods are seen there as who they are, and calls from those pods are the cluster's own.

    \b
    Example:
      pydatapath node list -o wide
    """
    with target.open() as datapath:
        found = datapath.nodes
    if output in ("json", "yaml"):
        rows = [
            {
                "name": one.name,
                "internal_ips": list(one.internal_ips),
                "external_ips": list(one.external_ips),
                "pod_cidrs": list(one.pod_cidrs),
                "zone": one.zone or None,
            }
            for one in found
        ]
        dump(rows, output)
        return
    wide = output == "wide"
    table(
        ["NAME", "INTERNAL-IPS", *(["EXTERNAL-IPS"] if wide else []), "POD-CIDRS", "ZONE"],
        [
            (
                one.name,
                " ".join(one.internal_ips),
                *([" ".join(one.external_ips)] if wide else []),
                " ".join(one.pod_cidrs),
                one.zone,
            )
            for one in found
        ],
    )
