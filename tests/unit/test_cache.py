"""Kept programs: what is left of who was killed while they were written."""

from __future__ import annotations

import os
import subprocess
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
