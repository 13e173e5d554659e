"""Pictures and Markdown tables of results.

    .venv/bin/python -m bench plot RESULT.json [...] --out DIR [--png] [--markdown FILE | --into FILE]

A measurement at one size becomes bars, one figure per measure: medians, with quartiles. One at several sizes (services,
endpoints, flows) becomes a curve for each case. `--into` writes the Markdown into a page, between two comments, and
leaves the rest of it alone. The same results give the same bytes. Exit code 0; 2 for a file that is
no result.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.document import read
from bench.markdown import BEGIN, markdown, replaced
from bench.measures import Metric
from bench.report import Results, Spread
from bench.tables import number
from bench.words import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "main"]

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for a line; black last
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LETTER = 0.075  # inches of one, as small as beside the bars
SPREAD_OVER = 5.0  # the largest value over the smallest, from which on an axis is logarithmic
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "pydatapath",
    "font.size": 10,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure, by the end of its file's name."""

    name: str
    figure: Figure


def _looks(results: Results) -> dict[str, tuple[str, str]]:
    """Colour and marker of each case: the same in all pictures of a run."""
    return {
        case: (PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]) for place, case in enumerate(results.cases)
    }


def _around(found: Spread) -> tuple[float, float]:
    """How far the quartiles lie below and above the median."""
    return found.median - found.q1, found.q3 - found.median


def _bars(results: Results, metric: Metric) -> Picture | None:
    """One bar for each case, at the one size there is; behind it its value, on the right ratios to its baselines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = {case: one for case in results.cases if (one := results.spread(case, metric.key))}
    if not found:
        return None
    looks = _looks(results)
    beside = {case: _beside(results, case, metric) for case in found}
    width = 7.6 + LETTER * max(map(len, beside.values()))
    figure = Figure(figsize=(width, 1.2 + 0.42 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (case, one) in enumerate(found.items()):
        low, high = _around(one)
        axes.barh(place, one.median, xerr=[[low], [high]], color=looks[case][0], height=0.62, capsize=3)
        axes.annotate(f"  {number(one.median, metric.digits)}", (one.q3, place), va="center", fontsize=9)
        axes.annotate(beside[case], (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [*found])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(one.q3 for one in found.values()) * 1.32)
    axes.set_xlabel(metric.title)
    axes.xaxis.set_major_locator(MaxNLocator(4))  # few: large numbers are long
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    figure.suptitle(title(metric), x=0.01, ha="left")
    also = "; on the right: times as good as the case named there, in the same round" if any(beside.values()) else ""
    _say_below(figure, f"{_rounds(results)}{also}")
    return Picture(metric.key, figure)


def _beside(results: Results, case: str, metric: Metric) -> str:
    """The ratios to its baselines of the same round."""
    ratios = {name: results.ratio(case, name, metric) for name in results.baselines_of(case)}
    return ", ".join(f"{one.median:.2f} x {name}" for name, one in ratios.items() if one)


def _rounds(results: Results) -> str:
    """How the figures came about."""
    rounds = len({sample.round for sample in results.samples})
    return f"median and quartiles of {rounds} rounds" if rounds > 1 else "one round"


def _say_below(figure: Figure, text: str) -> None:
    figure.text(0.995, -0.01, text, ha="right", va="top", fontsize=8)


def _curve(results: Results, metric: Metric, size: str) -> Picture | None:
    """A line for each case over the sizes."""
    from matplotlib.figure import Figure

    places = [at for at in results.places if [name for name, _ in at] == [size]]
    lines = {
        case: [(at[0][1], one) for at in places if (one := results.spread(case, metric.key, at))]
        for case in results.cases
    }
    lines = {case: line for case, line in lines.items() if line}
    if len(places) < 2 or not lines:
        return None
    looks = _looks(results)
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for case, line in lines.items():
        colour, marker = looks[case]
        axes.errorbar(
            [value for value, _ in line],
            [one.median for _, one in line],
            yerr=[*zip(*(_around(one) for _, one in line), strict=True)],
            color=colour,
            marker=marker,
            label=case,
            capsize=3,
            linewidth=1.6,
        )
    _scale(
        axes,
        [value for line in lines.values() for value, _ in line],
        [one for line in lines.values() for _, one in line],
    )
    axes.set_xlabel(f"number of {size}")
    axes.set_ylabel(metric.title)
    figure.suptitle(title(metric), x=0.01, ha="left")
    figure.legend(loc="outside right center")
    _say_below(figure, _rounds(results))
    return Picture(f"{size}-{metric.key}", figure)


def _scale(axes: Axes, sizes: Sequence[int], found: Sequence[Spread]) -> None:
    """Sizes by their powers of ten (0 has a place, too); values so where they lie far apart, else from 0 on."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    if min(sizes) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=max(1, min(filter(None, sizes), default=1)), linscale=0.5)
    axes.set_xticks(sorted(set(sizes)), [f"{size:,}" for size in sorted(set(sizes))])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = min(one.median for one in found), max(one.q3 for one in found)
    if low > 0 and high / low > SPREAD_OVER:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        decades = high / low > 30
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, high * 1.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def draw(results: Results) -> Iterator[Picture]:
    """All pictures of a run: of those figures of which more or less is better."""
    sizes = sorted({name for at in results.places for name, _ in at})
    for metric in results.judged:
        made = [_bars(results, metric), *(_curve(results, metric, size) for size in sizes)]
        yield from filter(None, made)


def _save(figure: Figure, stem: Path, kinds: Sequence[str]) -> Iterator[Path]:
    for kind in kinds:
        path = stem.with_name(f"{stem.name}.{kind}")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, metadata=metadata, dpi=120, bbox_inches="tight")
        yield path


def _stems(paths: Sequence[Path]) -> list[str]:
    """What the pictures of each file are called after: its name without a date, where that tells them apart."""
    short = [re.sub(r"^\d{4}-\d\d-\d\d-\d{6}-", "", path.stem) for path in paths]
    return short if len(set(short)) == len(short) else [path.stem for path in paths]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench plot", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the pictures there, as SVG")
    parser.add_argument("--png", action="store_true", help="also as PNG")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--markdown", type=Path, metavar="FILE", help="write tables, pictures and goals to FILE")
    wanted.add_argument("--into", type=Path, metavar="FILE", help=f"the same, in place of what FILE has after {BEGIN}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draws and writes; the exit code."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    page = arguments.markdown or arguments.into
    if not arguments.out and not page:
        parser.error("--out, --markdown or --into says what is wanted")
    try:
        found = [Results.of(read(path)) for path in arguments.results]
        before = arguments.into.read_text() if arguments.into else None
        if before is not None:
            replaced(before, "")
        runs = dict(zip(_stems(arguments.results), found, strict=True))
        kinds = ["svg", *(["png"] if arguments.png else [])]
        drawn = [*_pictures(runs, arguments.out, kinds)] if arguments.out else []
        if page:
            links = {
                (stem, name): os.path.relpath(path, page.parent) for stem, name, path in drawn if path.suffix == ".svg"
            }
            text = markdown(runs, links)
            page.write_text(text if before is None else replaced(before, text))
        for path in [*(path for _, _, path in drawn), *([page] if page else [])]:
            print(path)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _pictures(runs: Mapping[str, Results], folder: Path, kinds: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Writes all of them: run, name and file. Raises ValueError where matplotlib is not there."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install '.[bench]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for stem, run in runs.items():
            for picture in draw(run):
                for path in _save(picture.figure, folder / f"{stem}-{picture.name}", kinds):
                    yield stem, picture.name, path


if __name__ == "__main__":
    sys.exit(main())
