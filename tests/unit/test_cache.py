"""Kept programs: which of them stay, and what is left of who was killed while they were written."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from pydatapath.kernel import cache


def test_what_a_killed_load_has_left_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that finds its programs and keeps none; what somebody is writing now stays."""
    monkeypatch.setattr(cache, "DIRECTORY", tmp_path)
    with subprocess.Popen(["true"]) as gone:
        pass
    left, written = tmp_path / f"abc.{gone.pid}", tmp_path / f"abc.{os.getpid()}"
    for one in (left, written):
        one.touch()
    assert not cache.load("abc", cache.Place(tmp_path, tmp_path, {}, {}), {})
    assert (left.exists(), written.exists()) == (False, True)


@pytest.mark.parametrize("days", [-1, 1], ids=["yesterday", "tomorrow"])
def test_F29_the_latest_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """And as many others as there is room for, also where the clock was set back since these were made."""
    monkeypatch.setattr(cache, "DIRECTORY", tmp_path)
    for number in range(cache.KEPT):
        made = time.time() + days * 86_400 + number
        (tmp_path / f"{number}.json").touch()
        os.utime(tmp_path / f"{number}.json", (made, made))
    cache.save("new", {})
    assert {one.stem for one in tmp_path.iterdir()} == {"new", *map(str, range(1, cache.KEPT))}
