"""What the rows of fault tests say of controls is so: the text to be broken is there, and so are the tests."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from controls import CONTROLS, TESTS_OF_TESTS, Control
from rows import faults_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda one: one.fault.partition(":")[0])
def test_what_a_control_breaks_is_there(control: Control) -> None:
    """That the test is then red takes a kernel: tests/fault/test_controls.py."""
    assert control.was in (ROOT / control.file).read_text()
    assert (ROOT / "tests" / control.module).is_file()


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
