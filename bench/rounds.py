"""What every comparison here does alike: host checks, interleaved rounds, report, and clearing up."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.blocks import OVERHEAD_S, measure_block, warm_up
from bench.files import check_writable, result_path, save
from bench.host import wait_for_quiet
from bench.measure import Measure
from bench.measures import CONGESTION
from bench.options import Comparison, check_resume, settle
from bench.paths import Case, ReadyCase, ready, sweep_stale
from bench.processes import BenchError
from bench.progress import Progress, duration
from bench.report import Results, environment
from bench.resume import take_up
from bench.terminal import text

__all__ = ["main"]

WARM_UP_BLOCK_S = 3.0  # what one measure's warm-up may take
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PACKAGES = {  # each tool, and the Debian package that has it
    "ip": "iproute2",
    "ss": "iproute2",
    "iperf3": "iperf3",
    "iptables-restore": "iptables",
    "nft": "nftables",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "sockperf": "sockperf",
    "sysctl": "procps",
    "taskset": "util-linux",
    "unshare": "util-linux",
    "wrk": "wrk",
}
MEASURING = {"iperf3", "nginx", "sockperf", "wrk"}  # needed only by the measures that use them


class Stopped(BaseException):
    """A signal asked us to stop; carries its number. Not an Exception: nothing may swallow it on its way out."""


def _stop(signum: int, _frame: FrameType | None) -> None:
    """Stop at the first signal, and let no second one cut the clearing up short."""
    _clear_up_undisturbed()
    raise Stopped(signum)


def _clear_up_undisturbed() -> None:
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)  # not SIG_IGN, which our child processes would inherit


@dataclass
class Run:
    """One run of a comparison: what it measures, what it has measured, and where that goes."""

    comparison: Comparison
    arguments: argparse.Namespace
    path: Path
    cases: Sequence[Case]
    measures: Sequence[Measure]
    results: Results

    @property
    def left(self) -> int:
        """How many measurements are missing."""
        wanted: int = self.arguments.rounds * len(self.cases) * len(self.measures)
        return wanted - len(self.results.samples)

    @property
    def expected_s(self) -> float:
        """How long the warm-up and what is missing take, if all goes well."""
        return len(self.measures) * WARM_UP_BLOCK_S + self.left * (float(self.arguments.duration) + OVERHEAD_S)


def say(text: str) -> None:
    """For people: stdout has the result only."""
    print(text, file=sys.stderr, flush=True)


def check_host(path: Path, measures: Sequence[Measure]) -> None:
    """Raise BenchError, with the way out, for what would fail later."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces and loads programs, so it must run as root: use sudo")
    spared = MEASURING - set().union(*(measure.tools for measure in measures))
    missing = {package for tool, package in PACKAGES.items() if tool not in spared and shutil.which(tool) is None}
    if missing:
        raise BenchError(f"tools are missing: apt install {' '.join(sorted(missing))}")
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if CONGESTION not in known:
        raise BenchError(f"this kernel has no congestion control {CONGESTION}: modprobe tcp_{CONGESTION}")
    check_writable(path)


def choose_cases(known: Mapping[str, Case], wanted: Sequence[str] | None) -> tuple[list[Case], list[str]]:
    """The cases to run, and notes on what is skipped: what cannot run here and was not asked for by name."""
    cases, notes = [], []
    for case in (known[name] for name in wanted or known):
        lack = case.lack()
        if lack and wanted:
            raise BenchError(f"{case.name} cannot run here: {lack}")
        if lack:
            notes.append(f"skipped {case.name}: {lack}")
        else:
            cases.append(case)
    return cases, notes


def measure_rounds(run: Run, cases: Sequence[ReadyCase], progress: Progress) -> None:
    """Round by round, measure by measure, every case; each round begins with another case.

    The cases lie next to each other in time within a measure, so that a burst of foreign load falls on both sides of
    a ratio. Measures of a round that were taken before the run was stopped are not taken again.
    """
    samples, patience_s = run.results.samples, float(run.arguments.wait_quiet)
    start = time.monotonic() - max((sample.at_s + run.arguments.duration for sample in samples), default=0.0)
    had = {(sample.round, sample.measure) for sample in samples}
    for number in range(1, run.arguments.rounds + 1):
        shift = (number - 1) % len(cases)
        turn = [*cases[shift:], *cases[:shift]]
        for measure in (one for one in run.measures if (number, one.name) not in had):
            what = f"round {number} of {run.arguments.rounds}, {measure.name}"
            progress.show(what, line=True)
            patience_s = wait_for_quiet(patience_s)
            block = measure_block(turn, measure, number, run.arguments.duration, lambda: time.monotonic() - start)
            with contextlib.closing(block):
                for sample in block:
                    samples.append(sample)
                    progress.step(run.arguments.duration + OVERHEAD_S)
                    if sample.error:
                        progress.say(f"{what}, {sample.case} failed: {sample.error}")
                    progress.show(f"{what}, {sample.case}", line=False)
        save(run.results, run.path)


