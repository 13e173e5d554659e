"""A kernel that lacks what is needed (F27): load says what, and what runs goes on.

The kernel is this one, but it answers the command as an older one would: a seccomp filter stops each call of bpf(2),
and we have those fail that need the feature (stepping.py). All else, what the command does then above all, is real.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest
from rows import tell
from stand import MAX_FLOWS, OPTIONS, OTHER_OPTIONS, STEADY, Stand, stand_up
from stepping import Stepped, memory_of, stepped

ANEW = (*OTHER_OPTIONS, "--max-flows", str(MAX_FLOWS + 10_000))  # other programs, and maps of another size

# include/uapi/linux/bpf.h
MAP_CREATE, PROG_LOAD, MAP_UPDATE_BATCH = 0, 5, 26
LRU_HASH = 9
REDIRECT_NEIGH, REDIRECT_PEER = 152, 155
CALL = 0x85

Refuse = Callable[[str, int, Sequence[int]], int]


def no_lru(name: str, pid: int, arguments: Sequence[int]) -> int:
    """Before Linux 4.10: no such type of map."""
    if name != "bpf" or arguments[0] != MAP_CREATE:
        return 0
    return errno.EINVAL if struct.unpack("=I", memory_of(pid, arguments[1], 4))[0] == LRU_HASH else 0


def no_helper(number: int) -> Refuse:
    """The verifier of an older kernel knows no such function."""

    def refuse(name: str, pid: int, arguments: Sequence[int]) -> int:
        if name != "bpf" or arguments[0] != PROG_LOAD:
            return 0
        count, code = struct.unpack("=4xIQ", memory_of(pid, arguments[1], 16))
        called = {
            immediate
            for op, registers, _, immediate in struct.iter_unpack("=BBhi", memory_of(pid, code, 8 * count))
            if op == CALL and not registers >> 4
        }
        return errno.EINVAL if number in called else 0

    return refuse


def no_batches(name: str, pid: int, arguments: Sequence[int]) -> int:
    """Before Linux 5.6: bpf(2) knows no such command."""
    return errno.EINVAL if name == "bpf" and arguments[0] == MAP_UPDATE_BATCH else 0


LACKS = [
    (no_lru, "LRU hash maps (Linux 4.10)"),
    (no_batches, "batches of entries (Linux 5.6)"),
    (no_helper(REDIRECT_NEIGH), "bpf_redirect_neigh (Linux 5.10)"),
    (no_helper(REDIRECT_PEER), "bpf_redirect_peer (Linux 5.10)"),
]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded."""
    with stand_up(f"la-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        yield made


def assert_it_is_named(done: Stepped, lacks: str) -> None:
    assert done.code == 1, done.output
    assert [line.partition(":")[0] for line in done.output.splitlines() if line] == ["Error", "Hint"], done.output
    assert done.output.startswith(f"Error: this kernel lacks {lacks}: "), done.output


@pytest.mark.parametrize(("refuse", "lacks"), LACKS, ids=[lacks.partition(" (")[0] for _, lacks in LACKS])
def test_F27_what_the_kernel_lacks_is_named_and_nothing_changes(stand: Stand, refuse: Refuse, lacks: str):
    """By a first load and by one over what runs, whose connections go on; and doctor finds it, and nothing else."""
    before = stand.settled_state()
    assert_it_is_named(stepped(stand.command("load", *OPTIONS), refuse=refuse), lacks)
    wrong = stand.differences(before)
    stand.load()
    stand.apply()
    stand.hold(STEADY)
    before = stand.settled_state()
    assert_it_is_named(stepped(stand.command("load", *ANEW), refuse=refuse), lacks)
    wrong += stand.differences(before)
    wrong += stand.traffic(STEADY)
    tell(repeats=2, wrong=len(wrong))
    assert wrong == []
    told = stepped(stand.command("doctor", "-o", "json"), refuse=refuse)
    assert told.code == 1
    missing = [one["name"] for one in json.loads(told.output) if not one["found"]]
    assert [name for name in missing if name != "BPF JIT"] == [lacks.partition(" (")[0]]
    stand.clear()
