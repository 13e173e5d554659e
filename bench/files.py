"""Where results go, and how they are written."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from bench.paths import ROOT
from bench.processes import BenchError
from bench.report import Results

__all__ = ["RESULTS", "check_writable", "result_path", "save"]

RESULTS = ROOT / "bench" / "results"


def result_path(name: str, asked: Path | None, now: datetime.datetime | None = None) -> Path:
    """Where the user wants it, or in bench/results by moment and comparison."""
    moment = now or datetime.datetime.now().astimezone()
    return asked or RESULTS / f"{moment:%Y-%m-%d-%H%M%S}-{name}.json"


def check_writable(path: Path) -> None:
    """Raise BenchError now rather than after an hour of measuring. bench/results is made where it is not there yet."""
    folder = path.resolve().parent
    if folder == RESULTS:
        RESULTS.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise BenchError(f"{path}: cannot be written there")


def save(results: Results, path: Path) -> None:
    """Write the file at once or not at all: whoever reads it, or stops us now, finds a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        results.write_json(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
