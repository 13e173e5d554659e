"""A table, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "number"]


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The title, and columns in line: the first one to the left, figures to the right."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return "\n".join([self.title, *("  ".join(map(_align, line, widths, range(len(widths)))) for line in lines)])

    def markdown(self) -> str:
        """The same for GitHub."""
        rule = ["---", *("---:" for _ in self.header[1:])]
        lines = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows)
        return "\n".join([f"**{self.title}**", "", f"| {' | '.join(self.header)} |", f"|{'|'.join(rule)}|", *lines])


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def number(value: float | None, digits: int, *, percent: bool = False) -> str:
    """With commas between thousands; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.{digits}%}" if percent else f"{value:,.{digits}f}"
