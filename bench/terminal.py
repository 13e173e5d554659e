"""A result as text: a table for each workload, as many figures beside each other as a terminal has room for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bench.measures import Metric
from bench.report import At, Results, shown
from bench.tables import Table, number

__all__ = ["tables", "text"]

WIDTH = 120  # of a table; a single figure has one however wide


def _cells(results: Results, case: str, metric: Metric, at: At) -> list[str]:
    """Median; where one value is better than another also its quartiles, and the ratios to its baselines."""
    found = results.spread(case, metric.key, at)
    cells = [number(found.median if found else None, metric.digits)]
    if not metric.better:
        return cells
    ratios = [results.ratio(case, name, metric, at) for name in results.baselines_of(case)]
    times = " ".join(number(one.median if one else None, 2).rjust(4) for one in ratios) if any(ratios) else "-"
    return [*cells, found.quartiles() if found and found.rounds > 1 else "-", times]


def _table(results: Results, title: str, places: Sequence[At], metrics: Sequence[Metric]) -> Table:
    """A line for each case and size of which anything is known; with its baselines, in the order of the ratios."""
    header = ["case", "beside"]
    for metric in metrics:
        header += [metric.title, "quartiles", "x"] if metric.better else [metric.title]
    rows = []
    for at, case in itertools.product(places, results.cases):
        if any(results.spread(case, metric.key, at) for metric in metrics):
            beside = " ".join(results.baselines_of(case)) or "-"
            cells = [cell for metric in metrics for cell in _cells(results, case, metric, at)]
            rows.append([f"{shown(at)}: {case}" if at else case, beside, *cells])
    return Table(title, header, rows, texts=2).without_empty()


def tables(results: Results) -> Iterator[Table]:
    """All of them: by what there are sizes of, then by workload."""
    for (names, places), (workload, metrics) in itertools.product(results.sizes.items(), results.workloads.items()):
        title = f"{workload}, by {' and '.join(names)}" if names else workload
        seen = [
            one for one in metrics if any(results.spread(case, one.key, at) for case in results.cases for at in places)
        ]
        while seen:
            fitting = next(
                count
                for count in range(len(seen), 0, -1)
                if count == 1 or _table(results, title, places, seen[:count]).width <= WIDTH
            )
            yield _table(results, title, places, seen[:fitting])
            seen = seen[fitting:]


def text(results: Results) -> str:
    """The tables, and what a reader has to know beside them."""
    width = max(map(len, results.cases), default=0)
    parts = [
        f"{results.how()}",
        "Medians, and the quartiles of the rounds as parts of them: what differs by less says little. x: times as good",
        "as the cases named beside it, in the same round; above 1.00 is better, for latency and processor time, too.\n",
        *(f"{table.text()}\n" for table in tables(results)),
    ]
    parts += [f"{name:<{width}}  {what}" for name, what in results.cases.items()]
    return "\n".join(parts + results.remarks())
