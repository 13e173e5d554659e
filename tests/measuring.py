"""Runs commands of ours and takes the most memory that they had, a figure of the test's row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rows import tell_worst

__all__ = ["Measured", "measured"]

# A small process starts the command: the memory of who starts one counts as its own until it becomes the command. What
# Python has changed of signals in here is changed back for it
SMALL = """
import os, signal, sys
told = int(sys.argv[1])
os.set_inheritable(told, False)
changed = [signal.SIGPIPE, signal.SIGXFSZ]
try:
    child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setsigdef=changed)
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error}")
_, status, used = os.wait4(child, 0)
os.write(told, b"%d %d" % (os.waitstatus_to_exitcode(status), used.ru_maxrss))
"""


class Measured(subprocess.CompletedProcess[str]):
    """As of subprocess.run. `megabytes`: of the largest of its processes."""

    megabytes = 0


def measured(command: Sequence[str], *, stdin: str = "", timeout: float, **more: Any) -> Measured:
    """Runs a command, in a process group of its own, and tells the row how much memory it had. `more`: of Popen.

    Raises TimeoutExpired where it takes too long: it is ended then, and so is what it started.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as told:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SMALL, str(writing), *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[writing],
                process_group=0,
                **more,
            )
        finally:
            os.close(writing)
        with process:
            try:
                output, errors = process.communicate(stdin, timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        found = told.read().split()
    if not found:
        raise OSError(f"cannot be started: {errors}")
    code, kilobytes = map(int, found)
    done = Measured(command, code, output, errors)
    done.megabytes = round(kilobytes / 1024)
    tell_worst(rss_peak_mb=done.megabytes)
    return done
