"""Speed beside many others: services, endpoints of one service, and flows in the table.

    .venv/bin/python -m bench.crowd [--quick] [--json FILE]

Called is the last of 1 to 50,000 services, one service of 1 to 1,000 endpoints, and one beside 0 to 1,000,000 flows: by
pydatapath, by kube-proxy's rules (iptables, nftables, IPVS where there is one), and past them all over the bridge.
bench/README.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from bench import flows
from bench.environment import environment
from bench.kube_proxy_ipvs import SYSCTLS, ipvs_input, masquerade_input
from bench.kube_proxy_nft import nft_input
from bench.many import SERVICE_NETWORK, Called, Many, restore_parts
from bench.measures import MEASURES, METRICS, PORTS, Measure, Metric
from bench.paths import CLUSTER_IP, Case, ReadyCase, find_pydatapath, loaded, nothing, ready
from bench.processes import BenchError, run
from bench.programmers import LEGACY_FORM, NFT_FORM
from bench.report import Results, Sample
from bench.rounds import measure_once
from bench.session import between, names_of, numbers, sampled, say, setting
from bench.session import main as session
from bench.topology import BRIDGE, NODE_IP, POD_NETWORK, Node, set_sysctls

LOAD_S = {True: 20.0, False: 150.0}  # to load the rules, where it is to be quick or not; who takes longer is left out
WARM_UP_S = 1
MORE_PODS = "10.244.4.0/22"  # further addresses of the server: of one /24 there are too few for 1,000 endpoints
POD_CIDRS = ("10.244.1.0/24", MORE_PODS)
MAX_BACKENDS = 131_072
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


@dataclass(frozen=True)
class Crowd:
    """How many there are of each."""

    services: int = 1
    endpoints: int = 1  # of the service that is called
    flows: int = 0
    others: int = 2  # endpoints of each other service
    load_s: float = LOAD_S[False]

    def of(self, this: Node) -> Many:
        """The services, the last of which has the server's addresses."""
        more = ip_address(MORE_PODS.partition("/")[0])
        backends = [*this.backends, *(str(more + number) for number in range(1, self.endpoints))]
        ports = [port for port in PORTS if port.protocol == "tcp"]
        return Many(self.services, self.others, [Called("web", CLUSTER_IP, backends, ports=ports)])


@contextlib.contextmanager
def _ours(crowd: Crowd, max_flows: int, this: Node, folder: Path) -> Iterator[None]:
    manifest = folder / "all.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": crowd.of(this).manifests()}))
    sizes = ["--max-backends", str(MAX_BACKENDS), "--max-flows", str(max_flows)]
    with loaded(this, *sizes, *(word for cidr in POD_CIDRS for word in ("--pod-cidr", cidr))):
        command = [find_pydatapath(), "--instance", this.name, "--netns", this.netns]
        run([*command, "apply", "-f", str(manifest)], timeout=crowd.load_s)
        yield


def _lay(crowd: Crowd, argv: Sequence[str], this: Node, parts: Iterable[str]) -> None:
    """Rules in parts, within the time that there is for all of them."""
    deadline = time.monotonic() + crowd.load_s
    for part in parts:
        try:
            run(argv, netns=this.netns, stdin=part, timeout=max(0.1, deadline - time.monotonic()))
        except BenchError as error:
            if time.monotonic() < deadline:
                raise
            raise BenchError(f"its rules are not laid within {crowd.load_s:.0f} s") from error


