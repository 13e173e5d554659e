"""What the rows of fault tests say is so: the text that controls break is there, and so are their tests; figures are
the test's own, and none of a fault's is missing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from controls import CONTROLS, TESTS_OF_TESTS, Control
from measuring import measured
from rows import MUST_TELL, NUMBERS, faults_of, lacking

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda one: one.fault.partition(":")[0])
def test_what_a_control_breaks_is_there(control: Control) -> None:
    """That the test is then red takes a kernel: tests/fault/test_controls.py."""
    assert control.was in (ROOT / control.file).read_text()
    assert (ROOT / "tests" / control.module).is_file()
    assert re.compile(control.says).pattern, "any failure would do"


@pytest.mark.parametrize("test", [one for its in TESTS_OF_TESTS.values() for one in its])
def test_a_control_that_is_a_test_is_there(test: str) -> None:
    module, _, name = test.partition("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / module).read_text()


def test_every_fault_that_is_tested_has_a_control() -> None:
    """Of a test that cannot fail, "nothing was lost" says little."""
    rules = tomllib.loads((ROOT / "docs/rules.toml").read_text())
    tested = {number for number, rule in rules.items() if number[0] == "F" and not rule.keys() & {"later", "not-ours"}}
    assert tested == {one.fault.partition(":")[0] for one in CONTROLS} | TESTS_OF_TESTS.keys()


@pytest.mark.parametrize(
    ("nodeid", "faults"),
    [
        ("tests/unit/test_a.py::test_F24_F25_what_is_no_file", ["F24", "F25"]),
        ("tests/packet/test_a.py::test_N22_N23_F19_where_no_port_is_left[IPv4]", ["F19"]),
        ("tests/unit/test_a.py::test_bytes[_F1_]", []),
        ("tests/unit/test_F1.py::test_plain", []),
    ],
)
def test_a_faults_number_is_read_of_a_tests_own_name(nodeid: str, faults: list[str]) -> None:
    assert faults_of(nodeid) == faults


def test_every_fault_has_figures() -> None:
    """By names that rows have."""
    rules = tomllib.loads((ROOT / "docs/rules.toml").read_text())
    assert set(MUST_TELL) == {number for number in rules if number[0] == "F"}
    assert {name for names in MUST_TELL.values() for name in names} <= set(NUMBERS)
    assert all(MUST_TELL.values())


def row(test: str, verdict: str = "passed", **told: float) -> dict[str, Any]:
    """A row of `test`, with these figures alone."""
    return {"id": faults_of(test), "test": test, "verdict": verdict, **dict.fromkeys(NUMBERS), **told}


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        (row("tests/packet/test_a.py::test_N24_F18_a_flood"), ["broken", "new_failed", "sent"]),
        (row("tests/packet/test_a.py::test_F18_a_flood", sent=0, broken=0, new_failed=0), []),
        (row("tests/fault/test_a.py::test_F16_F19_none", sent=9, new_failed=0), ["broken", "repeats"]),
        (row("tests/fault/test_a.py::test_F16_none", "failed"), []),
        (row("tests/fault/test_a.py::test_F16_none", "skipped"), []),
        (row("tests/fault/test_a.py::test_a_control"), []),
        (row("tests/unit/test_a.py::test_F18_text"), []),
        (row("tests/fault/test_a.py::test_F28_a", repeats=1, wrong=0), ["rss_peak_mb"]),
    ],
)
def test_a_row_that_does_not_tell_what_its_fault_asks_for_is_seen(given: dict[str, Any], lacks: list[str]) -> None:
    """A figure that is 0 is told."""
    assert lacking(given) == lacks


TELLING = """
import os, sys
from measuring import measured
from rows import tell, tell_more, tell_worst

TAKES = [sys.executable, "-I", "-S", "-c", "import sys; bytearray(int(sys.argv[1]) << 20)"]

def test_F7_much():
    measured([*TAKES, "150"], timeout=60)
    measured([*TAKES, "1"], timeout=60)
    tell_more(repeats=1)
    tell_more(repeats=2)

def test_F7_little():
    measured([*TAKES, "1"], timeout=60)
    tell(repeats=1)

def test_F9_nothing_told():
    pass

def test_F25_nothing_run():
    tell(repeats=1, wrong=0)
"""


def test_a_row_has_the_figures_of_its_own_test_and_fails_without(tmp_path: Path) -> None:
    """Memory is that of the commands that it ran, not of others before it; none is no figure."""
    (tmp_path / "test_telling.py").write_text(TELLING)
    path = os.pathsep.join(str(ROOT / "tests" / one) for one in (".", "fault"))
    environment = {**os.environ, "PYTHONPATH": path, "PYDATAPATH_ROWS": str(tmp_path / "rows")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "rows", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "-c", os.devnull, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    much, little, *untold = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert (much["repeats"], much["verdict"]) == (3, "passed"), done.stdout
    assert 150 <= much["rss_peak_mb"] < 190
    assert (little["repeats"], little["verdict"]) == (1, "passed")
    assert 0 < little["rss_peak_mb"] < 50
    assert [(one["rss_peak_mb"], one["verdict"]) for one in untold] == [(None, "failed")] * 2
    assert "the row of F9 does not tell repeats, rss_peak_mb, wrong" in done.stdout
    assert "the row of F25 does not tell rss_peak_mb" in done.stdout


def test_a_command_that_is_measured_is_as_it_would_be() -> None:
    """Input, output, exit code, a signal that ends it; and one that takes too long is ended, with its children."""
    echo = measured(["sh", "-c", "cat; echo error >&2; exit 7"], stdin="input", timeout=60)
    assert (echo.stdout, echo.stderr, echo.returncode) == ("input", "error\n", 7)
    assert measured(["sh", "-c", "kill -9 $$"], timeout=60).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        measured(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.2)
    with pytest.raises(OSError, match="nothing-of-this-name"):
        measured(["nothing-of-this-name"], timeout=60)
