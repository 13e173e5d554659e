"""A run that was stopped is taken up again: what its file has, and whether this would be the same run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.processes import BenchError
from bench.report import Results, Sample

__all__ = ["SAME", "STOPPED", "TOOK", "complete_blocks", "take_up", "take_up_sizes"]

# Arguments that say how a run is run, not what it measures; that there are more rounds now is no other run either.
FREE = {"rounds", "json", "resume", "wait_quiet", "preset"}
SAME = ("kernel", "machine", "cpu", "cores")
FIELDS = {field.name for field in dataclasses.fields(Sample)}
STOPPED, TOOK = "stopped before its end", "the run took "  # notes on one run, which are none on the one that goes on


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: it cannot be taken up: {error}") from None
    if not isinstance(found, dict) or not {"arguments", "environment", "samples"} <= found.keys():
        raise BenchError(f"{path}: it cannot be taken up: it is no result of a benchmark of ours")
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """What is not as it was; compared as JSON has it, where a tuple is a list."""
    now = json.loads(json.dumps(now))
    pairs = ((name, before.get(name), now.get(name)) for name in names)
    return [f"{name} was {was} and is {is_now}" for name, was, is_now in pairs if was != is_now]


def complete_blocks(samples: Iterable[Sample], cases: Sequence[str]) -> list[Sample]:
    """The samples of those measures of a round that every case has had, beside each other in time as ratios want."""
    blocks: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        blocks.setdefault((sample.round, sample.measure), []).append(sample)
    whole = (block for block in blocks.values() if {sample.case for sample in block} >= set(cases))
    return [sample for block in whole for sample in block]


def _same_run(
    path: Path, arguments: Mapping[str, Any], environment: Mapping[str, Any], *, more_rounds: bool
) -> Mapping[str, Any]:
    """The file of a run that this one goes on with; BenchError where it would be another run."""
    found = _read(path)
    settings = sorted((found["arguments"].keys() | arguments.keys()) - FREE)
    differences = _differences(found["arguments"], arguments, settings)
    differences += _differences(found["environment"], environment, SAME)
    for part in ("versions", "settings"):
        before, now = (one.get(part, {}) for one in (found["environment"], environment))
        differences += _differences(before, now, sorted(before.keys() | now.keys()))
    had, wanted = found["arguments"]["rounds"], arguments["rounds"]
    if had > wanted or (had != wanted and not more_rounds):
        differences.append(f"rounds was {had} and is {wanted}")
    if differences:
        raise BenchError(f"{path}: it cannot be taken up, for that was another run: {'; '.join(differences)}")
    return found


def _samples(found: Mapping[str, Any]) -> list[Sample]:
    return [Sample(**{key: value for key, value in one.items() if key in FIELDS}) for one in found["samples"]]


def take_up(path: Path, arguments: Mapping[str, Any], environment: Mapping[str, Any]) -> list[Sample]:
    """The samples of the run in `path` that need not be measured again; BenchError where this is another run."""
    found = _same_run(path, arguments, environment, more_rounds=True)
    return complete_blocks(_samples(found), arguments["cases"])


def take_up_sizes(path: Path, results: Results) -> None:
    """Put into empty results what the run in `path` has of the sizes that it finished; BenchError where it is another.

    A size in which it was stopped is measured anew, since its namespaces are gone.
    """
    found = _same_run(path, results.arguments, results.environment, more_rounds=False)
    results.finished = [*found.get("finished", [])]
    results.samples = [sample for sample in _samples(found) if sample.parameters in results.finished]
    old = [note for note in found.get("notes", []) if note not in results.notes]
    results.notes += [note for note in old if note != STOPPED and not note.startswith(TOOK)]
    results.notes.append(f"taken up again after {len(results.finished)} sizes")
