"""A load that fails, over an instance that runs and has traffic: the kernel refuses its program, has no memory for its
maps, or the compiler has none. What ran goes on as it was, with nothing lost; the same load succeeds when it can.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from host_state import dump
from rows import tell
from stand import STEADY, Stand, stand_up
from streaming import SEQUENCE_PORT, Scripts, dropped, say, stream_objects

from pydatapath.documents import to_yaml
from pydatapath.kernel import cache, libbpf
from pydatapath.kernel.maps import Maps

PROJECT = Path(__file__).resolve().parents[2]
NUMBERED = "10.96.0.73"  # where datagrams are sent
RATE, TALKERS = 500, 20  # datagrams a second; connections
WARM = 1.0  # seconds of traffic before and after
# Connections that the table is to have room for, of this process alone: too many for the memory that a command may have
# for its maps, and a few
MANY, FEW = (count + os.getpid() % 10_000 for count in (600_000, 10_000))
MAPS_MB, COMPILER_MB, SPACE_MB = 160, 100, 260  # of memory, and of address space: more than the command itself needs
PATIENCE = 150.0
ALONE = {"PYDATAPATH_NO_CACHE": "1"}  # compiles, whatever was kept
MEMORY = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"  # cgroup v1
UNIFIED = Path("/sys/fs/cgroup"), "memory.max"

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded, and the programs kept that its first load needs."""
    with stand_up(f"fl-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        texts = stream_objects("numbered", NUMBERED, made.servers[:1])
        made.base.write_text(f"{made.base.read_text()}---\n{to_yaml(texts)}")
        yield made


class Steady(Scripts):
    """Numbered datagrams to one backend by its service, and connections that talk. A context manager; `end` tells what
    was lost.
    """

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand, self.to = stand, stand.servers[0]

    def __enter__(self) -> Self:
        self._start("receive", self.to, "receive", self.to.netns, SEQUENCE_PORT)
        self._start("send", self.stand.caller, "send", 1, NUMBERED, SEQUENCE_PORT, RATE)
        self.talk(self.stand.caller, STEADY[0], TALKERS)
        time.sleep(WARM)
        self._dropped = dropped([self.stand.caller, self.to])
        return self

    def end(self) -> str:
        """Fails where anything was lost; figures, for a person."""
        time.sleep(WARM)
        sent, talk, heard = self._stop("send"), self.end_talk(self.stand.caller), self._stop("receive")
        came = heard["streams"]["1"]
        lost = sent["sent"] - came["distinct"]
        tell(
            repeats=1,
            sent=sent["sent"],
            lost_max=lost,
            misdelivered=came["twice"] + came["came"] - max(came["sources"].values()),
            gap_ms_max=round(came["silence"], 1),
            broken=len(talk["broken"]),
            new_failed=len(talk["failed"]),
        )
        why = f"missing {came['missing']}, dropped {dropped([self.stand.caller, self.to]) - self._dropped}"
        assert (lost, came["twice"], len(came["sources"]), sent["refused"]) == (0, 0, 1, {}), why
        assert (talk["broken"], talk["failed"]) == ([], [])
        assert talk["calls"] > 0
        return (
            f"{lost} of {sent['sent']} datagrams lost, longest silence {came['silence']:.0f} ms; none of {TALKERS}"
            f" connections broken, {talk['calls']} new calls answered"
        )


def held(stand: Stand) -> dict[str, Any]:
    """What must be the very same: programs and maps by their numbers, pins, records, the host, kept programs."""
    which = stand.which
    with Maps(which.map_pins) as maps:
        numbers = {path.name: maps[path.name].info.id for path in which.map_pins.iterdir()}
    with contextlib.closing(sqlite3.connect(f"file:{which.records}?mode=ro", uri=True)) as records:
        written = sorted(records.iterdump())
    return {
        "maps": numbers,
        "programs": {path.name: program_at(path) for path in which.program_pins.iterdir() if path.name != "walks"},
        "pins": sorted(f"{path} {path.stat().st_mode:o}" for path in which.pins.rglob("*")),
        "records": written,
        "kept": sorted(path.name for path in cache.DIRECTORY.iterdir()),
        **dump(stand.lab, [stand.node]),  # with the numbers of the programs that hang there
    }


def program_at(pin: Path) -> int:
    """The number of a pinned program."""
    descriptor = libbpf.open_pin(str(pin))
    try:
        return libbpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def made_for(flows: int) -> int:
    """How many maps of flows there are in the kernel for so many, which nobody else has asked for."""
    listed = json.loads(subprocess.run(["bpftool", "-j", "map"], capture_output=True, check=True).stdout)
    return sum(one.get("max_entries") == 2 * flows for one in listed)


@dataclass(frozen=True)
class Fault:
    """How a load for so many flows is made to fail, and what it must say. `start`: what its process does before."""

    flows: int
    says: str
    environment: Mapping[str, str] | None = None
    start: Callable[[], None] | None = None


def fails_over_traffic(stand: Stand, fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    """A load with other options has this fault: one sentence, and what runs does not notice; then it has none."""
    stand.load()
    stand.apply()
    otherwise = ("load", "--cluster-cidr", "10.244.0.0/16", "--max-flows", str(fault.flows), "--algorithm", "maglev")
    with Steady(stand) as steady:
        stand.hold(STEADY)
        before = held(stand)
        done = subprocess.run(
            stand.command(*otherwise),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **(fault.environment or {})},
            preexec_fn=fault.start,
        )
        assert stand.traffic(STEADY) == []
        after = held(stand)
        figures = steady.end()
    told = f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    say(capsys, f"{done.stderr.strip()}: {figures}")
    assert done.returncode == 1, told
    assert re.fullmatch(r"Error: [^\n]+\n(Hint: [^\n]+\n)?", done.stderr), told
    assert re.search(fault.says, done.stderr), told
    changed = {part: one for part, one in after.items() if one != before[part]}
    tell(wrong=len(changed))
    assert changed == {}
    assert made_for(fault.flows) == 0
    stand.do(*otherwise)
    assert made_for(fault.flows) == 1
    assert stand.traffic(STEADY) == []
    stand.clear()


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A copy of the package whose last program reads a packet without a look at its end."""
    for part in ("pydatapath", "bpf"):
        shutil.copytree(PROJECT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "bpf" / "datapath.c"
    was, broken = "\treturn walk_fast(skb, TO_BRIDGE);", "\treturn *(u8 *)(long)skb->data;"
    text = source.read_text()
    assert was in text
    source.write_text(text.replace(was, broken))
    return tmp_path


def test_F27_a_program_that_the_kernel_refuses(stand: Stand, refused: Path, capsys: pytest.CaptureFixture[str]):
    """By its verifier, when others of the same load are in the kernel already, and maps of other sizes are made."""
    says = r"Error: datapath\.c:\d+: the kernel refuses the program 'to_bridge6?': "
    fails_over_traffic(stand, Fault(FEW, says, {"PYTHONPATH": str(refused)}), capsys)


@contextlib.contextmanager
def confined(megabytes: int) -> Iterator[Callable[[], None]]:
    """A cgroup of so much memory, that of maps and of whoever is in it; what makes a process one of these."""
    root, limit = MEMORY if MEMORY[0].is_dir() else UNIFIED
    group = root / f"pydatapath-{os.getpid()}"

    def enter() -> None:
        (group / "cgroup.procs").write_text("0")

    group.mkdir()
    try:
        (group / limit).write_text(str(megabytes << 20))
        yield enter
    finally:
        wait_until_empty(group)
        group.rmdir()


def wait_until_empty(group: Path) -> None:
    """Whoever was in it has ended."""
    deadline = time.monotonic() + 10
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_F31_no_memory_for_the_maps(stand: Stand, capsys: pytest.CaptureFixture[str]):
    """Of another size, beside those that run: the kernel refuses the first that is too large."""
    with confined(MAPS_MB) as enter:
        says = "Error: map 'flows': BPF_MAP_CREATE failed: Cannot allocate memory"
        fails_over_traffic(stand, Fault(MANY, says, start=enter), capsys)


def test_F31_no_memory_for_the_compiler(stand: Stand, capsys: pytest.CaptureFixture[str]):
    """While it compiles the kernel kills it, whose memory is most."""
    with confined(COMPILER_MB) as enter:
        fault = Fault(FEW, "Error: the compiler was killed, as the kernel does where memory is short", ALONE, enter)
        fails_over_traffic(stand, fault, capsys)


def test_F31_no_address_space_for_the_compiler(stand: Stand, capsys: pytest.CaptureFixture[str]):
    """It is refused more, and ends itself."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (SPACE_MB << 20, SPACE_MB << 20))

    fault = Fault(FEW, "Error: the compiler has no memory left", ALONE, limit)
    fails_over_traffic(stand, fault, capsys)
