"""Tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from pydatapath.fields import visible

__all__ = ["dump", "output_option", "size", "table"]

Command = TypeVar("Command", bound=Callable[..., Any])


def output_option(command: Command) -> Command:
    """`-o table|wide|json|yaml`, the same on every command that reads."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "wide", "json", "yaml"]),
        default="table",
        show_default=True,
        help="The form of the answer.",
    )(command)


def dump(data: Any, form: str) -> None:
    """Prints data as JSON or YAML."""
    if form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False), nl=False)
    else:
        click.echo(json.dumps(data, indent=2))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints aligned columns under a head; numbers to the right. Nothing at all without rows but the head."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max([len(title), *(len(row[place]) for row in texts)]) for place, title in enumerate(head)]
    right = [_numeric([row[place] for row in rows]) for place in range(len(head))]
    for line in [list(head), *texts]:
        cells = [
            cell.rjust(width) if at else cell.ljust(width) for cell, width, at in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _numeric(column: Sequence[object]) -> bool:
    """Whether there are numbers in it, and nothing else but gaps."""
    found = [cell for cell in column if cell is not None]
    return bool(found) and all(isinstance(cell, int | float) for cell in found)


def _text(cell: object) -> str:
    if cell is None or cell == "":
        return "-"
    return visible(str(cell))


def size(count: int) -> str:
    """Bytes as people say them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
