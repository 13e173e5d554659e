"""Whether the kernel has complained: what its taint says, and the warnings in its log."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

__all__ = ["Watch", "complaints", "complaints_in"]

SIGNS = re.compile(r"WARNING:|BUG:|\bOops\b")
TAINTED, LOG = Path("/proc/sys/kernel/tainted"), Path("/dev/kmsg")
MOST = 8192  # bytes of a record (Documentation/ABI/testing/dev-kmsg)


def complaints_in(records: Iterable[str]) -> list[str]:
    """The warnings among records of /dev/kmsg ("6,104391,15551103628,-;text"), those of programs left out."""
    found = []
    for record in records:
        head, _, text = record.partition(";")
        priority = head.partition(",")[0]
        # Facility 0 is the kernel; whoever writes to /dev/kmsg has another
        if priority.isdecimal() and int(priority) < 8 and SIGNS.search(text):
            found.append(text.partition("\n")[0])
    return found


def complaints(before: int | None, after: int | None, records: Iterable[str]) -> list[str]:
    """What is new of the taint, whose bits Documentation/admin-guide/tainted-kernels.rst names, and of the log."""
    found = complaints_in(records)
    if before is not None and after is not None and after & ~before:
        found.append(f"/proc/sys/kernel/tainted was {before} and is {after}")
    return found


class Watch:
    """What the kernel says from now on, as far as it can be read here. A context manager."""

    def __init__(self) -> None:
        self._before = _taint()
        self._log = -1

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._log = os.open(LOG, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._log, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        if self._log >= 0:
            os.close(self._log)

    def complaints(self) -> list[str]:
        """All so far."""
        return complaints(self._before, _taint(), self._records())

    def _records(self) -> Iterator[str]:
        while self._log >= 0:
            try:
                record = os.read(self._log, MOST)
            except BrokenPipeError:  # the oldest were overwritten: it goes on with the next that is there
                continue
            except OSError:  # EAGAIN: no more
                return
            yield record.decode(errors="replace")


def _taint() -> int | None:
    try:
        return int(TAINTED.read_text())
    except (OSError, ValueError):
        return None
