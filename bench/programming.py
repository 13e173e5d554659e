"""How long until it is so: from the command to the first packet that is served right.

    .venv/bin/python -m bench programming [--sizes 100,1000,10000] [--json FILE]

Among so many services: the first load of all, one that has changed, all changed at once. A prober in the client pod
asks on and on, each time from another port, and says when the right backend has answered. bench/README.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.environment import environment
from bench.many import Called, Many
from bench.measure import Port
from bench.measures import Metric
from bench.processes import BenchError, server
from bench.programmers import COMMAND_S, PROGRAMMERS, STEPS, Change, Programmer
from bench.report import Results, Sample
from bench.session import RESUME, began, between, finish, names_of, numbers, result_options, sampled, say, setting
from bench.session import main as session
from bench.topology import Node, Where, node
from bench.vip import lacks_ipvs

ASKED = Port("ask", "udp", 53, 9053)
FIRST_VIP, LAST_VIP = "10.96.0.10", "10.97.0.10"
PROBER, BACKENDS = (Path(__file__).with_name(name) for name in ("prober.py", "backends.py"))
PROBE_S = COMMAND_S + 10
GRACE_S = 5.0
LOOK_S = 0.005
TOO_SLOW = "did not end within"  # as bench.processes says it
SIZES = [100, 1_000, 10_000]
TITLES = {"first": "first load", "one": "one change", "all": "all changed"}
METRICS = (
    *(Metric(f"{step}_s", f"{TITLES[step]} s", -1, 4) for step in STEPS),
    *(Metric(f"{step}_command_s", f"{step} command s", 0, 4) for step in STEPS),
)
BASELINES = ("iptables-legacy-whole", "nftables")
TOOLS = ("ip", "iptables-restore", "nft", "nsenter", "ping", "setpriv", "sysctl")


def changes(services: int, endpoints: int, backends: Sequence[str]) -> list[Change]:
    """The steps: the last service goes from the first backend to the second, and back when all others change, too."""
    one, two = backends

    def called(name: str, vip: str, backend: str) -> Called:
        return Called(name, vip, [backend], ports=[ASKED])

    def all_of(first: str, last: str, *, moved: bool = False) -> Many:
        ends = called("first", FIRST_VIP, first), called("last", LAST_VIP, last)
        return Many(services, endpoints, ends[1:], ends[:1], moved)

    made = {"first": all_of(one, one), "one": all_of(one, two), "all": all_of(two, one, moved=True)}
    return [Change(step, made[step], made[step].called[0]) for step in STEPS]


def wanted(change: Change) -> dict[str, str]:
    """Which backend must answer at which virtual IP; of one change, that one's alone."""
    asked = change.to.called if change.step == "one" else [*change.to.ahead, *change.to.called]
    return {service.vip: service.backends[0] for service in asked}


def _lines(log: Path, count: int, deadline: float) -> list[str]:
    """What the prober has printed, as soon as it is so many lines."""
    while True:
        lines = log.read_text().splitlines()
        if len(lines) >= count:
            return lines
        if time.monotonic() > deadline:
            raise BenchError(f"the prober has printed {lines} in {PROBE_S:.0f} s")
        time.sleep(LOOK_S)


def until_served(this: Node, change: Change, command: Callable[[], object], folder: Path) -> dict[str, float]:
    """Seconds from the command's start until it is served right, and until the command has ended."""
    answers = [f"{vip}={backend}" for vip, backend in wanted(change).items()]
    argv = [sys.executable, str(PROBER), str(ASKED.port), str(PROBE_S), *answers]
    log = folder / "prober.log"
    deadline = time.monotonic() + PROBE_S + GRACE_S
    with server(argv, netns=this.client, log=log):
        _lines(log, 1, deadline)
        start = time.monotonic()
        command()
        took = time.monotonic() - start
        last = _lines(log, 2, deadline)[1]
    try:
        served = float(last)
    except ValueError:
        raise BenchError(f"{change.step}: {last}") from None
    if served < start:
        raise BenchError(f"{change.step}: it was served so before the command began")
    return {f"{change.step}_s": served - start, f"{change.step}_command_s": took}


