"""A table, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "number"]


@dataclass(frozen=True)
class Table:
    """The first `texts` columns are text, the others are figures; no title where a heading says it already."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    @property
    def width(self) -> int:
        """Of its lines, the title apart."""
        return max(map(len, self._lines()))

    def without_empty(self) -> Table:
        """Without the columns in which there is nothing but dashes."""
        kept = [i for i in range(len(self.header)) if not self.rows or any(row[i] != "-" for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table(self.title, [self.header[i] for i in kept], rows, sum(i < self.texts for i in kept))

    def text(self) -> str:
        """The title, and columns in line: text to the left, figures to the right."""
        return "\n".join([*filter(None, [self.title]), *self._lines()])

    def _lines(self) -> list[str]:
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return ["  ".join(map(self._align, line, widths, range(len(widths)))).rstrip() for line in lines]

    def _align(self, cell: str, width: int, column: int) -> str:
        return cell.ljust(width) if column < self.texts else cell.rjust(width)

    def markdown(self) -> str:
        """The same for GitHub."""
        rule = ["---" if column < self.texts else "---:" for column in range(len(self.header))]
        lines = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows)
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, f"| {' | '.join(self.header)} |", f"|{'|'.join(rule)}|", *lines])


def number(value: float | None, digits: int, *, percent: bool = False) -> str:
    """With commas between thousands; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.{digits}%}" if percent else f"{value:,.{digits}f}"
