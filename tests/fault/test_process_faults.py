"""A process that gets a signal, has few descriptors, nobody who reads its output, or a wrong clock (F5, F29, F31).

Traffic goes on, and a change is made or not, never half.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rows import tell
from scene import BIG
from spoiling import READING, SEED, WRITING, run, same, works
from stand import OPTIONS, STEADY, Stand, unwritten
from stepping import stepped

from pydatapath.kernel import cache
from pydatapath.record_faults import copy_of
from pydatapath.records import Records

pytestmark = pytest.mark.timeout(1800 if BIG else 300)


def test_F31_few_descriptors(loaded: Stand):
    """A limit that cannot be raised is one error; nothing is changed by it."""
    before = loaded.state()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    for command in (*WRITING, *READING):
        done = run(loaded, *command, preexec_fn=limit)
        assert done.returncode == 0 or "Too many open files" in done.stderr, done.stderr
        works(loaded)
    loaded.mend()
    loaded.apply()
    same(loaded, before)


def test_F31_a_low_limit_that_can_be_raised(loaded: Stand):
    """It is."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    done = run(loaded, "load", *OPTIONS, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_F5_a_signal_in_apply_leaves_it_done_or_not(loaded: Stand, number: int, figure: Callable[[str], None]):
    """Never half-done, whenever it comes."""
    before, begun = loaded.state(), time.monotonic()
    loaded.apply(loaded.changed)
    after = loaded.state()
    loaded.apply()
    command = loaded.command("apply", "--prune", "-f", str(loaded.changed))
    steps = stepped(command).steps
    loaded.apply()
    chance, writes = random.Random(SEED), [place for place, step in enumerate(steps, 1) if step.startswith("bpf MAP")]
    places = range(1, len(steps) + 1)
    if not BIG:  # some of all, and of those that would leave the maps half written
        places = sorted({*chance.sample(places, 5), *chance.sample(writes, 3)})
    done = 0
    for place in places:
        hit = stepped(command, kill_before=place, kill_with=number)
        assert "Traceback" not in hit.output, hit.output
        assert not unwritten(loaded.which), f"signal {number} before step {place}: {hit.steps[-1]}"
        works(loaded)
        found = loaded.state()
        assert found["records"] in (before["records"], after["records"]), f"before step {place}: {hit.steps[-1]}"
        done += found["records"] == after["records"]
        loaded.apply()
    figure(
        f"signal {number} in apply: {len(places)} of {len(steps)} steps, {done} done all the same;"
        f" {time.monotonic() - begun:.0f} s, seed {SEED}"
    )
    tell(repeats=len(places), seed=SEED)
    same(loaded, before)


UNSAID = b"""Error: what is to be said cannot be written: No space left on device
Hint: what was to be changed is changed
"""


@pytest.mark.parametrize("reading", [*READING, ("status", "-o", "json"), ("diff", "--prune", "-f")], ids=" ".join)
def test_F5_a_disk_that_is_full_takes_no_answer(loaded: Stand, reading: Sequence[str]):
    """One sentence, not a traceback."""
    tell(repeats=1)
    differs = "diff" in reading
    arguments = (*reading, str(loaded.changed)) if differs else reading
    with open("/dev/full", "wb") as full:
        done = subprocess.run(loaded.command(*arguments), timeout=60, check=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2 if differs else 1, UNSAID)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "| true", ">/dev/full"])
def test_F5_output_that_nobody_takes(loaded: Stand, closed: str):
    """The change is made all the same, and nothing is written where the output would have gone."""
    before = loaded.state()
    command = " ".join(loaded.command("apply", "--prune", "-f", str(loaded.changed)))
    done = subprocess.run(["bash", "-c", f"{command} {closed}"], timeout=60, check=False, capture_output=True)
    tell(repeats=1)
    assert done.stderr == (UNSAID if closed == ">/dev/full" else b"")
    assert {one.name for one in _services(loaded)} == {"new", "steady", "web"}
    loaded.apply()
    same(loaded, before)


