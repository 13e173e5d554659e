"""Speed beside many others: services, endpoints of one service, and flows in the table.

    .venv/bin/python -m bench crowd [--quick] [--json FILE]

Called is the last of 1 to 50,000 services, one service of 1 to 1,000 endpoints, and one beside 0 to 1,000,000 flows: by
pydatapath, by kube-proxy's rules (iptables, nftables, IPVS where there is one), and past them all over the bridge.
bench/README.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench import flows
from bench.blocks import measure_block
from bench.crowd_cases import Crowd, add_addresses, cases
from bench.environment import environment
from bench.measure import Measure
from bench.measures import MEASURES, METRICS, Metric
from bench.paths import ReadyCase, ready
from bench.processes import BenchError
from bench.report import Results, Sample
from bench.session import RESUME, began, between, finish, names_of, numbers, result_options, sampled, say, setting
from bench.session import main as session
from bench.vip import lacks_ipvs

WARM_UP_S = 1
METRICS_HERE = (
    *METRICS,
    Metric("one_flow_ns", "ns, one flow", -1, 0),
    Metric("random_flow_ns", "ns, any flow", -1, 0),
)
SIZES = {
    "services": [1, 100, 1_000, 10_000, 50_000],
    "endpoints": [1, 10, 100, 1_000],
    "flows": [0, 10_000, 100_000, 1_000_000],
}
QUICK = {"services": [1, 10_000], "endpoints": [1, 100], "flows": [0, 100_000]}
MEASURED = {
    "services": ("conn", "tcp-latency", "throughput"),
    "endpoints": ("conn", "tcp-latency"),
    "flows": ("conn",),
}
ONLY_SERVICES = {"iptables"}  # the other form shows as well what endpoints and flows cost
TOOLS = ("ip", "iperf3", "iptables-restore", "nft", "nginx", "ping", "setpriv", "sockperf", "ss", "taskset", "wrk")


@dataclass
class Run:
    """What is measured, how often and how long, and where it goes."""

    results: Results
    arguments: argparse.Namespace
    workdir: Path
    began: float

    @property
    def cpu(self) -> int:
        """Which core both ends of a ping-pong share."""
        return max(os.sched_getaffinity(0))

    def size(self, name: str, value: int) -> None:
        """All rounds at one size."""
        parameters = {name: value}
        crowd = replace(
            Crowd(others=self.arguments.endpoints_of_others, load_s=float(self.arguments.load_within)), **parameters
        )
        wanted = self.arguments.measures
        measures = [MEASURES[one] for one in MEASURED[name] if not wanted or one in wanted]
        with setting() as stack:
            ready_cases = self._set_up(stack, crowd, parameters)
            keys = self._fill(ready_cases, crowd, parameters)
            for number in range(1, self.arguments.rounds + 1):
                self._round(number, ready_cases, measures, parameters)
                if keys is not None:
                    self._packets(number, ready_cases, keys, parameters)

    def _set_up(self, stack: ExitStack, crowd: Crowd, parameters: Mapping[str, int]) -> list[ReadyCase]:
        """Every implementation that can be had at this size, warm."""
        made = []
        max_flows = max(131_072, 2 * max(self.arguments.flows)) if "flows" in parameters else 131_072
        for case in cases(crowd, max_flows):
            if case.name not in self.results.cases or (case.name in ONLY_SERVICES and "services" not in parameters):
                continue
            name = f"bench{os.getpid()}"
            folder = self.workdir / "-".join(f"{key}{value}" for key, value in parameters.items())
            folder.mkdir(exist_ok=True)
            say(f"setting up {self._named(parameters)}: {case.text}")
            start = time.monotonic()
            own = stack.enter_context(ExitStack())
            try:
                one = own.enter_context(ready(case, name, folder, backends=1, cpu=self.cpu))
                if crowd.endpoints > 1:
                    add_addresses(one.node)
                one.measure(MEASURES["conn"], WARM_UP_S)
            except BenchError as error:
                own.close()
                self._leave_out(case.name, parameters, f"after {time.monotonic() - start:.0f} s: {error}")
                continue
            made.append(one)
        return made

    def _leave_out(self, case: str, parameters: Mapping[str, int], why: str) -> None:
        note = f"{case} is left out at {self._named(parameters)}: {why}"
        say(note)
        self.results.notes.append(note)

    def _fill(self, ready_cases: list[ReadyCase], crowd: Crowd, parameters: Mapping[str, int]) -> list[bytes] | None:
        """Flows into every table; the keys of ours. Whose table cannot hold them is no longer among the cases."""
        keys = None
        for one in [*ready_cases] if "flows" in parameters else []:
            say(f"filling {one.case.name} with {crowd.flows:,} flows")
            try:
                if one.case.name == "pydatapath":
                    keys = flows.fill(one.node, crowd.flows)
                elif one.case.tracked:
                    flows.fill_conntrack(one.node, crowd.flows)
            except BenchError as error:
                ready_cases.remove(one)
                self._leave_out(one.case.name, parameters, str(error))
        return keys

    def _round(
        self, number: int, ready_cases: Sequence[ReadyCase], measures: Sequence[Measure], parameters: Mapping[str, int]
    ) -> None:
        """Measure by measure, every case, beginning with another one every round."""
        shift = (number - 1) % max(1, len(ready_cases))
        for measure in measures:
            turn = [*ready_cases[shift:], *ready_cases[:shift]]
            with contextlib.closing(measure_block(turn, measure, number, self.arguments.duration, self._at)) as block:
                for sample in block:
                    self._keep(replace(sample, parameters=parameters))

    def _packets(
        self, number: int, ready_cases: Sequence[ReadyCase], keys: Sequence[bytes], parameters: Mapping[str, int]
    ) -> None:
        """ns a packet, of ours alone: netfilter cannot be asked for one packet."""
        for each in ready_cases:
            if each.case.name == "pydatapath":
                begun = Sample(number, each.case.name, "packet", self._at(), 0.0, parameters=parameters)
                self._keep(sampled(begun, functools.partial(flows.packet_ns, each.node, keys)))

    def _keep(self, sample: Sample) -> None:
        self.results.samples.append(sample)
        figures = "  ".join(f"{key} {value:.5g}" for key, value in sample.values.items()) or f"failed: {sample.error}"
        say(f"{self._named(sample.parameters)}, round {sample.round}  {sample.case:<10} {figures}")

    def _at(self) -> float:
        return round(time.monotonic() - self.began, 3)

    @staticmethod
    def _named(parameters: Mapping[str, int]) -> str:
        return ", ".join(f"{value:,} {name}" for name, value in parameters.items())


def make_parser() -> argparse.ArgumentParser:
    """The command line; sizes that are not given are None."""
    parser = argparse.ArgumentParser(
        prog="python -m bench crowd", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round of a second each, fewer sizes: three minutes")
    parser.add_argument("--rounds", type=between(1, 1000), help="interleaved rounds (default 3)")
    parser.add_argument("--duration", type=between(1, 600), help="seconds a measurement takes (default 2)")
    parser.add_argument(
        "--services", type=numbers(1, 60_000), metavar="N,...", help="sizes, such as 1,1000; '' for none"
    )
    parser.add_argument("--endpoints", type=numbers(1, 1_000), metavar="N,...", help="of the service that is called")
    parser.add_argument("--flows", type=numbers(0, 4_000_000), metavar="N,...", help="in the table beside")
    parser.add_argument(
        "--endpoints-of-others", type=between(1, 5), default=2, help="of each service that is not called (default 2)"
    )
    parser.add_argument(
        "--load-within",
        type=between(1, 3600),
        metavar="S",
        help="leave out, at that size, who takes longer to load its rules (default 150; 20 with --quick)",
    )
    for option, known in (("--cases", [case.name for case in cases(Crowd(), 0)]), ("--measures", MEASURED["services"])):
        text = f"comma-separated, of {', '.join(known)} (default all)"
        parser.add_argument(option, type=names_of(known), help=text)
    result_options(parser, RESUME)
    return parser


def settle(arguments: argparse.Namespace) -> None:
    """Put the defaults where the user said nothing."""
    sizes = QUICK if arguments.quick else SIZES
    for name, usual in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.duration = arguments.duration or (1 if arguments.quick else 2)
    arguments.load_within = arguments.load_within or (20 if arguments.quick else 150)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code, or 2 for wrong usage."""
    arguments = make_parser().parse_args(argv)
    settle(arguments)
    known = {case.name: case.text for case in cases(Crowd(), 0)}
    wanted = arguments.cases or [*known]

    def empty() -> Results:
        lack = lacks_ipvs() if "ipvs" in wanted else ""
        texts = {name: text for name, text in known.items() if name in wanted and not (name == "ipvs" and lack)}
        shown = {**vars(arguments), "json": arguments.json.name, "pin": True}
        notes = [f"ipvs is left out: {lack}"] if lack else []
        beside = {case.name: case.beside for case in cases(Crowd(), 0) if case.name in texts}
        results = Results(texts, ["bridge"], shown, environment(), notes=notes, beside=beside)
        results.comparison, results.known = "crowd", METRICS_HERE
        return results

    def work(results: Results, workdir: Path) -> None:
        this = Run(results, arguments, workdir, began(results))
        for name, value in [(one, value) for one in SIZES for value in getattr(arguments, one)]:
            if {name: value} not in results.finished:
                this.size(name, value)
                finish(results, {name: value}, arguments.json)

    return session("crowd", empty, work, arguments, TOOLS)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
