"""From raw samples to what a person reads: medians, ratios to other cases, spread; and the JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.host import QUIET_CORES
from bench.measures import METRICS, Metric
from bench.paths import ROOT

__all__ = ["Results", "Sample", "environment"]

VERSIONS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "wrk": (["wrk", "-v"], r"wrk (\S+)"),
    "iperf3": (["iperf3", "--version"], r"iperf (\S+)"),
    "sockperf": (["sockperf", "--version"], r"version (\S+)"),
    "iptables": (["iptables", "-V"], r"iptables (.+)"),
    "nft": (["nft", "-v"], r"nftables v(\S+)"),
    "commit": (["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], r"(?m)^([0-9a-f]{7,})$"),
}


@dataclass(frozen=True)
class Sample:
    """One measurement: which, when (s since the first one began), and its figures, or why there are none.

    `foreign_cores` is what processes that are not ours took of the machine meanwhile.
    """

    round: int
    case: str
    measure: str
    at_s: float
    foreign_cores: float
    values: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def _version(argv: Sequence[str], pattern: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(pattern, done.stdout + done.stderr)  # wrk -v prints its version and fails
    return found[1] if found else "unknown"


def environment() -> dict[str, object]:
    """What the figures depend on and cannot be changed by an argument."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(*how) for name, how in VERSIONS.items()},
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, figures to the right, two spaces between."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(map(_align, line, widths, range(len(header)))) for line in lines)


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


@dataclass
class Results:
    """All samples of a run, and what is known about it. `cases`: the name and what it is, of each that ran."""

    cases: Mapping[str, str]
    baselines: Sequence[str]
    arguments: Mapping[str, object]
    environment: Mapping[str, object]
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conntrack: dict[str, int] = field(default_factory=dict)
    load_average_end: tuple[float, float, float] | None = None

    @property
    def failures(self) -> list[Sample]:
        """The measurements that gave no figures."""
        return [sample for sample in self.samples if sample.error]

    @property
    def metrics(self) -> list[Metric]:
        """The columns that have figures at all."""
        seen = {key for sample in self.samples for key in sample.values}
        return [metric for metric in METRICS if metric.key in seen]

    def by_round(self, case: str, key: str) -> dict[int, float]:
        """The figure of each round that has one."""
        return {s.round: s.values[key] for s in self.samples if s.case == case and key in s.values}

    def median(self, case: str, key: str) -> float | None:
        """The median over the rounds."""
        values = self.by_round(case, key).values()
        return statistics.median(values) if values else None

    def ratio(self, case: str, baseline: str, metric: Metric) -> float | None:
        """How many times as good as another case: the median of the ratios within each round, above 1 is better."""
        theirs = self.by_round(baseline, metric.key)
        own = self.by_round(case, metric.key)
        pairs = [(own[r], theirs[r]) for r in own.keys() & theirs.keys() if own[r] and theirs[r]]
        if not metric.better or not pairs:
            return None
        return statistics.median(mine / base if metric.better > 0 else base / mine for mine, base in pairs)

    def spread(self, case: str, key: str) -> float | None:
        """(largest - smallest) / median over the rounds."""
        values = self.by_round(case, key).values()
        middle = self.median(case, key)
        return (max(values) - min(values)) / middle if middle else None

    def text(self) -> str:
        """The tables, and what a reader has to know beside them."""
        rounds, duration = self.arguments["rounds"], self.arguments["duration"]
        pinned = ", both ends on one core" if self.arguments["pin"] else ", ends not pinned"
        parts = [
            f"Medians of {rounds} interleaved rounds, {duration} s each (latency: half the round trip{pinned})",
            self._medians(),
        ]
        for baseline in self._compared_with:
            parts += [f"\nTimes as good as `{baseline}` in the same round (above 1.00 is better, also for latency)"]
            parts += [self._ratios(baseline)]
        if self.arguments["rounds"] != 1:
            parts += ["\nSpread over the rounds, (max - min) / median: a difference smaller than this says little"]
            parts += [self._spreads()]
        parts += ["", *(f"{name:<15}  {text}" for name, text in self.cases.items())]
        tracked = ", ".join(f"{case} {count}" for case, count in self.conntrack.items())
        parts += [f"connections tracked by netfilter at the end: {tracked}"] if tracked else []
        parts += [self._foreign_load()] if self.samples else []
        parts += [f"Note: {note}" for note in self.notes]
        parts += [f"Failed: round {s.round} {s.case} {s.measure}: {s.error}" for s in self.failures]
        return "\n".join(parts)

    def _rows(self, metrics: Sequence[Metric], figure: Callable[[str, Metric], str]) -> str:
        """A table of one line per case, one column per metric."""
        rows = [[case, *(figure(case, metric) for metric in metrics)] for case in self.cases]
        return _table(["case", *(metric.title for metric in metrics)], rows)

    def _foreign_load(self) -> str:
        """How quiet the machine was: the reader decides by it whether to believe the rest."""
        cores = [sample.foreign_cores for sample in self.samples]
        disturbed = sum(value > QUIET_CORES for value in cores)
        text = f"other processes took {statistics.mean(cores):.2f} cores on average, {max(cores):.2f} at most"
        return f"{text}; {disturbed} of {len(cores)} measurements had over {QUIET_CORES} beside them"

    def _medians(self) -> str:
        return self._rows(self.metrics, lambda case, m: _show(self.median(case, m.key), m.digits))

    def _ratios(self, baseline: str) -> str:
        return self._rows(self._judged, lambda case, m: _show(self.ratio(case, baseline, m), 2))

    def _spreads(self) -> str:
        return self._rows(self._judged, lambda case, m: _show(self.spread(case, m.key), 0, percent=True))

    @property
    def _judged(self) -> list[Metric]:
        return [metric for metric in self.metrics if metric.better]

    @property
    def _compared_with(self) -> list[str]:
        return [name for name in self.baselines if name in self.cases] if len(self.cases) > 1 else []

    def write_json(self, path: Path) -> None:
        """Everything: arguments, environment, each sample, and the figures of the tables."""
        keys = [metric.key for metric in self.metrics]
        document = {
            "arguments": self.arguments,
            "environment": self.environment,
            "medians": {case: {key: self.median(case, key) for key in keys} for case in self.cases},
            "times_as_good_as": {
                baseline: {case: {m.key: self.ratio(case, baseline, m) for m in self._judged} for case in self.cases}
                for baseline in self._compared_with
            },
            "conntrack": self.conntrack,
            "load_average_end": self.load_average_end,
            "notes": self.notes,
            "samples": [asdict(sample) for sample in self.samples],
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def _show(value: float | None, digits: int, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}%}" if percent else f"{value:.{digits}f}"
