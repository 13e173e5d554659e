"""The global options, and the datapath that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pydatapath.datapath import Datapath

__all__ = ["Target", "say"]


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


def say(target: Target, text: str) -> None:
    """A line for people, unless --quiet."""
    if not target.quiet:
        click.echo(text)
