"""Negative controls: "nothing was lost" says little of a test that cannot lose. Each fault is built into a copy of the
project, and the test that looks for it, green before, must fail there, and by what the fault does.

Some in each run, by chance (PYDATAPATH_SEED); PYDATAPATH_BIG takes all.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from controls import CONTROLS, Control
from scene import BIG

PROJECT = Path(__file__).resolve().parents[2]
PARTS = ("pydatapath", "bpf", "tests", "examples", "docs", "tools", "pyproject.toml", "README.md")
SEED = int(os.environ.get("PYDATAPATH_SEED", random.randrange(1 << 20)))
CHOSEN = CONTROLS if BIG else random.Random(SEED).sample([one for one in CONTROLS if not one.races], 2)
TRIES = 3

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as it is here."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
    for part in PARTS:
        if (PROJECT / part).is_dir():
            shutil.copytree(PROJECT / part, tmp_path / part, ignore=unwanted)
        else:
            shutil.copy(PROJECT / part, tmp_path / part)
    return tmp_path


def run(copy: Path, control: Control) -> subprocess.CompletedProcess[str]:
    """The control's test, in this copy as it is."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{control.module}"]
    # No line of a summary is cut off
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "COLUMNS": "2000",
        "PYDATAPATH_BIG": "",
        "PYDATAPATH_ROWS": "",
    }
    environment = {name: value for name, value in environment.items() if value}
    return subprocess.run(
        [*command, "-k", control.name], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


def complaints(output: str) -> str:
    """What pytest says of a failure: the line that failed, the error, its summary; no text around it."""
    return "\n".join(line for line in output.splitlines() if re.match(r"(E  |>  |FAILED )", line))


_green: set[tuple[str, str]] = set()


def must_be_green(copy: Path, control: Control) -> None:
    """A test that fails without the fault, or of which none runs, would be no control. Seen once for each test."""
    if (control.module, control.name) not in _green:
        done = run(copy, control)
        said = done.stdout[-3000:] + done.stderr[-1000:]
        assert done.returncode == 0, f"without the fault: {said}"
        assert re.search(r"\b\d+ passed\b", said), f"without the fault: {said}"
        _green.add((control.module, control.name))


@pytest.mark.parametrize("control", CHOSEN, ids=lambda one: one.fault.partition(":")[0])
def test_a_fault_that_is_built_in_is_found(copy: Path, control: Control):
    """By the test that is there for it: it fails, says why, and all before it could be set up."""
    source = copy / control.file
    text = source.read_text()
    assert text.count(control.was) >= 1, f"{control.file} has changed: what is to be broken?"
    must_be_green(copy, control)
    source.write_text(text.replace(control.was, control.broken))
    for _ in range(TRIES if control.races else 1):
        done = run(copy, control)
        if done.returncode:
            break
    said = done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 1, said
    assert re.search(r"\b1 failed\b", said), said
    assert re.search(control.says, complaints(done.stdout)), f"it failed, and not by {control.says!r}: {said}"
