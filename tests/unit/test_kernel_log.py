"""The check of the kernel's log that tests of the kernel are held to: what it takes for a complaint."""

from __future__ import annotations

import pytest
from kernel_log import complaints, complaints_in

QUIET = "6,104391,15551103628,-;uplink: port 2(node1) entered disabled state"


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: CPU: 1 PID: 4711 at kernel/bpf/verifier.c:123 do_check+0x1/0x2",
        "BUG: unable to handle page fault for address: ffffc90000000000",
        "kernel BUG at net/core/skbuff.c:123!\nBUG: of a line below it counts, too",
        "Oops: Oops: 0000 [#1] PREEMPT SMP",
    ],
)
def test_a_warning_of_the_kernel_is_a_complaint(text: str):
    assert complaints_in([QUIET, f"4,104392,15551103629,-;{text}", QUIET]) == [text.partition("\n")[0]]


@pytest.mark.parametrize(
    "record",
    [
        QUIET,
        "12,104392,15551103629,-;WARNING: a program has written this to /dev/kmsg",
        "6,104392,15551103629,-;DEBUG mode, no warnings, Oopsie",
        "",
        "no record",
    ],
)
def test_nothing_else_is(record: str):
    assert complaints_in([record]) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0, 512, True), (512, 512, False), (512, 512 | 128, True), (None, 512, False), (0, None, False)],
)
def test_new_taint_is_one(before: int | None, after: int | None, told: bool):
    """Where it could be read; what was there before is not this module's."""
    assert complaints(before, after, []) == ([f"/proc/sys/kernel/tainted was {before} and is {after}"] if told else [])
