"""`apply` and `delete`: Kubernetes manifests."""

from __future__ import annotations

import click

from pydatapath.cli.target import Target, say

__all__ = ["apply", "delete"]

_files = click.option(
    "-f", "--filename", multiple=True, metavar="FILE|DIR|-", help="Manifests, YAML or JSON; repeatable."
)
KINDS = {"service": "Service", "svc": "Service", "endpointslice": "EndpointSlice"}


@click.command()
@_files
@click.option("--prune", is_flag=True, help="Delete every object that is not in the manifests.")
@click.option("--dry-run", is_flag=True, help="Only say what would become of each object.")
@click.pass_obj
def apply(target: Target, filename: tuple[str, ...], prune: bool, dry_run: bool) -> None:
    """Make the Services and EndpointSlices of manifests; all of them, or none where one is wrong.

    Other kinds that Kubernetes has are named and skipped.

    \b
    Examples:
      pydatapath apply -f web.yaml
      kubectl get services,endpointslices -A -o json | pydatapath apply --prune -f -
    """
    if not filename:
        raise click.UsageError("which manifests? -f FILE, -f DIR or -f - (standard input)")
    from pydatapath import manifests

    with target.open() as datapath:
        loaded = manifests.read(filename)
        outcomes = datapath.apply(loaded.objects, prune=prune, dry_run=dry_run)
    suffix = " (dry run)" if dry_run else ""
    for one in outcomes:
        say(target, f"{one}{suffix}")
    for title in loaded.skipped:
        say(target, f"{title} skipped: pydatapath reads Services and EndpointSlices")


@click.command()
@_files
@click.argument("kind_and_names", nargs=-1, metavar="[KIND NAME...]")
@click.pass_obj
def delete(target: Target, filename: tuple[str, ...], kind_and_names: tuple[str, ...]) -> None:
    """Delete objects, by manifest or by kind and name.

    \b
    Examples:
      pydatapath delete -f web.yaml
      pydatapath delete service web
      pydatapath delete endpointslice default/web-1
    """
    from pydatapath.datapath import split_key

    if bool(filename) == bool(kind_and_names):
        raise click.UsageError("either -f FILE, or KIND and NAME")
    with target.open() as datapath:
        if filename:
            from pydatapath import manifests

            keys = [(type(one).__name__, one.namespace, one.name) for one in manifests.read(filename).objects]
        else:
            kind = KINDS.get(kind_and_names[0].lower().removesuffix("s"))
            if kind is None or len(kind_and_names) == 1:
                raise click.UsageError("KIND is service or endpointslice, and one NAME or more follow")
            keys = [(kind, *split_key(name)) for name in kind_and_names[1:]]
        outcomes = datapath.delete(keys)
    for one in outcomes:
        say(target, str(one))
