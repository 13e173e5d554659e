"""A row for each fault test, for a program to read: a line of JSON in the file that PYDATAPATH_ROWS names."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from controls import CONTROLS

__all__ = ["pytest_runtest_makereport", "tell", "tell_worst"]

NUMBERS: Final = (
    "repeats",  # how often the fault was done
    "sent",  # datagrams, packets, frames
    "lost_max",
    "misdelivered",
    "gap_ms_max",  # the longest silence of a stream
    "broken",  # connections
    "new_failed",  # calls
    "wrong",  # whatever else was not as it must be
    "leaked",  # pins, filters, maps, programs, interfaces; entries that are nobody's
    "recovery_s",  # until the next command had mended it
    "seed",
)
_told: dict[str, float] = {}  # of the test that runs
_ended: dict[str, pytest.TestReport] = {}  # its own report, until its fixtures have looked for what it left


def tell(**figures: float) -> None:
    """Takes figures of the test that runs by the names of NUMBERS; those that it does not give are null."""
    unknown = figures.keys() - set(NUMBERS)
    assert not unknown, f"no such figures: {unknown}"
    _told.update(figures)


def tell_worst(**figures: float) -> None:
    """As `tell`, for what is seen several times in a test: the largest counts."""
    tell(**{name: max(value, _told.get(name, value)) for name, value in figures.items()})


def made(item: pytest.Item, report: pytest.TestReport, after: pytest.TestReport) -> dict[str, Any]:
    """The row of a test that has ended, and of what its fixtures found `after` it."""
    name = item.nodeid.partition("::")[2]
    faults = re.findall(r"(?<![0-9A-Z])F\d+", name)
    return {
        "id": faults,
        "test": item.nodeid,
        "what": (item.function.__doc__ or "").strip().partition("\n")[0] if isinstance(item, pytest.Function) else "",
        "commit": _commit(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "links": "veth",
        **{number: _told.get(number) for number in NUMBERS},
        # The largest of all commands so far that were waited for
        "rss_peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "seconds": round(report.duration, 1),
        "control": [one.fault for one in CONTROLS if one.fault.partition(":")[0] in faults],
        "verdict": report.outcome if report.outcome != "passed" else after.outcome,
    }


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Writes the row where it is asked for, when all that belongs to the test is over."""
    report: pytest.TestReport = yield
    if call.when == "setup":
        _told.clear()
    if call.when == "call" or (call.when == "setup" and report.outcome != "passed"):
        _ended[item.nodeid] = report
    if call.when == "teardown":
        file, ended = os.environ.get("PYDATAPATH_ROWS"), _ended.pop(item.nodeid, None)
        if file and ended:
            with Path(file).open("a") as out:
                out.write(json.dumps(made(item, ended, report)) + "\n")
    return report  # type: ignore[return-value]
