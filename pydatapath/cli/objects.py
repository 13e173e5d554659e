"""`apply` and `delete`: Kubernetes manifests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from pydatapath.cli.target import Target, say

if TYPE_CHECKING:
    from pydatapath.errors import Refused

__all__ = ["apply", "delete"]

_files = click.option(
    "-f", "--filename", multiple=True, metavar="FILE|DIR|-", help="Manifests, YAML or JSON; repeatable."
)
KINDS = {"service": "Service", "svc": "Service", "endpointslice": "EndpointSlice"}


@click.command()
@_files
@click.option("--prune", is_flag=True, help="Delete every object that is not in the manifests.")
@click.option("--dry-run", is_flag=True, help="Only say what would become of each object.")
@click.option("--keep-going", is_flag=True, help="Make what is good, and leave bad objects as they were; exit code 1.")
@click.pass_obj
def apply(target: Target, filename: tuple[str, ...], prune: bool, dry_run: bool, keep_going: bool) -> None:
    """Make the Services and EndpointSlices of manifests; all of them, or none where one is wrong.

    Every object that is wrong is named. Other kinds that Kubernetes has are named and skipped.

    \b
    Examples:
      pydatapath apply -f web.yaml
      pydatapath apply --keep-going -f services/
      kubectl get services,endpointslices -A -o json | pydatapath apply --prune -f -
    """
    if not filename:
        raise click.UsageError("which manifests? -f FILE, -f DIR or -f - (standard input)")
    from pydatapath import manifests
    from pydatapath.errors import Refused

    with target.open() as datapath:
        loaded = manifests.read(filename, keep_going=True)
        try:
            outcomes = datapath.apply(
                loaded.objects, prune=prune, dry_run=dry_run, keep_going=keep_going, faults=loaded.faults
            )
        except Refused as refused:
            _fail(refused)
    for one in outcomes:
        if one.error is None:
            say(target, f"{one}{' (dry run)' if dry_run else ''}")
    for title in loaded.skipped:
        say(target, f"{title} skipped: pydatapath reads Services and EndpointSlices")
    for warning in dict.fromkeys(text for one in outcomes for text in one.warnings):
        if not target.quiet:
            click.echo(f"Warning: {warning}", err=True)
    errors = [*loaded.faults, *(one.error for one in outcomes if one.error)]
    if prune and any(fault.key is None for fault in loaded.faults):
        click.echo("Error: nothing is pruned, because not all objects could be read", err=True)
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if errors:
        _hint("; ".join(dict.fromkeys(error.hint for error in errors if error.hint)))
        sys.exit(1)


def _fail(refused: Refused) -> NoReturn:
    """Each bad object is an error of its own, so that all are mended at once."""
    for sentence in refused.sentences:
        click.echo(f"Error: {sentence}", err=True)
    _hint(refused.hint)
    sys.exit(1)


def _hint(text: str) -> None:
    if text:
        click.echo(f"Hint: {text}", err=True)


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
            keys = _keys(filename)
        else:
            kind = KINDS.get(kind_and_names[0].lower().removesuffix("s"))
            if kind is None or len(kind_and_names) == 1:
                raise click.UsageError("KIND is service or endpointslice, and one NAME or more follow")
            keys = [(kind, *split_key(name)) for name in kind_and_names[1:]]
        outcomes = datapath.delete(keys)
    for one in outcomes:
        say(target, str(one))


def _keys(filename: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Kind, namespace and name of all objects in manifests."""
    from pydatapath import manifests
    from pydatapath.errors import Refused

    try:
        return [(type(one).__name__, one.namespace, one.name) for one in manifests.read(filename).objects]
    except Refused as refused:
        _fail(refused)
