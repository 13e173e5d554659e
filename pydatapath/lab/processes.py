"""Processes in a lab: the command that starts one in a namespace, and the end of those that are left in it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from pydatapath.errors import DatapathError, LabError, NotFound
from pydatapath.kernel import container as launcher
from pydatapath.kernel import netns as namespaces

__all__ = ["command_in", "end_processes", "need_root", "processes_in", "replace_this_process"]

TERM_SECONDS = 1.0  # what a process gets to end by itself before it is killed


def command_in(netns: str, container: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in namespace `netns` and, if that is not "", in a new container there.

    nsenter changes the network namespace and nothing else, so that /sys/fs/bpf stays in sight; then it becomes the
    command. Raises NotFound when there is no such namespace.
    """
    return ["nsenter", f"--net={namespaces.path_of(netns)}", "--", *_within(container, argv)]


def replace_this_process(netns: str, container: str, argv: Sequence[str]) -> NoReturn:
    """Become `argv`, in namespace `netns` and container `container` ("" for none): signals and exit code are its own.

    Raises NotFound when there is no such namespace or no such program.
    """
    if shutil.which(argv[0]) is None:
        raise NotFound(f"there is no program {argv[0]!r} to run in {netns}")
    command = _within(container, argv)
    with namespaces.entered(namespaces.path_of(netns)):
        sys.stdout.flush()
        sys.stderr.flush()
        # Python ignores SIGPIPE, and what is ignored stays ignored in a new program.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            os.execvp(command[0], command)  # noqa: S606 - that there is no shell is the point
        except OSError as error:
            raise DatapathError(f"cannot run {argv[0]!r} in {netns}: {error.strerror}") from error


def need_root() -> None:
    """Raise LabError when this process is not root's."""
    if os.geteuid() != 0:
        raise LabError("lab needs root: it works with network namespaces", hint="run it with sudo")


def processes_in(netns: Iterable[str]) -> list[int]:
    """The ids of the processes in any of the namespaces called `netns`, without this process."""
    wanted = _identities(netns)
    ids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in ids if pid != os.getpid() and _lives_in(pid, wanted)]


def end_processes(netns: Sequence[str]) -> None:
    """End all processes in the namespaces called `netns`: SIGTERM, and SIGKILL for what is left after a second.

    They would keep the namespaces alive, nameless and out of reach.
    """
    deadline = time.monotonic() + TERM_SECONDS
    _signal_all(netns, signal.SIGTERM, deadline)
    # Again until there is none, because a process may have forked while the list was read.
    for _ in range(10):
        if not _signal_all(netns, signal.SIGKILL, time.monotonic() + TERM_SECONDS):
            return


def _within(container: str, argv: Sequence[str]) -> list[str]:
    """`argv`, in a container if one is named."""
    if not container:
        return list(argv)
    # A file without imports of ours, in a bare interpreter: 20 ms, and no environment variable can lead it astray.
    return [sys.executable, "-I", "-S", launcher.__file__, container, "--", *argv]


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells one namespace from another, None when it is gone or not ours to look at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _identities(netns: Iterable[str]) -> set[tuple[int, int] | None]:
    """The namespaces called `netns`; never ours or init's, should such a name have been given to one of these."""
    never = {None, _identity("/proc/self/ns/net"), _identity("/proc/1/ns/net")}
    return {_identity(namespaces.RUN_NETNS / name) for name in netns} - never


def _lives_in(pid: int, wanted: set[tuple[int, int] | None]) -> bool:
    return _identity(f"/proc/{pid}/ns/net") in wanted


def _signal_all(netns: Sequence[str], number: signal.Signals, deadline: float) -> bool:
    """Send signal `number` to what is in the namespaces and wait until it ended or `deadline`; False: nobody there."""
    wanted, signalled = _identities(netns), False
    with contextlib.ExitStack() as descriptors:
        poll, waiting = select.poll(), 0
        for pid in processes_in(netns):
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                descriptors.callback(os.close, process)
                # The id may have gone to another process meanwhile; now that its descriptor is open it cannot any more.
                if _lives_in(pid, wanted):
                    signal.pidfd_send_signal(process, number)
                    poll.register(process, select.POLLIN)
                    waiting, signalled = waiting + 1, True
        while waiting and (left := deadline - time.monotonic()) > 0:
            for process, _ in poll.poll(left * 1000):
                poll.unregister(process)
                waiting -= 1
    return signalled