@contextlib.contextmanager
def _iptables(restore: str, crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    _lay(crowd, [restore, "--noflush"], this, restore_parts(crowd.of(this).service_ports(), POD_NETWORK))
    yield


@contextlib.contextmanager
def _nftables(crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    table = nft_input(crowd.of(this).service_ports(), POD_NETWORK, SERVICE_NETWORK, [NODE_IP])
    _lay(crowd, ["nft", "-f", "-"], this, [table])
    yield


@contextlib.contextmanager
def _ipvs(crowd: Crowd, this: Node, _folder: Path) -> Iterator[None]:
    services = crowd.of(this).service_ports()
    called = [service for service in services if service.cluster_ip == CLUSTER_IP]
    addresses = "".join(f"address add {vip}/32 dev kube-ipvs0\n" for vip in {one.cluster_ip: 0 for one in services})
    run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"], netns=this.netns)
    run(["ip", "-batch", "-"], netns=this.netns, stdin=addresses, timeout=crowd.load_s)
    run(["ipvsadm", "--restore"], netns=this.netns, stdin=ipvs_input(services), timeout=crowd.load_s)
    set_sysctls(this.netns, SYSCTLS)
    run(["iptables-restore", "--noflush"], netns=this.netns, stdin=masquerade_input(called, POD_NETWORK))
    yield


def lacks_ipvs() -> str:
    """Why there is no IPVS here; "" where there is."""
    try:
        run(["unshare", "--net", "ipvsadm", "--list"])
    except BenchError as error:
        return str(error)
    return ""


def cases(crowd: Crowd, max_flows: int) -> list[Case]:
    """Each implementation with its services."""

    def netfilter(name: str, text: str, how: Callable[[Crowd, Node, Path], AbstractContextManager[None]]) -> Case:
        prepare = functools.partial(how, crowd)
        return Case(name, text, prepare, to_vip=True, tracked=True, bridge_netfilter=True)

    return [
        Case("bridge", "pod to pod over the plain bridge, past all services", nothing),
        Case("pydatapath", "by pydatapath", functools.partial(_ours, crowd, max_flows), to_vip=True),
        netfilter(
            "iptables",
            "by kube-proxy's iptables rules in iptables' nft form; the last service is the last rule",
            functools.partial(_iptables, NFT_FORM),
        ),
        netfilter(
            "iptables-legacy", "the same in iptables' own, legacy form", functools.partial(_iptables, LEGACY_FORM)
        ),
        netfilter("nftables", "by the table of kube-proxy's nftables mode", _nftables),
        netfilter("ipvs", "by IPVS as in kube-proxy's IPVS mode", _ipvs),
    ]


def _add_addresses(this: Node) -> None:
    """The server answers for further addresses, and the node has them as neighbours: it would not learn so many."""
    run(["ip", "route", "add", "local", MORE_PODS, "dev", "lo"], netns=this.server)
    shown = json.loads(run(["ip", "-json", "link", "show", "eth0"], netns=this.server))
    network = ip_address(MORE_PODS.partition("/")[0])
    lines = [f"neigh replace {network + one} lladdr {shown[0]['address']} dev {BRIDGE}" for one in range(1, 1_000)]
    run(["ip", "route", "add", MORE_PODS, "dev", BRIDGE], netns=this.netns)
    run(["ip", "-batch", "-"], netns=this.netns, stdin="\n".join(lines) + "\n")


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
        load_s = LOAD_S[self.arguments.quick]
        crowd = replace(Crowd(others=self.arguments.endpoints_of_others, load_s=load_s), **parameters)
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
            began = time.monotonic()
            own = stack.enter_context(ExitStack())
            try:
                one = own.enter_context(ready(case, name, folder, backends=1, cpu=self.cpu))
                if crowd.endpoints > 1:
                    _add_addresses(one.node)
                one.measure(MEASURES["conn"], WARM_UP_S)
            except BenchError as error:
                own.close()
                self._leave_out(case.name, parameters, f"after {time.monotonic() - began:.0f} s: {error}")
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
            for each in [*ready_cases[shift:], *ready_cases[:shift]]:
                sample = measure_once(each, measure, number, self._at(), self.arguments.duration)
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
    parser = argparse.ArgumentParser(prog="bench.crowd", description=(__doc__ or "").split("\n", maxsplit=1)[0])
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
    for option, known in (("--cases", [case.name for case in cases(Crowd(), 0)]), ("--measures", MEASURED["services"])):
        text = f"comma-separated, of {', '.join(known)} (default all)"
        parser.add_argument(option, type=names_of(known), help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw value and the environment to FILE")
    return parser


def settle(arguments: argparse.Namespace) -> None:
    """Put the defaults where the user said nothing."""
    sizes = QUICK if arguments.quick else SIZES
    for name, usual in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.duration = arguments.duration or (1 if arguments.quick else 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code, or 2 for wrong usage."""
    arguments = make_parser().parse_args(argv)
    settle(arguments)
    known = {case.name: case.text for case in cases(Crowd(), 0)}
    wanted = arguments.cases or [*known]

    def empty() -> Results:
        lack = lacks_ipvs() if "ipvs" in wanted else ""
        texts = {name: text for name, text in known.items() if name in wanted and not (name == "ipvs" and lack)}
        shown = {**vars(arguments), "json": str(arguments.json or ""), "pin": True}
        notes = [f"ipvs is left out: {lack}"] if lack else []
        baselines = ["bridge", "iptables", "iptables-legacy", "nftables"]
        results = Results(texts, baselines, shown, environment(), notes=notes)
        results.comparison, results.known = "crowd", METRICS_HERE
        return results

    def work(results: Results, workdir: Path) -> None:
        this = Run(results, arguments, workdir, time.monotonic())
        for name in SIZES:
            for value in getattr(arguments, name):
                this.size(name, value)

    return session(empty, work, arguments, TOOLS)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
