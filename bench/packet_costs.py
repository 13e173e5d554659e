"""What a packet costs in our programs, in ns, beside a program that does nothing but redirect.

    .venv/bin/python -m bench packet_costs [--rounds 14] [--cases redirect,known-tcp] [--json FILE]

One kind of packet at a time, by BPF_PROG_TEST_RUN: all of it is warm in the caches, so that this is the least that a
packet costs, and the steadiest figure there is. What programs take under real traffic the kernel counts itself
(bpf_enable_stats). bench/README.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from bench.environment import environment
from bench.files import save
from bench.measures import WRK_CONNECTIONS, Metric
from bench.packets import (
    CALLED,
    FAR_AWAY,
    VIPS,
    Bench,
    bench,
    enter,
    enter_masqueraded,
    forget,
    median,
    openings,
    outside_of,
    packet,
    run_by,
    short_runs,
    statistics_on,
    taken,
)
from bench.paths import wait_for_servers
from bench.processes import BenchError, run, server
from bench.programs import compiled, loaded
from bench.report import Results, Sample
from bench.servers import server_commands
from bench.session import RESUME, began, between, finish, names_of, result_options, sampled, say, setting
from bench.session import main as session
from pydatapath.kernel.layout import Family

Figures: TypeAlias = Callable[[Bench], Mapping[str, float]]
Cost: TypeAlias = Callable[[Bench, Family], float]

RUNS, FIRST_PACKETS, SHORT_RUNS = 3, 1000, 1000  # in a round
LOAD_S = 2
PATIENCE_S = 30.0
METRICS: Final = (
    Metric("ipv4_ns", "ns, IPv4", -1, 0),
    Metric("ipv6_ns", "ns, IPv6", -1, 0),
    Metric("load_ipv4_ns", "ns under load, IPv4", -1, 0),
    Metric("load_ipv6_ns", "ns under load, IPv6", -1, 0),
    Metric("connection_ns", "ns a connection", -1, 0),
)
TOOLS: Final = ("ip", "iperf3", "nginx", "ss", "wrk")
ONLY_REDIRECTS: Final = """
#define KBUILD_MODNAME "redirect"
#include <linux/bpf.h>
int only_redirects(struct __sk_buff *skb) { return bpf_redirect_peer(1, 0); }
"""


@dataclass(frozen=True)
class Kind:
    """A kind of packet, and how its figures are had; `masquerading`: on the node that hides its pods."""

    text: str
    figures: Figures
    beside: Sequence[str] = ("redirect",)
    masquerading: bool = False


@functools.cache
def _redirecting() -> object:
    return compiled(ONLY_REDIRECTS)


def _both(cost: Cost) -> Figures:
    """Of IPv4 and IPv6, one after the other."""

    def figures(this: Bench) -> Mapping[str, float]:
        found = {}
        for family in Family:
            try:
                found[f"ipv{family.value}_ns"] = cost(this, family)
            finally:
                forget(this)
        return found

    return figures


def _called(this: Bench, family: Family, protocol: str) -> bytes:
    return packet(this.address(family, 1), VIPS[family], protocol, CALLED)


def _only_redirected(this: Bench, family: Family) -> float:
    program, frame = loaded(_redirecting(), "only_redirects"), _called(this, family, "TCP")
    return statistics.median(run_by(this, program, frame) for _ in range(RUNS))


def _known(protocol: str, *, plain: bool = False) -> Figures:
    def cost(this: Bench, family: Family) -> float:
        enter(this, family, protocol, plain=plain)
        return median(this, _called(this, family, protocol), RUNS)

    return _both(cost)


def _passing(protocol: str) -> Figures:
    return _both(
        lambda this, family: median(this, packet(this.address(family, 1), FAR_AWAY[family], protocol, 9), RUNS)
    )


def _first(protocol: str) -> Figures:
    return _both(lambda this, family: openings(this, family, protocol, VIPS[family], FIRST_PACKETS))


def _first_to_outside(protocol: str) -> Figures:
    def cost(this: Bench, family: Family) -> float:
        return openings(this, family, protocol, outside_of(family, this.lab.outside), FIRST_PACKETS)

    return _both(cost)


def _known_to_outside(this: Bench, family: Family) -> float:
    """Each run asks for the route."""
    enter_masqueraded(this, family)
    frame = packet(this.address(family, 1), outside_of(family, this.lab.outside), "UDP", CALLED)
    return short_runs(this, frame, SHORT_RUNS)


def _counted(this: Bench, argv: Sequence[str], served_by: str) -> tuple[int, int, str]:
    """ns and runs of from_pod while a client in one pod calls a server in the other, and what the client says."""
    caller, called = (this.lab.pod(1, number).netns for number in (1, 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(server_commands(folder, None)[served_by], netns=called, log=folder / "log"):
            wait_for_servers(called, {served_by})
            with statistics_on():
                before = taken(this)["from_pod"]
                said = run(argv, netns=caller, timeout=PATIENCE_S)
                after = taken(this)["from_pod"]
    ns, runs = (now - then for now, then in zip(after, before, strict=True))
    return ns, runs, said


def _under_iperf3(this: Bench) -> Mapping[str, float]:
    """Of a packet of one TCP stream; a large one, as a sender hands it on."""
    found = {}
    for family in Family:
        argv = ["iperf3", "-J", "-c", VIPS[family], "-t", str(LOAD_S)]
        ns, runs, said = _counted(this, argv, "iperf3")
        if not json.loads(said)["end"]["sum_received"]["bytes"] or not runs:
            raise BenchError("iperf3's stream did not arrive")
        found[f"load_ipv{family.value}_ns"] = ns / runs
    return found


def _under_wrk(this: Bench) -> Mapping[str, float]:
    """All of our programs for one short connection, of ten packets."""
    argv = ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{LOAD_S}s", "-H", "Connection: close"]
    ns, _, said = _counted(this, [*argv, f"http://{VIPS[Family.IPV4]}:{CALLED}/"], "nginx")
    found = re.search(r"(\d+) requests in", said)
    if not found or not int(found[1]):
        raise BenchError("wrk got no answer at all")
    return {"connection_ns": ns / int(found[1])}


KINDS: Final[Mapping[str, Kind]] = {
    "redirect": Kind("a program that does nothing but redirect", _both(_only_redirected), ()),
    "known-tcp": Kind("TCP, known flow, translated to a pod here", _known("TCP")),
    "known-udp": Kind("UDP, known flow, translated to a pod here", _known("UDP")),
    "direct-tcp": Kind("TCP, known flow, directly to a backend's port", _known("TCP", plain=True)),
    "passing-tcp": Kind("TCP to nowhere of ours", _passing("TCP")),
    "passing-udp": Kind("UDP to nowhere of ours", _passing("UDP")),
    "first-tcp": Kind("TCP, a new flow's SYN", _first("TCP")),
    "first-udp": Kind("UDP, a new flow's first", _first("UDP")),
    "snat-known-udp": Kind("UDP, known flow, masqueraded", _both(_known_to_outside), masquerading=True),
    "snat-first-tcp": Kind("TCP, a new flow's SYN, masqueraded", _first_to_outside("TCP"), masquerading=True),
    "snat-first-udp": Kind("UDP, a new flow's first, masqueraded", _first_to_outside("UDP"), masquerading=True),
    "under-iperf3": Kind("a packet of iperf3's stream to the service, as the kernel counts", _under_iperf3, ()),
    "under-wrk": Kind("a short connection of wrk's to the service, all its packets", _under_wrk, ()),
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    text = (__doc__ or "").split("\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="python -m bench packet_costs", description=text)
    parser.add_argument("--rounds", type=between(1, 1000), default=14, help="interleaved rounds (default 14)")
    known = f"comma-separated, of {', '.join(KINDS)} (default all)"
    parser.add_argument("--cases", type=names_of([*KINDS]), help=known)
    result_options(parser, RESUME)
    return parser


def _nodes(stack: ExitStack, names: Sequence[str]) -> Mapping[bool, Bench]:
    """Those that the cases need: one that masquerades, one that does not."""
    kinds = {KINDS[name].masquerading for name in names}
    return {masquerading: stack.enter_context(bench(masquerade=masquerading)) for masquerading in sorted(kinds)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code, or 2 for wrong usage."""
    arguments = make_parser().parse_args(argv)
    names = arguments.cases or [*KINDS]

    def empty() -> Results:
        shown = {**vars(arguments), "json": arguments.json.name}
        beside = {name: KINDS[name].beside for name in names}
        texts = {name: KINDS[name].text for name in names}
        results = Results(texts, ["redirect"], shown, environment(), beside=beside)
        results.comparison, results.known = "packet_costs", METRICS
        return results

    def work(results: Results, _: Path) -> None:
        since = began(results)
        if {} in results.finished:
            return
        with setting() as stack:
            nodes = _nodes(stack, names)
            for number in range(1, arguments.rounds + 1):
                shift = (number - 1) % len(names)
                for name in [*names[shift:], *names[:shift]]:
                    kind, at = KINDS[name], round(time.monotonic() - since, 3)
                    begun = Sample(number, name, "packet", at, 0.0)
                    results.samples.append(sampled(begun, functools.partial(kind.figures, nodes[kind.masquerading])))
                say(f"round {number} of {arguments.rounds}")
                save(results, arguments.json)
        finish(results, {}, arguments.json)

    return session("packet_costs", empty, work, arguments, TOOLS)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
