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

from bench.files import check_writable, result_path, save
from bench.host import ForeignLoad
from bench.options import between, check_resume, names_of, result_options
from bench.paths import sweep_stale
from bench.processes import BenchError
from bench.report import Results, Sample
from bench.resume import STOPPED, TOOK, take_up_sizes
from bench.rounds import PACKAGES, SIGNALS, Stopped, _stop, say
from bench.terminal import text

__all__ = [
    "RESUME",
    "Work",
    "began",
    "between",
    "finish",
    "main",
    "names_of",
    "numbers",
    "result_options",
    "sampled",
    "say",
    "setting",
    "undisturbed",
]

RESUME = "go on with the run in FILE, that was stopped, from the first size that it has not finished"
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


def _check_host(tools: Sequence[str], json: Path) -> None:
    """Raise BenchError, with the way out, for what would fail later."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces and loads programs, so it must run as root: use sudo")
    missing = {PACKAGES[tool] for tool in tools if shutil.which(tool) is None}
    if missing:
        raise BenchError(f"tools are missing: apt install {' '.join(sorted(missing))}")
    check_writable(json)
    # everything here is in namespaces of its own, which end with the run
    for name in sweep_stale():
        say(f"deleted {name}, left by an earlier run that was killed")


def began(results: Results) -> float:
    """When the first measurement began, by the monotonic clock: of a run that is taken up as if it had not stopped."""
    return time.monotonic() - max((sample.at_s for sample in results.samples), default=0.0)


def finish(results: Results, parameters: Mapping[str, int], path: Path) -> None:
    """All has been measured at this size: it is written, and need not be again."""
    results.finished.append(dict(parameters))
    save(results, path)


def main(
    name: str, make: Callable[[], Results], work: Work, arguments: argparse.Namespace, tools: Sequence[str]
) -> int:
    """Do the work on empty results, and keep what there is.

    0 done, 1 something failed, 2 it cannot be run, 128 + n ended by signal n.
    """
    for each in SIGNALS:
        signal.signal(each, _stop)
    start = time.monotonic()
    results = None
    ready = False
    code = 0
    try:
        check_resume(arguments)
        arguments.json = result_path(name, arguments.json)
        _check_host(tools, arguments.json)
        results = make()
        if arguments.resume:
            take_up_sizes(arguments.json, results)
        ready = True
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            work(results, Path(folder))
        results.load_average_end = os.getloadavg()
    except BenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = 1 if ready else 2
    except Stopped as stopped:
        say("stopped; everything is cleared up")
        code = 128 + int(stopped.args[0])
    if results is None or not results.samples:
        return code or 1
    if code:
        results.notes.append(STOPPED)
    results.notes.append(f"{TOOK}{time.monotonic() - start:.0f} s")
    print(text(results))
    save(results, arguments.json)
    if code > 128:
        say(f"go on with the same options and  --json {arguments.json} --resume")
    say(f"every raw value: {arguments.json}; pictures of it: python -m bench plot {arguments.json} --out FOLDER")
    return code or (1 if results.failures else 0)
