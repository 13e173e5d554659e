"""The command line that every comparison has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Measure
from bench.paths import Case
from bench.processes import BenchError

__all__ = ["Comparison", "Preset", "between", "check_resume", "make_parser", "names_of", "result_options", "settle"]


@dataclass(frozen=True)
class Preset:
    """What is run where the user does not say: `text` for --help; no measures: all of them."""

    text: str
    rounds: int
    duration: int
    measures: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """What is compared: cases, by measures.

    `presets`: named ways of running it, of which the user may choose one. `extra`: measures only for who asks for them.
    """

    name: str
    text: str
    cases: Mapping[str, Case]
    measures: Mapping[str, Measure]
    presets: Mapping[str, Preset] = field(default_factory=dict)
    extra: Sequence[str] = ("udp-one-way",)

    @property
    def baselines(self) -> list[str]:
        """The cases that others are compared with."""
        return list(dict.fromkeys(name for case in self.cases.values() for name in case.beside))

    @property
    def usual(self) -> Preset:
        """Neither in a hurry nor for publication."""
        return Preset("", 5, 3)


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
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
    """The command line. What the user leaves to us is None, until `settle`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {comparison.name}", description=comparison.text)
    parser.set_defaults(preset=None)
    # A group of none cannot be shown (CPython 3.11: ValueError, "empty group")
    ways = parser.add_mutually_exclusive_group() if comparison.presets else parser
    for name, preset in comparison.presets.items():
        ways.add_argument(f"--{name}", action="store_const", const=name, dest="preset", help=preset.text)
    usual = comparison.usual
    parser.add_argument("--rounds", type=between(1, 1000), help=f"interleaved rounds (default {usual.rounds})")
    parser.add_argument(
        "--duration", type=between(1, 600), help=f"seconds a measurement takes (default {usual.duration})"
    )
    cases = f"comma-separated, of {', '.join(comparison.cases)} (default all that can run here)"
    parser.add_argument("--only", "--cases", dest="cases", type=names_of(list(comparison.cases)), help=cases)
    extra = f"; {', '.join(comparison.extra)} only by name" if comparison.extra else ""
    measures = f"comma-separated, of {', '.join(comparison.measures)} (default all{extra})"
    parser.add_argument("--measures", type=names_of(list(comparison.measures)), help=measures)
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
    result_options(parser, "go on with the run in FILE, that was stopped or had fewer rounds")
    return parser


def result_options(parser: argparse.ArgumentParser, resume: str) -> None:
    """Where the result goes, and whether one that is there is gone on with."""
    where = "where the result goes (default bench/results/DATE-TIME-NAME.json)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=where)
    parser.add_argument("--resume", action="store_true", help=resume)


def check_resume(arguments: argparse.Namespace) -> None:
    """Raise BenchError where nobody can know what to go on with."""
    if arguments.resume and not arguments.json:
        raise BenchError("--resume needs --json FILE, the run to go on with")


def settle(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Put what the preset says, or the default, where the user said nothing. Cases stay None where all are meant."""
    preset = comparison.presets.get(arguments.preset, comparison.usual)
    arguments.rounds = arguments.rounds or preset.rounds
    arguments.duration = arguments.duration or preset.duration
    arguments.measures = arguments.measures or list(
        preset.measures or (name for name in comparison.measures if name not in comparison.extra)
    )
