"""One measure over all cases, one after the other: a block of a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bench.host import ForeignLoad
from bench.measure import Begun, Measure
from bench.paths import ReadyCase
from bench.processes import BenchError
from bench.report import Sample

__all__ = ["OVERHEAD_S", "Event", "events", "measure_block", "warm_up"]

OVERHEAD_S = 0.35  # of a tool over what it is told to measure: its report, and room for one that starts late
WARM_UP_S = 1
Event: TypeAlias = tuple[float, Literal["start", "work", "end"], int]


def events(count: int, seconds: float, asleep_s: float) -> list[Event]:
    """When each of so many measurements starts, works and ends, in seconds from the first start.

    A tool that sleeps before it works is started while those before it work, so that nobody waits for its sleep. No two
    of them work at once: where nobody sleeps the next one is started when the one before has ended, however late.
    """
    apart = seconds + (OVERHEAD_S if asleep_s else 0)
    found: list[Event] = []
    for number in range(count):
        start = number * apart
        found += [
            (start, "start", number),
            (start + asleep_s, "work", number),
            (start + asleep_s + seconds, "end", number),
        ]
    first = {"end": 0, "start": 1, "work": 2}  # of those at one moment
    return sorted(found, key=lambda event: (round(event[0], 6), first[event[1]], event[2]))


@dataclass
class _Going:
    """One measurement of a block: when its work began, and what the machine has done since."""

    begun: Begun
    at_s: float = 0.0
    load: ForeignLoad | None = None


def measure_block(
    cases: Sequence[ReadyCase], measure: Measure, number: int, seconds: int, clock: Callable[[], float]
) -> Generator[Sample, None, None]:
    """A sample of each case; one that fails is a sample, too. `clock`: seconds since the run began."""
    going: dict[int, _Going] = {}
    start = time.monotonic()
    with ExitStack() as stack:
        for at, what, index in events(len(cases), seconds, measure.asleep_s):
            early = start + at - time.monotonic()
            if what != "end":
                time.sleep(max(0.0, early))
            if what == "start":
                start -= min(0.0, early)  # one that starts late has its whole time all the same
                going[index] = _Going(cases[index].begin(measure, seconds))
                stack.callback(going[index].begun.abandon)
            elif what == "work":
                going[index].at_s, going[index].load = round(clock(), 3), ForeignLoad()
            else:
                yield _ended(going[index], cases[index], measure, number, seconds)


def _ended(one: _Going, case: ReadyCase, measure: Measure, number: int, seconds: int) -> Sample:
    """What has come of it."""
    assert one.load
    values: dict[str, float] = {}
    failure = ""
    try:
        values = one.begun.end()
    except BenchError as error:
        failure = str(error)
    elapsed, others, ours = one.load.seconds()
    values |= measure.cpu(values, ours, seconds)
    return Sample(number, case.case.name, measure.name, one.at_s, round(others / elapsed, 3), values, failure)


def warm_up(cases: Sequence[ReadyCase], measure: Measure) -> None:
    """Each case once, all together, and thrown away: tables fill, and what does not work shows before the rounds."""
    with ExitStack() as stack:
        begun = []
        for each in cases:
            begun.append(each.begin(measure, WARM_UP_S))
            stack.callback(begun[-1].abandon)
        for each, one in zip(cases, begun, strict=True):
            try:
                one.end()
            except BenchError as error:
                raise BenchError(f"{each.case.name}: {measure.name} does not work: {error}") from None
