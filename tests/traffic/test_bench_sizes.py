"""The benchmarks of sizes do what they say, at the smallest size: every implementation serves, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.document import read
from bench.flows import fill_conntrack
from bench.kube_proxy import restore_input
from bench.processes import BenchError
from bench.processes import run as run_in
from bench.report import Results
from bench.topology import Where, node

ROOT = Path(__file__).parents[2]
NETNS = Path("/run/netns")
BOUND_S = 120


def run(name: str, *options: str, json: Path) -> Results:
    """A whole run, as a user starts it."""
    command = [sys.executable, "-m", f"bench.{name}", "--json", str(json), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Results.of(read(json))


def left() -> set[str]:
    return {path.name for path in NETNS.iterdir() if path.name.startswith("bench")} if NETNS.is_dir() else set()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_programming_is_timed_for_every_implementation(tmp_path: Path):
    """First load, one change, all changed: each is served right a moment after the command begins."""
    results = run("programming", "--sizes", "10", "--rounds", "1", json=tmp_path / "run.json")
    assert [*results.cases][:6] == [
        "pydatapath",
        "pydatapath-api",
        "iptables",
        "iptables-legacy",
        "iptables-legacy-whole",
        "nftables",
    ]
    for case in results.cases:
        for step in ("first", "one", "all"):
            served = results.by_round(case, f"{step}_s", (("services", 10),))
            assert 0.0005 < served[1] < 10, (case, step)
    assert left() == set()


def test_programming_finds_out_when_the_wrong_backend_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A change that changes nothing is never served right: that is a failure with the virtual IP, and no figure."""
    from bench import programming
    from bench.programmers import PROGRAMMERS

    monkeypatch.setattr(programming, "PROBE_S", 1.0)
    with programming.setting() as stack:
        which = PROGRAMMERS["nftables"]
        this = programming._node(stack, which, tmp_path)
        prepare = stack.enter_context(which.begin(this, tmp_path))
        first, change, _ = programming.changes(3, 1, this.backends)
        found = programming.until_served(this, first, prepare(first), tmp_path)
        assert 0 < found["first_s"] < 1
        with pytest.raises(BenchError, match=r"one: not served right in time: 10\.97\.0\.10"):
            programming.until_served(this, change, lambda: None, tmp_path)
        with pytest.raises(BenchError, match="it was served so before the command began"):
            programming.until_served(this, first, lambda: None, tmp_path)


def test_crowd_measures_every_implementation(tmp_path: Path):
    """Beside one other service."""
    sizes = ("--services", "2", "--endpoints", "", "--flows", "", "--measures", "conn")
    results = run("crowd", "--quick", *sizes, json=tmp_path / "run.json")
    for case in ("bridge", "pydatapath", "iptables", "iptables-legacy", "nftables"):
        assert results.by_round(case, "conn_per_s", (("services", 2),))[1] > 0, case
    assert left() == set()


def test_crowd_fills_tables_and_calls_many_endpoints(tmp_path: Path):
    """Ours, with 300 endpoints of one service, and with 100 flows in the table, through which a packet goes round."""
    options = ("--cases", "pydatapath", "--measures", "conn", "--services", "")
    results = run("crowd", "--quick", *options, "--endpoints", "300", "--flows", "100", json=tmp_path / "run.json")
    for at in (("endpoints", 300), ("flows", 100)):
        assert results.by_round("pydatapath", "conn_per_s", (at,))[1] > 0
    for key in ("one_flow_ns", "random_flow_ns"):
        assert 5 < results.by_round("pydatapath", key, (("flows", 100),))[1] < 100_000
    assert left() == set()


def test_conntrack_is_filled_as_far_as_it_has_room():
    """All of them, or a sentence that says how many there is room for."""
    with node(f"bench{os.getpid()}-full", where=Where.POD, backends=1, bridge_netfilter=True) as this:
        run_in(["iptables-nft-restore", "--noflush"], netns=this.netns, stdin=restore_input([], "10.244.0.0/16"))
        before = this.conntrack_count()
        fill_conntrack(this, 1000)
        assert 1000 <= this.conntrack_count() <= 1000 + before + 50
        with pytest.raises(BenchError, match=r"nf_conntrack_max is [\d,]+ here"):
            fill_conntrack(this, 1 << 31)


CROWD = ("crowd", "--quick", "--services", "2", "--cases", "pydatapath,iptables")


@pytest.mark.parametrize("moment", ["setting up", "in a round"])
@pytest.mark.parametrize("command", [("programming", "--sizes", "1000"), CROWD], ids=lambda one: one[0])
def test_a_run_that_is_stopped_leaves_nothing(command: tuple[str, ...], moment: str, tmp_path: Path):
    """By Ctrl-C: exit code 130 after clearing up, what is loaded included (the fixtures look for that)."""
    path = tmp_path / "run.json"
    process = subprocess.Popen(
        [sys.executable, "-m", f"bench.{command[0]}", *command[1:], "--json", str(path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        if moment == "in a round":
            assert any(", round 1 " in line for line in process.stderr)
        wait_for(left)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=BOUND_S)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "stopped; everything is cleared up" in said
    assert (f"--json {path} --resume" in said) == path.exists() == (moment == "in a round")
    assert left() == set()


def test_a_run_of_sizes_is_taken_up_at_the_size_where_it_was_stopped(tmp_path: Path):
    """What it has of finished sizes stays as it is; what it has of another one is measured anew."""
    path = tmp_path / "run.json"
    options = ("--sizes", "3,10", "--rounds", "1", "--cases", "pydatapath-api")
    whole = run("programming", *options, json=path)
    kept = [sample for sample in whole.samples if sample.parameters == {"services": 3}]
    assert whole.finished == [{"services": 3}, {"services": 10}]
    whole.finished.pop()
    whole.write_json(path)
    again = run("programming", *options, "--resume", json=path)
    assert [sample for sample in again.samples if sample.parameters == {"services": 3}] == kept
    assert len(again.samples) == len(whole.samples)
    assert again.samples != whole.samples
    assert again.finished == [{"services": 3}, {"services": 10}]
    command = [
        sys.executable,
        "-m",
        "bench",
        "programming",
        *options,
        "--endpoints",
        "1",
        "--json",
        str(path),
        "--resume",
    ]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert refused.returncode == 2, refused.stderr
    assert "that was another run: endpoints was 2 and is 1" in refused.stderr
    last = run("programming", *options, "--resume", json=path)
    assert last.samples == again.samples
    assert sum(note.startswith("the run took") for note in last.notes) == 1
