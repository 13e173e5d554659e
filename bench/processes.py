"""Commands and servers, in a network namespace or out of it: each bounded in time, none outlives the benchmark."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["BenchError", "Command", "in_netns", "run", "server"]

COMMAND_TIMEOUT_S = 60.0  # our command line takes 0.3, and ten in an emulator
STOP_TIMEOUT_S = 3.0


class BenchError(Exception):
    """A step of the benchmark failed; str() is one sentence for the user."""


def in_netns(netns: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` inside the namespace named `netns`.

    nsenter, not `ip netns exec`, which would hide /sys/fs/bpf.
    """
    return ["nsenter", f"--net=/run/netns/{netns}", *argv]


def _tied(argv: Sequence[str]) -> list[str]:
    """`argv` so that the kernel ends it when the benchmark dies, however it dies (prctl PR_SET_PDEATHSIG)."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


class Command:
    """A command that runs. Whoever makes one calls `finish` or `kill`."""

    def __init__(self, argv: Sequence[str], *, netns: str | None = None, stdin: str | None = None) -> None:
        self._line, self._stdin = " ".join(argv), stdin
        # A session of its own: Ctrl-C reaches us alone, and we end what runs.
        self._process = subprocess.Popen(
            _tied(in_netns(netns, argv) if netns else argv),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """End it, if it has not ended yet."""
        with self._process:  # closes the pipes
            self._process.kill()

    def finish(self, timeout: float) -> str:
        """Wait for its end and return its stdout; BenchError when it fails or takes over `timeout` seconds from now."""
        try:
            out, err = self._process.communicate(self._stdin, timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchError(f"`{self._line}` did not end within {timeout:.0f} s") from None
        except BaseException:
            self.kill()
            raise
        if self._process.returncode != 0:
            said = (err.strip() or out.strip() or "no output").splitlines()
            raise BenchError(f"`{self._line}` failed ({self._process.returncode}): {' | '.join(said[-3:])}")
        return out


def run(
    argv: Sequence[str], *, netns: str | None = None, stdin: str | None = None, timeout: float = COMMAND_TIMEOUT_S
) -> str:
    """Run a command to its end and return its stdout; BenchError when it fails or takes over `timeout` seconds."""
    return Command(argv, netns=netns, stdin=stdin).finish(timeout)


@contextlib.contextmanager
def server(argv: Sequence[str], *, netns: str, log: Path) -> Iterator[int]:
    """Keep a server running inside `netns` for the length of the `with`; yields its pid. Its output goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            _tied(in_netns(netns, argv)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
