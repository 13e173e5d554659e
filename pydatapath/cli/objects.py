"""`apply`, `diff`, `delete` and `export`: Kubernetes manifests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pydatapath.cli.target import Target, complain, say, unsaid

if TYPE_CHECKING:
    from pydatapath.manifests import Loaded
    from pydatapath.views import Difference

__all__ = ["apply", "delete", "diff", "export"]

_files = click.option(
    "-f", "--filename", multiple=True, metavar="FILE|DIR|-", help="Manifests, YAML or JSON; repeatable."
)
SKIPPED = "pydatapath reads Services, EndpointSlices and Nodes"
KINDS = {"service": "Service", "svc": "Service", "endpointslice": "EndpointSlice", "node": "Node", "no": "Node"}


@click.command()
@_files
@click.option("--prune", is_flag=True, help="Delete every object that is not in the manifests.")
@click.option(
    "--dry-run",
    is_flag=False,
    flag_value="server",
    default="none",
    type=click.Choice(["none", "client", "server"]),
    metavar="[=server]",
    help="Only say what would become of each object. kubectl's words client and server are one thing here.",
)
@click.option("--keep-going", is_flag=True, help="Make what is good, and leave bad objects as they were; exit code 1.")
@click.pass_obj
def apply(target: Target, filename: tuple[str, ...], prune: bool, dry_run: str, keep_going: bool) -> None:
    """Make the Services, EndpointSlices and Nodes of manifests; all of them, or none where one is wrong.

    Every object that is wrong is named. Other kinds that Kubernetes has are named and skipped. Of fields that a kind
    has not there is a warning.

    \b
    Examples:
      pydatapath apply -f web.yaml
      pydatapath apply --keep-going -f services/
      kubectl get services,endpointslices,nodes -A -o json | pydatapath apply --prune -f -
    """
    if not filename:
        raise click.UsageError("which manifests? -f FILE, -f DIR or -f - (standard input)")
    from pydatapath import manifests
    from pydatapath.errors import Refused

    is_dry = dry_run != "none"
    with target.open() as datapath:
        loaded = manifests.read(filename, keep_going=True)
        _refuse_to_empty(loaded, prune=prune)
        try:
            outcomes = datapath.apply(
                loaded.objects, prune=prune, dry_run=is_dry, keep_going=keep_going, faults=loaded.faults
            )
        except Refused as refused:
            complain(refused)
            sys.exit(1)
    say(target, *(f"{one}{' (dry run)' if is_dry else ''}" for one in outcomes if one.error is None))
    say(target, *(f"{title} skipped: {SKIPPED}" for title in loaded.skipped))
    for warning in dict.fromkeys(text for one in outcomes for text in one.warnings):
        if not target.quiet:
            click.echo(f"Warning: {warning}", err=True)
    errors = [*loaded.faults, *(one.error for one in outcomes if one.error)]
    if prune and any(fault.key is None for fault in loaded.faults):
        click.echo("Error: nothing is pruned, because not all objects could be read", err=True)
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if hints := dict.fromkeys(error.hint for error in errors if error.hint):
        click.echo(f"Hint: {'; '.join(hints)}", err=True)
    if errors:
        sys.exit(1)


def _refuse_to_empty(loaded: Loaded, *, prune: bool) -> None:
    """Raises DatapathError where all would be pruned because the manifests are of other kinds: the wrong file."""
    from pydatapath.errors import DatapathError

    if prune and loaded.skipped and not loaded.objects and not loaded.faults:
        raise DatapathError(
            f"no Service, EndpointSlice or Node is in the manifests ({loaded.skipped[0]} is of no use here): --prune"
            " would delete all there are",
            hint="a `kind: List` with `items: []` says so",
        )


@click.command()
@_files
@click.option("--prune", is_flag=True, help="Also what is not in the manifests, which `apply --prune` deletes.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["diff", "json", "yaml"]),
    default="diff",
    show_default=True,
    help="Unified diffs, or a list of what would change.",
)
@click.pass_obj
def diff(target: Target, filename: tuple[str, ...], prune: bool, output: str) -> None:
    """What apply would change, as unified diffs of the manifests; nothing is done.

    LIVE is what is applied now, MERGED what would be. Exit code 0: nothing would change; 1: something would; 2 and
    more: an error.

    \b
    Examples:
      pydatapath diff -f web.yaml
      pydatapath diff -f services/ --prune -o json
      kubectl get services,endpointslices,nodes -A -o json | pydatapath diff --prune -f -
    """
    if not filename:
        raise click.UsageError("which manifests? -f FILE, -f DIR or -f - (standard input)")
    from pydatapath import manifests
    from pydatapath.errors import DatapathError

    try:
        with target.open() as datapath:
            loaded = manifests.read(filename, keep_going=True)
            _refuse_to_empty(loaded, prune=prune)
            found, warnings = datapath.diff(loaded.objects, prune=prune, faults=loaded.faults)
    except DatapathError as error:  # 1 would say that there are differences
        complain(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    try:
        _print_differences(found, output)
    except OSError as error:
        complain(unsaid(error))
        sys.exit(2)
    if not target.quiet:
        for title in loaded.skipped:
            click.echo(f"{title} skipped: {SKIPPED}", err=True)
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
    sys.exit(1 if found else 0)


def _print_differences(found: Sequence[Difference], output: str) -> None:
    from pydatapath.cli.output import dump

    if output == "diff":
        click.echo("".join(one.diff for one in found), nl=False)
    else:
        dump([asdict(one) for one in found], output)


@click.command()
@_files
@click.option("--ignore-not-found", is_flag=True, help="What does not exist is no error.")
@click.argument("kind_and_names", nargs=-1, metavar="[KIND NAME...|KIND/NAME...]")
@click.pass_obj
def delete(target: Target, filename: tuple[str, ...], ignore_not_found: bool, kind_and_names: tuple[str, ...]) -> None:
    """Delete objects, by manifest or by kind and name.

    As with kubectl all others are deleted where one does not exist; exit code 1 then.

    \b
    Examples:
      pydatapath delete -f web.yaml
      pydatapath delete service web
      pydatapath delete svc/web svc/db
      pydatapath delete endpointslice default/web-1
      pydatapath delete node worker-2
    """
    from pydatapath.errors import Refused

    if bool(filename) == bool(kind_and_names):
        raise click.UsageError("either -f FILE, or KIND and NAME")
    named = _named(kind_and_names) if kind_and_names else []
    with target.open() as datapath:
        keys = _keys(filename) if filename else named
        outcomes = datapath.delete(keys, keep_going=True)
    for one in outcomes:
        if one.error is None:
            say(target, str(one))
    errors = [] if ignore_not_found else [one.error for one in outcomes if one.error]
    if errors:
        complain(Refused(errors))
        sys.exit(1)


def _named(words: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Kind, namespace and name of `KIND NAME...`, or of `KIND/NAME...`. Raises UsageError."""
    from pydatapath.kinds import split_key

    kind, slash, _ = words[0].partition("/")
    pairs = [one.partition("/")[::2] for one in words] if slash else [(kind, name) for name in words[1:]]
    keys = [
        (known, *split_key(name, known))
        for kind, name in pairs
        if name and (known := KINDS.get(kind.lower().removesuffix("s")))
    ]
    if not pairs or len(keys) < len(pairs):
        raise click.UsageError("service, endpointslice or node and one NAME or more, or such as service/NAME each")
    return keys


def _keys(filename: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Kind, namespace and name of all objects in manifests."""
    from pydatapath import manifests
    from pydatapath.errors import Refused

    try:
        return [(type(one).__name__, one.namespace, one.name) for one in manifests.read(filename).objects]
    except Refused as refused:
        complain(refused)
        sys.exit(1)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="YAML documents, or one JSON List.",
)
@click.pass_obj
def export(target: Target, output: str) -> None:
    """What is applied, as manifests that `apply` takes back, also on another host.

    Ports that `port-forward` made are no objects and not among them.

    \b
    Examples:
      pydatapath export > backup.yaml
      pydatapath export -o json | pydatapath --netns node2 apply --prune -f -
    """
    from pydatapath.cli.output import dump
    from pydatapath.documents import to_yaml

    with target.open() as datapath:
        found = datapath.manifests()
    if output == "yaml" and found:
        click.echo(to_yaml(found), nl=False)
    else:  # of nothing a List, too: a file without a document is an error to `apply`
        dump({"apiVersion": "v1", "kind": "List", "items": found}, output)
