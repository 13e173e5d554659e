"""What we want to reach, and what results say of it.

    .venv/bin/python -m bench goals RESULT.json [...]

A goal is a ratio within rounds of one run, by the median. Exit code 0, whatever is reached; 2 for a file that is no
result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bench.document import read
from bench.measures import Metric
from bench.report import At, Results, shown
from bench.tables import Table

__all__ = ["GOALS", "Goal", "Seen", "main", "table"]

# One or two figures for each workload: p99.9 is noise in a run of this length, and processor time is that of the tools
RATES = ("conn_per_s", "req_per_s", "gbit_per_s", "streams_gbit_per_s", "udp_per_s", "udp_1400_per_s")
LATENCIES = ("tcp_p50_us", "tcp_p99_us", "udp_p50_us", "udp_p99_us")
WORKLOADS = (*RATES, *LATENCIES)
MANY: At = (("services", 10_000),)
NAMED = 3  # figures that miss a goal and are named


@dataclass(frozen=True)
class Seen:
    """A figure that is held against a goal."""

    what: str
    value: float


Look: TypeAlias = Callable[[Results], list[Seen]]


@dataclass(frozen=True)
class Goal:
    """What must be at least `least`, or above it; in runs of one of the `comparisons`."""

    text: str
    comparisons: Sequence[str]
    least: float
    look: Look
    above: bool = False

    @property
    def wanted(self) -> str:
        """As a reader has it."""
        return f"{'over' if self.above else 'at least'} {self.least:g}"

    def holds(self, seen: Seen) -> bool:
        """Of one figure."""
        return seen.value > self.least if self.above else seen.value >= self.least

    def verdict(self, runs: Sequence[Results]) -> tuple[str, str]:
        """The figures that decide, and whether it is reached."""
        every = [one for run in runs if run.comparison in self.comparisons for one in self.look(run)]
        found = sorted(every, key=lambda one: one.value)
        if not found:
            return "-", "not measured"
        missed = [one for one in found if not self.holds(one)]
        said = ", ".join(
            f"{one.value:.{3 if one.value < 10 else 1}f} ({one.what})"
            for one in (missed or found)[: NAMED if missed else 1]
        )
        if len(found) == 1:
            return said, "not reached" if missed else "reached"
        if missed:
            return f"{said}; {len(found) - len(missed)} of {len(found)} reached", "not reached"
        return f"{said}, the least of {len(found)}", "reached"


def _known(results: Results, keys: Sequence[str]) -> list[Metric]:
    return [metric for metric in results.judged if metric.key in keys]


def beside(case: str, others: Sequence[str], keys: Sequence[str] = WORKLOADS, at: At = ()) -> Look:
    """How many times as good as each of the others."""

    def look(results: Results) -> list[Seen]:
        pairs = ((metric, other) for metric in _known(results, keys) for other in others)
        found = ((metric, other, results.ratio(case, other, metric, at)) for metric, other in pairs)
        title = "{0.title} to {1}" if len(keys) > 1 else "to {1}"
        return [Seen(title.format(metric, other), one.median) for metric, other, one in found if one]

    return look


def _level(results: Results, case: str, plain: str, metric: Metric, at: At) -> float | None:
    """How good it is there: as a ratio to the plain way, if there is one, so that what the machine does falls out."""
    if results.spread(plain, metric.key, at):
        ratio = results.ratio(case, plain, metric, at)
        return ratio.median if ratio else None
    found = results.spread(case, metric.key, at)
    return found.median**metric.better if found and found.median else None


def flat(case: str, plain: str, size: str, largest: int) -> Look:
    """How many times as good at each larger size as at the smallest; nothing where the largest was not measured."""

    def look(results: Results) -> list[Seen]:
        places = [at for at in results.places if [name for name, _ in at] == [size]]
        made = []
        for metric in results.judged:
            levels = {at: one for at in places if (one := _level(results, case, plain, metric, at))}
            reached = max((at[0][1] for at in levels), default=0) >= largest
            if reached and metric.key in {*WORKLOADS, "one_flow_ns", "random_flow_ns"}:
                first = levels[min(levels)]
                made += [Seen(f"{metric.title} at {shown(at)}", one / first) for at, one in levels.items()][1:]
        return made

    return look


def within(cases: Sequence[str], key: str, most: float) -> Look:
    """How many times it could be done in `most`."""

    def look(results: Results) -> list[Seen]:
        found = ((case, results.spread(case, key)) for case in cases)
        return [Seen(f"{case}: {one.median:.0f}", most / one.median) for case, one in found if one and one.median]

    return look


IPTABLES = ("iptables", "iptables-legacy")
GOALS = (
    Goal("VIP local, to the bare veth pair", ["run"], 0.95, beside("vip-local", ["veth"])),
    Goal("VIP local, to the plain bridge", ["run"], 1.0, beside("vip-local", ["bridge"])),
    Goal("pod to pod with pydatapath loaded, to the plain bridge", ["run"], 0.99, beside("bridge-loaded", ["bridge"])),
    Goal("pod to pod past the bridge, to the bare veth pair", ["run"], 0.95, beside("pod-fast", ["veth"])),
    Goal(
        "pod to pod past the bridge, of no known flow, to the bare veth pair",
        ["run"],
        0.95,
        beside("pod-fast-unserved", ["veth"]),
    ),
    Goal("SNAT, to plain routing", ["run", "snat"], 0.97, beside("snat-pydatapath", ["outside"])),
    Goal(
        "SNAT, to MASQUERADE by iptables and by nftables",
        ["run", "snat"],
        1.0,
        beside("snat-pydatapath", ["snat-iptables", "snat-nftables"]),
        above=True,
    ),
    Goal(
        "new connections beside 10,000 services, to iptables",
        ["crowd"],
        2.3,
        beside("pydatapath", IPTABLES, ["conn_per_s"], MANY),
    ),
    Goal(
        "new connections beside 10,000 services, to nftables",
        ["crowd"],
        1.5,
        beside("pydatapath", ["nftables"], ["conn_per_s"], MANY),
    ),
    Goal(
        "latency and throughput beside 10,000 services, to both",
        ["crowd"],
        1.0,
        beside("pydatapath", [*IPTABLES, "nftables"], ["gbit_per_s", "tcp_p50_us", "tcp_p99_us"], MANY),
        above=True,
    ),
    Goal("flat from 1 to 50,000 services", ["crowd"], 0.95, flat("pydatapath", "bridge", "services", 50_000)),
    Goal("flat to 1,000,000 flows", ["crowd"], 0.95, flat("pydatapath", "bridge", "flows", 1_000_000)),
    Goal(
        "a known flow's packet, translated, in 150 ns: 150 by what it took",
        ["packet_costs"],
        1.0,
        within(("known-tcp", "known-udp"), "ipv4_ns", 150.0),
    ),
    *(
        Goal(
            f"one change among 10,000, {by}, to {what}", ["programming"], least, beside(case, [other], ["one_s"], MANY)
        )
        for case, by in (("pydatapath", "by our command"), ("pydatapath-api", "by our API"))
        for other, what, least in (
            ("iptables-legacy-whole", "iptables-restore of the whole table", 20),
            ("nftables", "nft's incremental update", 5),
        )
    ),
)


def table(runs: Sequence[Results]) -> Table:
    """Each goal, the figure seen, and whether it is reached."""
    rows = [[goal.text, goal.wanted, *goal.verdict(runs)] for goal in GOALS]
    return Table("", ["goal: times as good in the same round", "wanted", "seen", "verdict"], rows, texts=4)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench goals", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    try:
        runs = [Results.of(read(path)) for path in parser.parse_args(argv).results]
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(table(runs).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
