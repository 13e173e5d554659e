"""What every comparison here does alike: command line, host checks, interleaved rounds, report, and clearing up."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.host import ForeignLoad, wait_for_quiet
from bench.measures import CONGESTION, Measure
from bench.paths import Case, ReadyCase, find_pydatapath, ready, sweep_stale
from bench.processes import BenchError
from bench.report import Results, Sample, environment

__all__ = ["Comparison", "between", "main", "make_parser"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARM_UP_S = 1
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
    "wrk": "wrk",
}


@dataclass(frozen=True)
class Comparison:
    """What is compared: cases, by measures, with those among them that are `baselines`."""

    name: str
    text: str
    cases: Mapping[str, Case]
    measures: Mapping[str, Measure]
    baselines: Sequence[str]


class Stopped(BaseException):
    """A signal asked us to stop; carries its number. Not an Exception: nothing may swallow it on its way out."""


def _stop(signum: int, _frame: FrameType | None) -> None:
    """Stop at the first signal, and let no second one cut the clearing up short."""
    _clear_up_undisturbed()
    raise Stopped(signum)


def _clear_up_undisturbed() -> None:
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)  # not SIG_IGN, which our child processes would inherit


def _names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(known)}")
        return names

    return parse


def between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: a whole number from {low} to {high}, please")
        return int(text)

    return parse


def make_parser(comparison: Comparison) -> argparse.ArgumentParser:
    """The command line. `cases` is None where the user left the choice to us."""
    parser = argparse.ArgumentParser(prog=f"bench.{comparison.name}", description=comparison.text)
    parser.add_argument("--rounds", type=between(1, 1000), default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--duration", type=between(1, 600), default=3, help="seconds a measurement takes (default 3)")
    for option, known, default in (
        ("--cases", list(comparison.cases), None),
        ("--measures", list(comparison.measures), list(comparison.measures)),
    ):
        text = f"comma-separated, of {', '.join(known)} (default all)"
        parser.add_argument(option, type=_names_of(known), default=default, help=text)
    parser.add_argument(
        "--no-pin", dest="pin", action="store_false", help="do not hold both ends of the latency measures to one core"
    )
    parser.add_argument(
        "--wait-quiet",
        type=between(0, 86400),
        default=0,
        metavar="S",
        help="wait up to S seconds in all for moments in which nothing else needs the processor (default 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw value and the environment to FILE")
    return parser


def check_host(arguments: argparse.Namespace) -> None:
    """Raise BenchError, with the way out, for what would fail later."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces and loads programs, so it must run as root: use sudo")
    missing = {package for tool, package in PACKAGES.items() if shutil.which(tool) is None}
    if missing:
        raise BenchError(f"tools are missing: apt install {' '.join(sorted(missing))}")
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if CONGESTION not in known:
        raise BenchError(f"this kernel has no congestion control {CONGESTION}: modprobe tcp_{CONGESTION}")
    if arguments.json and not os.access(arguments.json.resolve().parent, os.W_OK):
        raise BenchError(f"{arguments.json}: cannot be written there")


def choose_cases(known: Mapping[str, Case], wanted: Sequence[str] | None) -> tuple[list[Case], list[str]]:
    """The cases to run, and notes on what is skipped: what cannot run and was not asked for by name."""
    cases = [known[name] for name in wanted or known]
    if any(case.needs_pydatapath for case in cases):
        try:
            find_pydatapath()
        except BenchError as error:
            if wanted:
                raise
            skipped = ", ".join(case.name for case in cases if case.needs_pydatapath)
            return [case for case in cases if not case.needs_pydatapath], [f"skipped {skipped}: {error}"]
    return cases, []


def say(text: str) -> None:
    """Progress, for people: stdout has the result only."""
    print(text, file=sys.stderr, flush=True)


def warm_up(cases: Sequence[ReadyCase], measures: Sequence[Measure]) -> None:
    """One short run of everything, thrown away: tables fill, and what does not work shows before the rounds."""
    for each in cases:
        for measure in measures:
            try:
                each.measure(measure, WARM_UP_S)
            except BenchError as error:
                raise BenchError(f"{each.case.name}: {measure.name} does not work: {error}") from None


