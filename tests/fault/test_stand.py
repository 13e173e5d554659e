"""What the fault tests compare sees what it is there for: a leak of any map, whoever holds it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import is_readable
from stand import Stand, stand_up

HOLDING = """
import sys, time
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import MapType
held = {held}
print("held", flush=True)
sys.stdin.read()
"""
OPENED = "libbpf.open_pin(sys.argv[1])"
MADE = 'libbpf.create_map(MapType.HASH, "services", 4, 4, 10)'


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """A node with nothing loaded."""
    with stand_up(f"st-{os.getpid()}", tmp_path) as made:
        yield made


@contextlib.contextmanager
def holding(held: str, pin: Path) -> Iterator[None]:
    """A process that has a map open."""
    command = [sys.executable, "-c", HOLDING.format(held=held), str(pin)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert is_readable(child.stdout, 20)
            assert child.stdout.readline() == "held\n"
            yield
        finally:
            child.kill()


def test_a_map_that_somebody_holds_is_seen(stand: Stand):
    """One of a fixed size, whose pin is gone, and one that never had a pin; and nothing of what was there before."""
    with holding(MADE, Path()):
        pass
    stand.load()
    whole = stand.kernel()
    assert whole["maps"] >= len([*stand.which.map_pins.iterdir()])
    assert whole["programs"] >= len([*stand.which.program_pins.iterdir()]) - 1, "but the array of tail calls"
    with holding(MADE, Path()):
        assert stand.kernel() == whole | {"maps": whole["maps"] + 1}
    with holding(OPENED, stand.which.map_pins / "counters"):
        stand.do("unload")
        assert stand.leaks() == {"maps": 1}
    stand.clear()