def check_netfilter(cases: Sequence[ReadyCase], results: Results) -> None:
    """Netfilter must have tracked connections where that is the case's way, and nowhere else."""
    for each in cases:
        count = each.node.conntrack_count()
        results.conntrack[each.case.name] = count
        if (count > 0) != each.case.tracked:
            results.notes.append(
                f"netfilter tracked {count} connections in {each.case.name}: its figures are not valid"
            )


def note_losses(results: Results) -> None:
    """Note what a tool reported as lost beside its figures: how often, and how much at most."""
    lost: dict[tuple[str, str], list[float]] = {}
    for sample in results.samples:
        for key in ("http_errors", "tcp_dropped", "udp_dropped", "udp_lost"):
            if sample.values.get(key):
                lost.setdefault((sample.case, key), []).append(sample.values[key])
    for (case, key), found in lost.items():
        results.notes.append(f"{case}: {key} in {len(found)} measurements, {max(found):.0f} at most")


def prepare(comparison: Comparison, arguments: argparse.Namespace) -> Run:
    """All that is known before anything is set up; BenchError for what cannot be run."""
    settle(comparison, arguments)
    check_resume(arguments)
    path = result_path(comparison.name, arguments.json)
    measures = [comparison.measures[name] for name in arguments.measures]
    check_host(path, measures)
    chosen, notes = choose_cases(comparison.cases, arguments.cases)
    arguments.cases = [case.name for case in chosen]
    # A result is for others to read: where it lay here is nothing to them
    shown = {key: value.name if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    wanted = dict.fromkeys(name for case in chosen for name in case.beside)
    notes += [f"no ratios to {name}: it did not run" for name in wanted if name not in arguments.cases]
    texts = {case.name: case.text for case in chosen}
    results = Results(texts, comparison.baselines, shown, environment(), notes=notes, comparison=comparison.name)
    results.beside = {case.name: case.beside for case in chosen}
    if arguments.resume:
        results.samples += take_up(path, shown, results.environment)
        results.notes.append(f"taken up again after {len(results.samples)} measurements")
    return Run(comparison, arguments, path, chosen, measures, results)


def bench(run: Run) -> None:
    """The whole run, from empty to empty; what has been measured is saved, whatever ends it."""
    for name in sweep_stale():
        say(f"deleted {name}, left by an earlier run that was killed")
    say(f"{run.left} measurements in about {duration(run.expected_s)}")
    cpu = max(os.sched_getaffinity(0)) if run.arguments.pin else None
    try:
        with ExitStack() as stack:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            cases = []
            for case in run.cases:
                say(f"setting up {case.name}: {case.text}")
                servers = {measure.port.server for measure in run.measures}
                setup = ready(case, f"bench{os.getpid()}", workdir, servers, backends=run.arguments.backends, cpu=cpu)
                cases.append(stack.enter_context(setup))
            stack.callback(_clear_up_undisturbed)
            progress = Progress(run.expected_s)
            stack.callback(progress.close)
            for measure in run.measures:
                progress.show(f"warming up {measure.name}", line=True)
                warm_up(cases, measure)
                progress.step(WARM_UP_BLOCK_S)
            measure_rounds(run, cases, progress)
            check_netfilter(cases, run.results)
        run.results.load_average_end = os.getloadavg()
        note_losses(run.results)
    finally:
        if run.results.samples:
            save(run.results, run.path)


def main(comparison: Comparison, arguments: argparse.Namespace) -> int:
    """Run the comparison; 0 done, 1 something failed, 2 it cannot be run, 128 + n ended by signal n."""
    run = None
    for each in SIGNALS:
        signal.signal(each, _stop)
    try:
        run = prepare(comparison, arguments)
        if run.left:
            bench(run)
    except BenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1 if run else 2
    except Stopped as stopped:
        say("stopped; everything is cleared up")
        if run and run.results.samples:
            say(f"go on with the same options and  --json {run.path} --resume")
        return 128 + int(stopped.args[0])
    print(text(run.results))
    say(f"every raw value: {run.path}; pictures of it: python -m bench plot {run.path} --out FOLDER")
    return 1 if run.results.failures else 0
