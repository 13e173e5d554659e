"""The global options, and the datapath that they mean."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pydatapath.datapath import Datapath
    from pydatapath.errors import DatapathError

__all__ = ["Target", "complain", "say", "unsaid"]


@dataclass(frozen=True)
class Target:
    """Which datapath is meant, and how much to say."""

    instance: str
    netns: str
    verbose: bool = False
    quiet: bool = False

    def open(self) -> Datapath:
        """The loaded datapath. Raises NotLoaded."""
        from pydatapath.datapath import Datapath

        return Datapath.open(self.instance, self.netns)


def say(target: Target, *lines: str) -> None:
    """Lines for people, unless --quiet; in one piece: each call of click's looks at the terminal for some 70 us."""
    if lines and not target.quiet:
        from pydatapath.fields import visible

        click.echo("\n".join(map(visible, lines)))


def unsaid(error: OSError) -> DatapathError:
    """What a command says whose answer cannot be written: it comes behind all that was to be done."""
    from pydatapath.errors import DatapathError

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try once more at its end
    return DatapathError(
        f"what is to be said cannot be written: {error.strerror}", hint="what was to be changed is changed"
    )


def complain(error: DatapathError) -> None:
    """What went wrong, and what to do about it. Of several errors each has its own line, so that all are mended."""
    from pydatapath.fields import visible

    with contextlib.suppress(OSError):  # nobody can be told
        for sentence in getattr(error, "sentences", (str(error),)):
            click.echo(visible(f"Error: {sentence}"), err=True)
        if error.hint:
            click.echo(visible(f"Hint: {error.hint}"), err=True)
