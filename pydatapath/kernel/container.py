"""Run one command as a container: its own host name, process ids, mounts and /proc, in the pod's network namespace.

    python container.py NAME -- CMD [ARG]...        (a file of its own without any import of ours: starts in 20 ms)

This is what a container runtime does for the second container of a Kubernetes pod, and no more: the pod's network
namespace is the one that the caller is in. A process-id namespace lives as long as its first process, so every run is
a new container and nothing stays behind. Three processes take part: the launcher (the caller's namespaces), the
container's process 1, and the command. Process 1 is not the command itself because the kernel drops every signal that
process 1 has no handler for, Ctrl-C too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

__all__ = ["run"]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1

_FORWARDED = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_WATCHED = _FORWARDED | {signal.SIGCHLD}

_libc = ctypes.CDLL(None, use_errno=True)


def run(name: str, argv: list[str]) -> int:
    """Run `argv` in a new container called `name`; gives its exit code, or 128 + N when signal N ended it.

    Raises OSError when the kernel refuses the namespaces (they need CAP_SYS_ADMIN).
    """
    # Blocked before the first fork, so that no signal is lost between a fork and the wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _call("unshare", CLONE_NEWPID)  # for the children, not for this process
    return _supervise(_fork(lambda: _process_one(name, argv)))


def _process_one(name: str, argv: list[str]) -> int:
    """The container's process 1: makes the rest of the container, then waits for the command and reaps orphans."""
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL))  # a killed launcher takes the whole container along
    _call("unshare", CLONE_NEWNS | CLONE_NEWUTS)
    # Only /proc is made private: `/` need not be a mount point (in a chroot it is none), and bpffs stays in sight.
    _call("mount", None, b"/proc", None, MS_PRIVATE, None)
    _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID_NODEV_NOEXEC, None)
    socket.sethostname(name)
    return _supervise(_fork(lambda: _command(argv)))


def _command(argv: list[str]) -> int:
    """Become the command, with the signals as a program expects to find them; 127 when there is no such program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - that there is no shell is the point
    except OSError as error:
        sys.stderr.write(f"Error: cannot run {argv[0]!r}: {error.strerror}\n")
        return 127


def _fork(child: Callable[[], int]) -> int:
    """A child process that runs `child` and exits with what it gives; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 125
        try:
            code = child()
        except OSError as error:
            sys.stderr.write(f"Error: cannot make a container: {error}\n")
        except BaseException:  # noqa: BLE001 - the child must never return into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _supervise(pid: int) -> int:
    """Wait for `pid`, reap whatever else ends, pass signals on; gives the exit code of `pid`."""
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo != signal.SIGCHLD:
            # A terminal's Ctrl-C (si_code SI_KERNEL, above 0) reaches the whole foreground group without our help.
            if info.si_code <= 0:
                os.kill(pid, info.si_signo)
            continue
        while (ended := _reap()) is not None:
            if ended[0] == pid:
                return ended[1]


def _reap() -> tuple[int, int] | None:
    """(process id, exit code) of a child that has ended, None when there is none."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    return pid, 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _call(function: str, *args: object) -> None:
    """Call libc's `function`, which gives 0 when it went well; raises OSError."""
    if getattr(_libc, function)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _main(arguments: list[str]) -> int:
    name, separator, *argv = arguments
    if separator != "--" or not argv:
        sys.stderr.write("Error: usage: container.py NAME -- CMD [ARG]...\n")
        return 2
    try:
        return run(name, argv)
    except OSError as error:
        sys.stderr.write(f"Error: cannot make container {name!r}: {error}\n")
        return 125


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
