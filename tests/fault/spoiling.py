"""For tests of spoilt files, pins and surroundings: commands that may fail, and the check that all is as it was."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rows import tell_more
from stand import OPTIONS, OTHER_OPTIONS, STEADY, Stand, stand_up

__all__ = ["READING", "SEED", "WRITING", "fails", "loaded", "loaded_over", "mounted", "run", "same", "stand", "works"]

SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
WRITING = (
    ("load", *OPTIONS),
    ("apply", "-f"),
    ("service", "add", "more", "--port", "81"),
    ("delete", "service", "web"),
)
READING = (("status",), ("service", "list"), ("export",), ("flow", "list"), ("node", "list"))


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded, and the programs kept that its loads need."""
    with stand_up(f"sf-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        made.load(OTHER_OPTIONS)
        made.load()
        made.clear()
        yield made


@pytest.fixture
def loaded(stand: Stand) -> Iterator[Stand]:
    """The stand with a service that must go on, over a connection that was open before."""
    stand.load()
    stand.apply()
    stand.hold(STEADY)
    works(stand)
    yield stand
    stand.clear()


def works(stand: Stand) -> None:
    """The steady service is called, and so it was."""
    assert stand.traffic(STEADY) == []


def run(stand: Stand, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """A command that may fail, but with one error and no traceback."""
    if arguments == ("apply", "-f"):
        arguments = ("apply", "--prune", "-f", str(stand.changed))
    tell_more(repeats=1)
    done: subprocess.CompletedProcess[str] = subprocess.run(
        stand.command(*arguments), capture_output=True, text=True, timeout=60, check=False, **more
    )
    told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, told
    assert done.returncode in (0, 1), told
    if done.returncode:
        assert re.fullmatch(r"Error: [^\n]+\n(Hint: [^\n]+\n)?", done.stderr), told
    return done


def fails(stand: Stand, *arguments: str, says: str, hints: str = "", **more: object) -> None:
    """A command that fails with this in its sentence and that in its hint."""
    done = run(stand, *arguments, **more)
    told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert done.returncode == 1, told
    error, _, hint = done.stderr.partition("\nHint: ")
    assert re.search(says, error), told
    assert re.search(hints, hint), told


def same(stand: Stand, wanted: dict[str, Any]) -> None:
    """All is as it was."""
    assert stand.differences(wanted) == []
    works(stand)


@contextlib.contextmanager
def mounted(kind: str, where: Path, options: str) -> Iterator[None]:
    """Something else lies over a folder."""
    subprocess.run(["mount", "-t", kind, "-o", options, "tests", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@contextlib.contextmanager
def loaded_over(stand: Stand, kind: str, where: Path, options: str) -> Iterator[Stand]:
    """As `loaded`, with a mount of its own over a folder."""
    with mounted(kind, where, options):
        stand.load()
        stand.apply()
        stand.hold(STEADY)
        yield stand
        stand.clear()