def _services(stand: Stand) -> list[object]:
    with Records(stand.which.records) as records:
        return [*records.objects("Service")]


DAY = 86_400
# What Python runs first of all. The clock itself is the whole machine's, and other tests run on it
SET_CLOCK = f"""
import datetime, os, time
shift = int(os.environ["PYDATAPATH_SHIFT"])
real, real_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: real() + shift, lambda: real_ns() + shift * {10**9}
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift)
datetime.datetime = Shifted
"""


@pytest.mark.parametrize("clock", ["the date", "since boot"])
@pytest.mark.parametrize("way", ["on", "back"])
def test_F29_flows_are_as_old_as_they_are(loaded: Stand, tmp_path: Path, clock: str, way: str):
    """Whatever the commands' clock says, a day off or more than the machine has run: none is older or younger, gone or
    back, nothing is drift, and nothing that a command does under it is undone by the next.
    """
    before, spoken, port = loaded.state(), time.monotonic(), loaded.held[STEADY].getsockname()[1]
    shift = DAY if way == "on" else -DAY if clock == "the date" else -int(spoken / 2)
    start, environment = ["unshare", "--time", f"--monotonic={shift}", f"--boottime={shift}"], dict(os.environ)
    if clock == "the date":
        (tmp_path / "sitecustomize.py").write_text(SET_CLOCK)
        found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        start, environment = [], environment | {"PYTHONPATH": found, "PYDATAPATH_SHIFT": str(shift)}

    def flows(*start: str, **more: Any) -> dict[str, dict[str, Any]]:
        command = [*start, *loaded.command("flow", "list", "-o", "json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, **more)
        return {f"{one['protocol']} {one['original']}": one for one in json.loads(done.stdout)}

    def shifted(*arguments: str) -> str:
        command = [*start, *loaded.command(*arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment).stdout

    while True:
        begun, right = time.monotonic(), flows()
        (held,) = (name for name, one in right.items() if port in one["original"].values())
        if right[held]["idle"] > 2:
            break
        assert begun - spoken < 30, right[held]
    told = flows(*start, env=environment)
    took = time.monotonic() - begun
    assert told.keys() <= right.keys()
    assert {name for name, one in right.items() if one["expires"] > took} <= told.keys()
    for name, one in told.items():
        assert 0 <= one["idle"] - right[name]["idle"] <= took, (one, right[name])
        assert one["idle"] + one["expires"] == pytest.approx(right[name]["idle"] + right[name]["expires"])
    for arguments in (("apply", "--prune", "-f", str(loaded.changed)), ("load", *OPTIONS), ("repair",)):
        shifted(*arguments)
        works(loaded)
    told_of = json.loads(shifted("status", "--check", "-o", "json"))
    since = datetime.fromisoformat(told_of["since"]).timestamp() - time.time()
    assert since == pytest.approx(shift if clock == "the date" else 0, abs=120), "the clock was set at all"
    drift = told_of["drift"], json.loads(loaded.do("status", "--check", "-o", "json").stdout)["drift"]
    tell(repeats=1, wrong=len(drift[0]) + len(drift[1]))
    assert drift == ([], [])
    loaded.mend()
    loaded.apply()
    same(loaded, before)


def test_F29_a_clock_that_was_wrong(loaded: Stand):
    """What says that it was made in the future is no worse for it: nothing compares it with the clock."""
    before = loaded.state()
    with Records(loaded.which.records) as records:
        records.put({"since": "2099-01-01T00:00:00+00:00"})
    for path in (loaded.which.records, copy_of(loaded.which.records), *cache.DIRECTORY.iterdir()):
        os.utime(path, (4e9, 4e9))
    assert "2099" in run(loaded, "status").stdout
    loaded.mend()
    assert "2099" not in run(loaded, "status").stdout
    tell(repeats=1, wrong=len(loaded.traffic(STEADY)))
    same(loaded, before)