def measure_once(each: ReadyCase, measure: Measure, number: int, at_s: float, seconds: int) -> Sample:
    """One measurement; one that fails is a sample too, and the run goes on."""
    others = ForeignLoad()
    try:
        values = each.measure(measure, seconds)
    except BenchError as error:
        return Sample(number, each.case.name, measure.name, at_s, others.cores(), error=str(error))
    return Sample(number, each.case.name, measure.name, at_s, others.cores(), values)


def measure_rounds(
    cases: Sequence[ReadyCase], measures: Sequence[Measure], arguments: argparse.Namespace, results: Results
) -> None:
    """Round by round, measure by measure, every case; each round begins with another case.

    The cases lie next to each other in time within a measure, so that a burst of foreign load falls on both sides of
    a ratio.
    """
    start = time.monotonic()
    patience_s = float(arguments.wait_quiet)
    for number in range(1, arguments.rounds + 1):
        shift = (number - 1) % len(cases)
        for measure in measures:
            patience_s = wait_for_quiet(patience_s)
            for each in [*cases[shift:], *cases[:shift]]:
                at_s = round(time.monotonic() - start, 3)
                sample = measure_once(each, measure, number, at_s, arguments.duration)
                results.samples.append(sample)
                figures = "  ".join(f"{key} {value:.5g}" for key, value in sample.values.items()) or "failed"
                others = f"(others: {sample.foreign_cores:.2f} cores)"
                say(f"round {number}/{arguments.rounds}  {each.case.name:<15} {figures}  {others}")


def check_netfilter(cases: Sequence[ReadyCase], results: Results) -> None:
    """Netfilter must have tracked connections where that is the case's way, and nowhere else."""
    for each in cases:
        count = each.node.conntrack_count()
        results.conntrack[each.case.name] = count
        if (count > 0) != each.case.tracked:
            results.notes.append(
                f"netfilter tracked {count} connections in {each.case.name}: its figures are not valid"
            )


def _note_losses(results: Results) -> None:
    """Note what a tool reported as lost beside its figures."""
    for sample in results.samples:
        for key in ("http_errors", "tcp_dropped", "udp_dropped", "udp_lost"):
            if sample.values.get(key):
                results.notes.append(f"round {sample.round} {sample.case}: {key} {sample.values[key]:.0f}")


def bench(comparison: Comparison, arguments: argparse.Namespace) -> Results:
    """The whole run, from empty to empty."""
    check_host(arguments)
    chosen, notes = choose_cases(comparison.cases, arguments.cases)
    measures = [comparison.measures[name] for name in arguments.measures]
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    texts = {case.name: case.text for case in chosen}
    results = Results(texts, comparison.baselines, shown, environment(), notes=notes)
    for name in sweep_stale():
        say(f"deleted {name}, left by an earlier run that was killed")
    cpu = max(os.sched_getaffinity(0)) if arguments.pin else None
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        cases = []
        for case in chosen:
            say(f"setting up {case.name}: {case.text}")
            setup = ready(case, f"bench{os.getpid()}", workdir, backends=arguments.backends, cpu=cpu)
            cases.append(stack.enter_context(setup))
        stack.callback(_clear_up_undisturbed)
        warm_up(cases, measures)
        measure_rounds(cases, measures, arguments, results)
        check_netfilter(cases, results)
    results.load_average_end = os.getloadavg()
    _note_losses(results)
    for name in comparison.baselines:
        if name not in texts:
            results.notes.append(f"no ratios to {name}: it did not run")
    return results


def main(comparison: Comparison, arguments: argparse.Namespace) -> int:
    """Run the comparison; 0 done, 1 something failed, 128 + n ended by signal n."""
    for each in SIGNALS:
        signal.signal(each, _stop)
    try:
        results = bench(comparison, arguments)
    except BenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        say("stopped; everything is cleared up")
        return 128 + int(stopped.args[0])
    print(results.text())
    if arguments.json:
        results.write_json(arguments.json)
    return 1 if results.failures else 0
