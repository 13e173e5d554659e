"""Two runs of one benchmark: what has become better or worse, and what is noise.

    .venv/bin/python -m bench.compare A.json B.json

Compared are ratios to the baseline of the same round, so that two machines, or one at two moments, can be compared. A
difference counts where it is larger than 2 %, and where hardly any way of dealing the rounds to the two runs gives as
large a one (a permutation test, Holm's correction for all lines together). Exit code 0: nothing is worse; 1: something
is; 2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.measures import METRICS, Metric

__all__ = ["Line", "compare", "main", "permutation_p"]

ALPHA = 0.05  # of all lines together
LEAST = 0.02  # a smaller difference is none, however sure
EXACT = 20_000  # ways of dealing; where there are more, so many of them
SAME = ("kernel", "machine", "cpu", "cores")


@dataclass(frozen=True)
class Line:
    """One figure of one case: the medians of the ratios, and how sure it is that they differ."""

    case: str
    metric: Metric
    before: float
    after: float
    p: float
    verdict: Literal["equal", "better", "worse"] = "equal"

    @property
    def change(self) -> float:
        """By how much it is better (above 0) or worse."""
        return self.after / self.before - 1

    def __str__(self) -> str:
        title = f"{self.case:<16} {self.metric.title:<14}"
        return f"{title} {self.before:6.3f} {self.after:6.3f} {self.change:+7.1%}  p {self.p:.4f}  {self.verdict}"


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """How often rounds dealt to two runs at random differ in their means as much as these: exact, or of EXACT deals."""
    pooled, size = [*first, *second], len(first)
    total, wanted = sum(pooled), abs(statistics.mean(first) - statistics.mean(second)) - 1e-12

    def differs(part: Sequence[float]) -> bool:
        mine = sum(part)
        return abs(mine / size - (total - mine) / (len(pooled) - size)) >= wanted

    if math.comb(len(pooled), size) <= EXACT:
        deals = [differs(part) for part in itertools.combinations(pooled, size)]
        return sum(deals) / len(deals)
    chance = random.Random(1)
    return (1 + sum(differs(chance.sample(pooled, size)) for _ in range(EXACT))) / (EXACT + 1)


def _ratios(run: Mapping[str, Any], case: str, baseline: str, metric: Metric) -> list[float]:
    """The logarithms of how many times as good as the baseline it was, round by round."""
    rounds: dict[str, dict[int, float]] = {case: {}, baseline: {}}
    for sample in run["samples"]:
        value = sample["values"].get(metric.key)
        if value and sample["case"] in rounds:
            rounds[sample["case"]][sample["round"]] = value
    own, base = rounds[case], rounds[baseline]
    return [metric.better * math.log(own[one] / base[one]) for one in sorted(own.keys() & base.keys())]


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    baselines = [one for one in before["times_as_good_as"] if one in after["times_as_good_as"]]
    if not baselines:
        raise ValueError("they have no baseline in common")
    baseline = baselines[0]
    for case in before["medians"]:
        if case == baseline or case not in after["medians"]:
            continue
        for metric in METRICS:
            first, second = (_ratios(run, case, baseline, metric) for run in (before, after))
            if metric.better and first and second:
                medians = (math.exp(statistics.median(one)) for one in (first, second))
                yield Line(case, metric, *medians, permutation_p(first, second))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Line]:
    """All lines that both runs have, with their verdicts. Raises ValueError where they have no baseline in common."""
    lines = list(_lines(before, after))
    judged, sure = [], True
    for place, line in enumerate(sorted(lines, key=lambda one: one.p)):  # Holm 1979
        sure = sure and line.p <= ALPHA / (len(lines) - place)
        verdict = "equal" if not sure or abs(line.change) < LEAST else "better" if line.change > 0 else "worse"
        judged.append(Line(line.case, line.metric, line.before, line.after, line.p, verdict))
    order = {(one.case, one.metric.key): place for place, one in enumerate(lines)}
    return sorted(judged, key=lambda one: order[one.case, one.metric.key])


def _read(path: Path) -> dict[str, Any]:
    """Raises ValueError for what is no result."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(found, dict) or not {"samples", "medians", "times_as_good_as", "environment"} <= found.keys():
        raise ValueError(f"{path}: it is no result of a benchmark of ours")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two files; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    arguments = parser.parse_args(argv)
    try:
        before, after = _read(arguments.before), _read(arguments.after)
        lines = compare(before, after)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{'case':<16} {'figure':<14} {'A':>6} {'B':>6} {'change':>7}  (times as good as the baseline of the round)")
    print("\n".join(map(str, lines)))
    for name in SAME:
        if before["environment"].get(name) != after["environment"].get(name):
            print(f"Note: {name} is {before['environment'].get(name)} in A, {after['environment'].get(name)} in B")
    few = min(len({sample["round"] for sample in run["samples"]}) for run in (before, after))
    least = 1 / math.comb(2 * few, few)
    if least > ALPHA / max(len(lines), 1):
        print(f"Note: {few} rounds are too few for any difference to be sure among {len(lines)} figures")
    worse = [one for one in lines if one.verdict == "worse"]
    print(f"{len(lines)} figures: {len(worse)} worse, {sum(one.verdict == 'better' for one in lines)} better")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
