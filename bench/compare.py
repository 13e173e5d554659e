"""Two runs of one benchmark: what has become better or worse, and what is noise.

    .venv/bin/python -m bench compare A.json B.json

Compared are ratios to the baseline of the same round at the same parameters (so many services), so that two machines,
or one at two moments, can be compared. A difference counts where it is larger than 2 %, and where hardly any way of
dealing the rounds to the two runs gives as large a one (a permutation test, Holm's correction for all lines together).
Exit code 0: nothing is worse; 1: something is; 2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.document import read
from bench.measures import Metric
from bench.report import At, Results, shown
from bench.resume import SAME

__all__ = ["Line", "compare", "least_p", "main", "permutation_p"]

ALPHA = 0.05  # of all lines together
LEAST = 0.02  # a smaller difference is none, however sure
EXACT = 20_000  # ways of dealing; where there are more, so many of them
WIDTH = 32  # of a case's name with its parameters
Verdict = Literal["equal", "better", "worse"]


@dataclass(frozen=True)
class Line:
    """One figure of one case: the medians of the ratios, and how sure it is that they differ."""

    case: str
    at: At
    metric: Metric
    before: float
    after: float
    p: float
    verdict: Verdict = "equal"

    @property
    def change(self) -> float:
        """By how much it is better (above 0) or worse."""
        return self.after / self.before - 1

    def __str__(self) -> str:
        name = f"{self.case} at {shown(self.at)}" if self.at else self.case
        title = f"{name:<{WIDTH}} {self.metric.title:<14}"
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


def least_p(first: int, second: int) -> float:
    """What `permutation_p` gives where so many rounds and so many others lie wholly apart.

    Where they are as many, the deal that exchanges them differs as much.
    """
    deals = math.comb(first + second, first)
    return (1 + (first == second)) / deals if deals <= EXACT else 1 / (EXACT + 1)


def _pairs(before: Results, after: Results) -> dict[str, str]:
    """Each case that both runs have, and the first of its baselines that both compare it with."""
    cases = [case for case in before.cases if case in after.cases]
    common = {case: [one for one in before.baselines_of(case) if one in after.baselines_of(case)] for case in cases}
    return {case: baselines[0] for case, baselines in common.items() if baselines}


def _lines(before: Results, after: Results) -> Iterator[Line]:
    """Every figure that both runs have of the same case at the same parameters."""
    if before.comparison != after.comparison:
        raise ValueError(f"A is a run of {before.comparison}, B of {after.comparison}")
    pairs = _pairs(before, after)
    if not pairs:
        raise ValueError("they have no case and its baseline in common")
    known = {metric.key for metric in after.judged}
    places = [at for at in before.places if at in after.places]
    for at, (case, baseline), metric in itertools.product(places, pairs.items(), before.judged):
        first, second = (run.ratios(case, baseline, metric, at) for run in (before, after))
        if metric.key in known and first and second:
            p = permutation_p([*map(math.log, first)], [*map(math.log, second)])
            yield Line(case, at, metric, statistics.median(first), statistics.median(second), p)


def compare(before: Results, after: Results) -> list[Line]:
    """All lines that both runs have, with their verdicts. Raises ValueError where they have no baseline in common."""
    lines = list(_lines(before, after))
    verdicts: dict[Line, Verdict] = {}
    sure = True
    for place, line in enumerate(sorted(lines, key=lambda one: one.p)):  # Holm 1979
        sure = sure and line.p <= ALPHA / (len(lines) - place)
        equal = not sure or abs(line.change) < LEAST
        verdicts[line] = "equal" if equal else "better" if line.change > 0 else "worse"
    return [replace(line, verdict=verdicts[line]) for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two files; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    arguments = parser.parse_args(argv)
    try:
        before, after = (Results.of(read(path)) for path in (arguments.before, arguments.after))
        lines = compare(before, after)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    title = f"{'case':<{WIDTH}} {'figure':<14} {'A':>6} {'B':>6} {'change':>7}"
    print(f"{title}  (times as good as the baseline of the round)")
    print("\n".join(map(str, lines)))
    for name in SAME:
        if before.environment.get(name) != after.environment.get(name):
            print(f"Note: {name} is {before.environment.get(name)} in A, {after.environment.get(name)} in B")
    first, second = (len({sample.round for sample in run.samples}) for run in (before, after))
    if least_p(first, second) > ALPHA / max(len(lines), 1):
        print(f"Note: {first} and {second} rounds are too few for any difference to be sure among {len(lines)} figures")
    worse = [one for one in lines if one.verdict == "worse"]
    print(f"{len(lines)} figures: {len(worse)} worse, {sum(one.verdict == 'better' for one in lines)} better")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