def _node(stack: ExitStack, which: Programmer, folder: Path) -> Node:
    """Namespaces of its own, with two backends that say who they are."""
    name = f"bench{os.getpid()}-{which.name}"
    this = stack.enter_context(node(name, where=Where.POD, backends=2, bridge_netfilter=which.bridge_netfilter))
    argv = [sys.executable, str(BACKENDS), ",".join(this.backends), str(ASKED.target)]
    stack.enter_context(server(argv, netns=this.server, log=folder / f"{which.name}.log"))
    return this


class Run:
    """All sizes, round by round."""

    def __init__(self, results: Results, arguments: argparse.Namespace, folder: Path) -> None:
        self.results, self.arguments, self.folder = results, arguments, folder
        self.began = began(results)
        last = results.finished[-1] if results.finished else None
        there = {sample.case for sample in results.samples if sample.parameters == last}
        self.too_slow = {*results.cases} - there if last else set()

    def size(self, nodes: Mapping[str, Node], services: int) -> None:
        """Every implementation in each round, beginning with another one."""
        order = [*nodes]
        for number in range(1, self.arguments.rounds + 1):
            shift = (number - 1) % len(order)
            for name in [one for one in [*order[shift:], *order[:shift]] if one not in self.too_slow]:
                self._steps(number, PROGRAMMERS[name], nodes[name], services)

    def _steps(self, number: int, which: Programmer, this: Node, services: int) -> None:
        """First load, one change, all changed; a step after one that has failed would say nothing."""
        folder = self.folder / which.name
        folder.mkdir(exist_ok=True)
        with setting() as stack:
            prepare = stack.enter_context(which.begin(this, folder))
            for change in changes(services, self.arguments.endpoints, this.backends):
                command = prepare(change)
                begun = Sample(number, which.name, change.step, self._at(), 0.0, parameters={"services": services})
                sample = sampled(begun, functools.partial(until_served, this, change, command, folder))
                if TOO_SLOW in sample.error:
                    self._leave_out(which.name, services, sample.error)
                    break
                self.results.samples.append(sample)
                figures = "  ".join(f"{key} {value:.4f}" for key, value in sample.values.items()) or sample.error
                say(f"{services:,} services, round {number}  {which.name:<16} {figures}")
                if sample.error:
                    break

    def _leave_out(self, name: str, services: int, why: str) -> None:
        """From now on: one that is too slow once would be so in every round, and with more services."""
        self.too_slow.add(name)
        note = f"{name} is left out from {services:,} services on: {why}"
        self.results.notes.append(note)
        say(note)

    def _at(self) -> float:
        return round(time.monotonic() - self.began, 3)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench programming", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--rounds", type=between(1, 1000), default=3, help="interleaved rounds (default 3)")
    parser.add_argument(
        "--sizes",
        type=numbers(3, 60_000),
        default=SIZES,
        metavar="N,...",
        help="numbers of services (default 100,1000,10000; 50000 takes another quarter of an hour)",
    )
    parser.add_argument("--endpoints", type=between(1, 5), default=2, help="of each service (default 2)")
    text = f"comma-separated, of {', '.join(PROGRAMMERS)} (default all)"
    parser.add_argument("--cases", type=names_of([*PROGRAMMERS]), help=text)
    result_options(parser, RESUME)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code, or 2 for wrong usage."""
    arguments = make_parser().parse_args(argv)
    names = arguments.cases or [*PROGRAMMERS]

    def empty() -> Results:
        lack = lacks_ipvs() if "ipvs" in names else ""
        texts = {name: PROGRAMMERS[name].text for name in names if not (name == "ipvs" and lack)}
        shown = {**vars(arguments), "json": arguments.json.name}
        results = Results(texts, BASELINES, shown, environment())
        results.notes += [f"ipvs is left out: {lack}"] if lack else []
        results.comparison, results.known = "programming", METRICS
        return results

    def work(results: Results, folder: Path) -> None:
        this = Run(results, arguments, folder)
        with setting() as stack:
            nodes = {name: _node(stack, PROGRAMMERS[name], folder) for name in results.cases}
            for services in arguments.sizes:
                if {"services": services} not in results.finished:
                    this.size(nodes, services)
                    finish(results, {"services": services}, arguments.json)

    return session("programming", empty, work, arguments, TOOLS)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
