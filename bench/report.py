"""From raw samples to what a person reads: medians with quartiles, ratios to other cases; and the JSON file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from bench.document import SCHEMA
from bench.environment import environment
from bench.host import QUIET_CORES
from bench.measures import METRICS, Metric
from bench.words import unit

__all__ = ["At", "Results", "Sample", "Spread", "environment", "shown"]

At: TypeAlias = tuple[tuple[str, int], ...]  # a sample's parameters, sorted by name


def shown(at: At) -> str:
    """Parameters for people: "1,000 services"."""
    return ", ".join(f"{value:,} {name.removesuffix('s') if value == 1 else name}" for name, value in at)


@dataclass(frozen=True)
class Sample:
    """One measurement: which, when (s since the first one began), and its figures, or why there are none.

    `foreign_cores` is what processes that are not ours took of the machine meanwhile. `parameters`: the size of what
    was measured, as {"services": 1000}; only samples of the same parameters are compared.
    """

    round: int
    case: str
    measure: str
    at_s: float
    foreign_cores: float
    values: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def at(self) -> At:
        """The parameters, for comparing."""
        return tuple(sorted(self.parameters.items()))


@dataclass(frozen=True)
class Spread:
    """The middle of some rounds, and how far half of them lie around it."""

    median: float
    q1: float
    q3: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        if not values:
            return None
        q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return Spread(middle, q1, q3, len(values))

    def quartiles(self) -> str:
        """As parts of the median."""
        if not self.median:
            return "-"
        return f"{self.q1 / self.median - 1:+.0%} {self.q3 / self.median - 1:+.0%}"


@dataclass
class Results:
    """All samples of a run, and what is known about it. `cases`: the name and what it is, of each that ran.

    `beside`: which cases each one is compared with, the most telling first. `known`: every figure that the comparison
    can have, in the tables' order. `finished`: sizes at which all has been measured, so that they need not be again.
    """

    cases: Mapping[str, str]
    baselines: Sequence[str]
    arguments: Mapping[str, object]
    environment: Mapping[str, object]
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conntrack: dict[str, int] = field(default_factory=dict)
    load_average_end: Sequence[float] | None = None
    comparison: str = ""
    known: Sequence[Metric] = METRICS
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    finished: list[Mapping[str, int]] = field(default_factory=list)

    @property
    def failures(self) -> list[Sample]:
        """The measurements that gave no figures."""
        return [sample for sample in self.samples if sample.error]

    @property
    def metrics(self) -> list[Metric]:
        """The columns that have figures at all."""
        seen = {key for sample in self.samples for key in sample.values}
        return [metric for metric in self.known if metric.key in seen]

    @property
    def judged(self) -> list[Metric]:
        """Those of which one value can be better than another."""
        return [metric for metric in self.metrics if metric.better]

    @property
    def places(self) -> list[At]:
        """Every set of parameters that something was measured at: by their names, and by size."""
        return sorted({sample.at for sample in self.samples if sample.values}) or [()]

    @property
    def workloads(self) -> dict[str, list[Metric]]:
        """The figures of each measure, in the tables' order."""
        keys: dict[str, set[str]] = {}
        for sample in self.samples:
            keys.setdefault(sample.measure, set()).update(sample.values)
        found = {name: [metric for metric in self.known if metric.key in own] for name, own in keys.items()}
        return {name: metrics for name, metrics in found.items() if metrics}

    @property
    def sizes(self) -> dict[tuple[str, ...], list[At]]:
        """The places by what they are sizes of; () where there is but one."""
        found: dict[tuple[str, ...], list[At]] = {}
        for at in self.places:
            found.setdefault(tuple(name for name, _ in at), []).append(at)
        return found

    def baselines_of(self, case: str) -> list[str]:
        """Those cases that ran which this one is compared with; in a file that names none, with the run's baselines."""
        return [name for name in self.beside.get(case, self.baselines) if name in self.cases and name != case]

    def by_round(self, case: str, key: str, at: At = ()) -> dict[int, float]:
        """The figure of each round that has one."""
        return {s.round: s.values[key] for s in self.samples if s.case == case and key in s.values and s.at == at}

    def spread(self, case: str, key: str, at: At = ()) -> Spread | None:
        """Median and quartiles over the rounds."""
        return Spread.of([*self.by_round(case, key, at).values()])

    def ratios(self, case: str, baseline: str, metric: Metric, at: At = ()) -> list[float]:
        """How many times as good as another case in each round that both have; above 1 is better."""
        own, theirs = (self.by_round(one, metric.key, at) for one in (case, baseline))
        pairs = [(own[r], theirs[r]) for r in sorted(own.keys() & theirs.keys()) if own[r] > 0 and theirs[r] > 0]
        return [mine / base if metric.better > 0 else base / mine for mine, base in pairs] if metric.better else []

    def ratio(self, case: str, baseline: str, metric: Metric, at: At = ()) -> Spread | None:
        """The median of the ratios within each round, and their quartiles."""
        return Spread.of(self.ratios(case, baseline, metric, at))

    def remarks(self) -> list[str]:
        """What a reader has to know beside the tables."""
        tracked = ", ".join(f"{case} {count}" for case, count in self.conntrack.items())
        parts = [f"connections tracked by netfilter at the end: {tracked}"] if tracked else []
        parts += [self._foreign_load()] if self.samples else []
        parts += [f"Note: {note}" for note in self.notes]
        return parts + [
            f"Failed: round {s.round} {s.case} {s.measure}{f' ({shown(s.at)})' if s.at else ''}: {s.error}"
            for s in self.failures
        ]

    def how(self) -> str:
        """How it was measured, of what the command line said."""
        said = [f"{self.arguments.get('rounds', 1)} interleaved rounds"]
        if "duration" in self.arguments:
            said.append(f"{self.arguments['duration']} s each")
        if "pin" in self.arguments:
            ends = "both ends on one core" if self.arguments["pin"] else "ends not pinned"
            said.append(f"latency: half the round trip, {ends}")
        return ", ".join(said)

    def _foreign_load(self) -> str:
        """How quiet the machine was: the reader decides by it whether to believe the rest."""
        cores = [sample.foreign_cores for sample in self.samples]
        disturbed = sum(value > QUIET_CORES for value in cores)
        text = f"other processes took {statistics.mean(cores):.2f} cores on average, {max(cores):.2f} at most"
        return f"{text}; {disturbed} of {len(cores)} measurements had over {QUIET_CORES} beside them"

    def _figures(self) -> Iterator[dict[str, object]]:
        """Each median, with its quartiles and ratios."""
        for at in self.places:
            for case in self.cases:
                for metric in self.metrics:
                    found = self.spread(case, metric.key, at)
                    if found:
                        ratios = {name: self.ratio(case, name, metric, at) for name in self.baselines_of(case)}
                        known = {name: asdict(one) for name, one in ratios.items() if one}
                        place = {"case": case, "parameters": dict(at), "metric": metric.key}
                        yield {**place, **asdict(found), "times_as_good_as": known}

    def document(self) -> dict[str, object]:
        """Everything, as bench/schema.json describes it."""
        return {
            "schema": SCHEMA,
            "comparison": self.comparison,
            "cases": self.cases,
            "baselines": self.baselines,
            "beside": self.beside,
            "metrics": {
                one.key: {"title": one.title, "unit": unit(one.key), "better": one.better, "digits": one.digits}
                for one in self.metrics
            },
            "arguments": self.arguments,
            "environment": self.environment,
            "conntrack": self.conntrack,
            "load_average_end": self.load_average_end,
            "notes": self.notes,
            "finished": self.finished,
            "samples": [asdict(sample) for sample in self.samples],
            "figures": [*self._figures()],
        }

    @staticmethod
    def of(document: Mapping[str, Any]) -> Results:
        """What was written, from a document that `document.read` has checked."""
        names = ("cases", "baselines", "arguments", "environment", "comparison")
        made = Results(**{name: document[name] for name in names})
        made.known = [
            Metric(key, one["title"], one["better"], one["digits"]) for key, one in document["metrics"].items()
        ]
        for one in document["samples"]:
            said = {"at_s": 0.0, "foreign_cores": 0.0, **one}
            made.samples.append(Sample(**{name: said[name] for name in Sample.__dataclass_fields__ if name in said}))
        made.notes, made.conntrack = [*document.get("notes", [])], dict(document.get("conntrack", {}))
        made.beside, made.finished = document.get("beside", {}), [*document.get("finished", [])]
        made.load_average_end = document.get("load_average_end")
        return made

    def write_json(self, path: Path) -> None:
        """Writes the document."""
        path.write_text(json.dumps(self.document(), indent=2) + "\n")
