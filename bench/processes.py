"""Commands and servers, in a network namespace or out of it: each bounded in time, none outlives the benchmark."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["BenchError", "in_netns", "run", "server"]

COMMAND_TIMEOUT_S = 20.0
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


def run(
    argv: Sequence[str], *, netns: str | None = None, stdin: str | None = None, timeout: float = COMMAND_TIMEOUT_S
) -> str:
    """Run a command to its end and return its stdout; BenchError when it fails or takes over `timeout` seconds."""
    line = in_netns(netns, argv) if netns else list(argv)
    try:
        # A session of its own: Ctrl-C reaches us alone, and we end what runs.
        done = subprocess.run(
            _tied(line),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"`{' '.join(argv)}` did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise BenchError(f"`{' '.join(argv)}` failed ({done.returncode}): {' | '.join(said[-3:])}")
    return done.stdout


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
