"""A row for each fault test, for a program to read: a line of JSON in the file that PYDATAPATH_ROWS names.

A fault test is one in tests/fault, or one anywhere whose name has a fault's number. There is no hash of a capture: none
is made, what was lost is counted by the datagrams' own numbers. A test that tells less than its fault's figures fails.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from controls import CONTROLS, TESTS_OF_TESTS

__all__ = [
    "MUST_TELL",
    "faults_of",
    "is_fault_test",
    "lacking",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "tell",
    "tell_more",
    "tell_worst",
]

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
    "rss_peak_mb",  # the largest process of the commands that the test ran and measured (measuring.py)
    "control_lost_max",  # of the same traffic without us: datagrams, or connections and calls where those are counted
    "seed",
)
# What is counted of each fault, by every test of it that plays it on a kernel
MUST_TELL: Final = {
    "F1": ("repeats", "sent", "lost_max", "gap_ms_max", "broken", "new_failed", "control_lost_max"),
    "F2": ("repeats", "sent", "lost_max", "gap_ms_max", "broken", "new_failed", "control_lost_max"),
    "F3": ("repeats", "wrong", "recovery_s", "seed"),
    "F4": ("repeats", "wrong", "recovery_s", "seed"),
    "F5": ("repeats",),
    "F6": ("repeats",),
    "F7": ("repeats", "rss_peak_mb"),
    "F8": ("repeats", "rss_peak_mb"),
    "F9": ("repeats", "wrong", "rss_peak_mb"),
    "F10": ("repeats", "leaked"),
    "F11": ("repeats", "recovery_s"),
    "F12": ("repeats", "broken", "new_failed", "wrong"),
    "F13": ("repeats", "recovery_s"),
    "F14": ("repeats", "misdelivered", "wrong"),
    "F15": ("repeats", "leaked"),
    "F16": ("sent", "broken", "new_failed"),
    "F17": ("sent", "gap_ms_max", "broken", "new_failed"),
    "F18": ("sent", "broken", "new_failed"),
    "F19": ("repeats", "sent", "new_failed"),
    "F20": ("sent",),
    "F21": ("sent",),
    "F22": ("sent", "broken"),
    "F23": ("sent", "broken"),
    "F24": ("repeats", "sent", "lost_max", "broken", "new_failed", "rss_peak_mb"),
    "F25": ("repeats", "wrong", "rss_peak_mb"),
    "F26": ("repeats", "wrong"),
    "F27": ("repeats", "wrong", "rss_peak_mb"),
    "F28": ("repeats", "wrong", "rss_peak_mb"),
    "F29": ("repeats", "wrong", "rss_peak_mb"),
    "F30": ("repeats", "broken"),
    "F31": ("repeats", "rss_peak_mb"),
    "F32": ("repeats", "gap_ms_max", "broken", "new_failed", "leaked"),
}
_told: dict[str, float | str] = {}  # of the test that runs
_ended: dict[str, pytest.TestReport] = {}  # its own report, until its fixtures have looked for what it left


def tell(load: str | None = None, **figures: float) -> None:
    """Takes figures of the test that runs by the names of NUMBERS; those that it does not give are null.

    `load`: who talks meanwhile. A module may say it for all of its tests, by a LOAD.
    """
    unknown = figures.keys() - set(NUMBERS)
    assert not unknown, f"no such figures: {unknown}"
    _told.update(figures if load is None else {"load": load, **figures})


def tell_worst(**figures: float) -> None:
    """As `tell`, for what is seen several times in a test: the largest counts."""
    for name, value in figures.items():
        told = _told.get(name, value)
        tell(**{name: max(value, told) if isinstance(told, int | float) else value})


def tell_more(**figures: float) -> None:
    """As `tell`, for what is done several times in a test: the counts are added up."""
    for name, value in figures.items():
        told = _told.get(name, 0)
        tell(**{name: value + told if isinstance(told, int | float) else value})


def lacking(row: Mapping[str, Any]) -> list[str]:
    """What a row does not say of its faults; of a test that has not passed nobody asks. A unit test is its verdict."""
    if row["verdict"] != "passed":
        return []
    asked = [one for one in row["id"] if not row["test"].startswith("tests/unit/")]
    return sorted({name for fault in asked for name in MUST_TELL[fault] if row[name] is None})


def faults_of(nodeid: str) -> list[str]:
    """The faults whose numbers a test's own name has; not what its parameters happen to look like."""
    return re.findall(r"_(F[1-9]\d*)(?=_|$)", nodeid.partition("::")[2].partition("[")[0])


def is_fault_test(item: pytest.Item) -> bool:
    """One that has a row."""
    return item.path.parent.name == "fault" or bool(faults_of(item.nodeid))


def made(item: pytest.Item, report: pytest.TestReport, after: pytest.TestReport) -> dict[str, Any]:
    """The row of a test that has ended, and of what its fixtures found `after` it."""
    faults = faults_of(item.nodeid)
    return {
        "id": faults,
        "test": item.nodeid,
        "what": (item.function.__doc__ or "").strip().partition("\n")[0] if isinstance(item, pytest.Function) else "",
        "commit": _commit(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "links": "veth",
        "load": _told.get("load", getattr(getattr(item, "module", None), "LOAD", None)),
        **{number: _told.get(number) for number in NUMBERS},
        "seconds": round(report.duration, 1),
        "control": [one.fault for one in CONTROLS if one.fault.partition(":")[0] in faults]
        + [test for fault in faults for test in TESTS_OF_TESTS.get(fault, ())],
        "verdict": report.outcome if report.outcome != "passed" else after.outcome,
    }


@functools.cache
def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git, or what a test has left of descriptors does not do
        return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What the last test told is not of this one; what its own fixtures do is."""
    _told.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Writes the row where it is asked for, when all that belongs to the test is over."""
    report: pytest.TestReport = yield
    if call.when == "call" or (call.when == "setup" and report.outcome != "passed"):
        _ended[item.nodeid] = report
    if call.when == "teardown":
        file, ended = os.environ.get("PYDATAPATH_ROWS"), _ended.pop(item.nodeid, None)
        if ended and is_fault_test(item):
            row = made(item, ended, report)
            if lacks := lacking(row):
                report.outcome = row["verdict"] = "failed"
                report.longrepr = f"the row of {', '.join(row['id'])} does not tell {', '.join(lacks)}: see MUST_TELL"
            if file:
                with Path(file).open("a") as out:
                    out.write(json.dumps(row) + "\n")
    return report  # type: ignore[return-value]
