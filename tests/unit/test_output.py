"""Tables for people: aligned, headed, nothing lost; and the forms for programs."""

from __future__ import annotations

import json

import pytest
import yaml

from pydatapath.cli.output import dump, size, table

DATA = [{"name": "wéb", "port": 80, "node": None, "local": True, "rate": 1.5}]


def test_columns_are_aligned_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    """Text to the left, numbers to the right, two spaces between, nothing after the last."""
    table(["NAME", "COUNT", "ADDRESS"], [("web", 5, "10.96.0.10"), ("a-longer-name", 12345678, "::1")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME              COUNT  ADDRESS",
        "web                   5  10.96.0.10",
        "a-longer-name  12345678  ::1",
    ]


def test_what_is_not_there_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """None and "" are shown, so that columns can be cut by a script; 0 and False are not nothing."""
    table(["A", "B", "C", "D"], [(None, "", 0, False)])
    assert capsys.readouterr().out.splitlines() == ["A  B  C      D", "-  -  0  False"]


def test_a_column_of_numbers_with_gaps_is_still_one_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is missing does not push the others to the left."""
    table(["ENTRIES", "X"], [(7, "a"), (None, "b")])
    assert capsys.readouterr().out.splitlines() == ["ENTRIES  X", "      7  a", "      -  b"]


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    """So one sees what is not there."""
    table(["NAME", "COUNT"], [])
    assert capsys.readouterr().out == "NAME  COUNT\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (14_680_064, "14.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes_are_said_as_people_say_them(count: int, text: str) -> None:
    """Binary units, one decimal."""
    assert size(count) == text


def test_json_is_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers as numbers, null as null, in ASCII, so that any locale prints it."""
    dump(DATA, "json")
    out = capsys.readouterr().out
    assert json.loads(out) == DATA
    assert out.isascii()


def test_yaml_is_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    """In the same order."""
    dump(DATA, "yaml")
    out = capsys.readouterr().out
    assert yaml.safe_load(out) == DATA
    assert [line.strip("- ").partition(":")[0] for line in out.splitlines()] == list(DATA[0])
