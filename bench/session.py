"""What the comparisons of sizes share: one run from empty to empty, stopped by a signal without leaving anything."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from bench.host import ForeignLoad
from bench.options import between, names_of
from bench.paths import ROOT, sweep_stale
from bench.processes import BenchError
from bench.report import Results, Sample
from bench.rounds import PACKAGES, SIGNALS, Stopped, _stop, say

__all__ = ["Work", "between", "main", "names_of", "numbers", "sampled", "say", "setting", "undisturbed"]

Work: TypeAlias = Callable[[Results, Path], None]


def numbers(low: int, high: int) -> Callable[[str], list[int]]:
    """A parser of whole numbers with commas between them, each once, ascending."""

    def parse(text: str) -> list[int]:
        return sorted({between(low, high)(one.strip()) for one in text.split(",") if one.strip()})

    return parse


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Clear up between two sizes: a signal that comes meanwhile stops the run, but afterwards."""
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {each: signal.signal(each, remember) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def setting() -> Iterator[ExitStack]:
    """A stack for what one size needs; it is cleared up undisturbed."""
    stack = ExitStack()
    try:
        yield stack
    finally:
        with undisturbed():
            stack.close()


def sampled(sample: Sample, work: Callable[[], Mapping[str, float]]) -> Sample:
    """The sample with its figures; one that fails is a sample, too, and the run goes on."""
    others = ForeignLoad()
    values: Mapping[str, float] = {}
    error = ""
    try:
        values = work()
    except BenchError as failed:
        error = str(failed)
    place = (sample.round, sample.case, sample.measure, sample.at_s)
    return Sample(*place, others.cores(), values, error, sample.parameters)


def _check_host(tools: Sequence[str], json: Path | None) -> None:
    """Raise BenchError, with the way out, for what would fail later."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces and loads programs, so it must run as root: use sudo")
    missing = {PACKAGES[tool] for tool in tools if shutil.which(tool) is None}
    if missing:
        raise BenchError(f"tools are missing: apt install {' '.join(sorted(missing))}")
    if json and not os.access(json.resolve().parent, os.W_OK):
        raise BenchError(f"{json}: cannot be written there")
    # everything here is in namespaces of its own, which end with the run
    for name in sweep_stale():
        say(f"deleted {name}, left by an earlier run that was killed")


def main(make: Callable[[], Results], work: Work, arguments: argparse.Namespace, tools: Sequence[str]) -> int:
    """Do the work on empty results; 0 done, 1 something failed, 128 + n ended by signal n. What there is, is kept."""
    for each in SIGNALS:
        signal.signal(each, _stop)
    began = time.monotonic()
    results = None
    code = 0
    try:
        _check_host(tools, arguments.json)
        results = make()
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            work(results, Path(folder))
        results.load_average_end = os.getloadavg()
    except BenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = 1
    except Stopped as stopped:
        say("stopped; everything is cleared up")
        code = 128 + int(stopped.args[0])
    if results is None or not results.samples:
        return code or 1
    if code:
        results.notes.append("stopped before its end")
    results.notes.append(f"the run took {time.monotonic() - began:.0f} s")
    print(results.text())
    if arguments.json:
        results.write_json(arguments.json)
        say(f"pictures of it: {sys.executable} -m bench.plot {arguments.json} --out {ROOT / 'bench' / 'plots'}")
    return code or (1 if results.failures else 0)
