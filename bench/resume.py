"""A run that was stopped is taken up again: what its file has, and whether this would be the same run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.processes import BenchError
from bench.report import Results, Sample

__all__ = ["complete_blocks", "save", "take_up"]

# Arguments that say how a run is run, not what it measures; that there are more rounds now is no other run either.
FREE = {"rounds", "json", "resume", "wait_quiet", "preset"}
SAME = ("kernel", "machine", "cpu", "cores")
FIELDS = {field.name for field in dataclasses.fields(Sample)}


def save(results: Results, path: Path) -> None:
    """Write the file at once or not at all: whoever reads it, or stops us now, finds a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        results.write_json(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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


def take_up(path: Path, arguments: Mapping[str, Any], environment: Mapping[str, Any]) -> list[Sample]:
    """The samples of the run in `path` that need not be measured again; BenchError where this is another run."""
    found = _read(path)
    settings = sorted((found["arguments"].keys() | arguments.keys()) - FREE)
    differences = _differences(found["arguments"], arguments, settings)
    differences += _differences(found["environment"], environment, SAME)
    before, now = (one.get("versions", {}) for one in (found["environment"], environment))
    differences += _differences(before, now, sorted(before.keys() | now.keys()))
    if found["arguments"]["rounds"] > arguments["rounds"]:
        differences.append(f"rounds was {found['arguments']['rounds']} and is {arguments['rounds']}")
    if differences:
        raise BenchError(f"{path}: it cannot be taken up, for that was another run: {'; '.join(differences)}")
    samples = [Sample(**{key: value for key, value in one.items() if key in FIELDS}) for one in found["samples"]]
    return complete_blocks(samples, arguments["cases"])
