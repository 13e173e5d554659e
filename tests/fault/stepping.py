"""Runs a command and counts its steps: each system call by which it changes something. It can be killed before one.

The kernel stops the command, and its children, at the calls that a seccomp filter names and asks us what to do
(SECCOMP_RET_USER_NOTIF, Linux 5.5). We look at what the call would change and let it go on, or kill. So the steps are
found, not listed: no change gets past us because somebody forgot to name it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["Stepped", "calls", "memory_of", "stepped"]

SECONDS = 180.0  # a command that takes longer hangs; to compile takes forty on a crowded machine
# Calls that may change what outlives the process; aarch64 has not all of them
CALLS = (
    *("bpf", "chmod", "chown", "fallocate", "fchmod", "fchmodat", "fchown", "fchownat", "ftruncate", "link", "linkat"),
    *("mkdir", "mkdirat", "mknod", "mknodat", "mount", "openat", "pwrite64", "pwritev", "rename", "renameat"),
    *("renameat2", "rmdir", "sendmsg", "sendto", "symlink", "symlinkat", "truncate", "umount2", "unlink", "unlinkat"),
    *("write", "writev"),
)
AT_A_DESCRIPTOR = ("write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate", "fchmod", "fchown")
BPF_COMMANDS = {
    0: "MAP_CREATE",
    2: "MAP_UPDATE_ELEM",
    3: "MAP_DELETE_ELEM",
    5: "PROG_LOAD",
    6: "OBJ_PIN",
    8: "PROG_ATTACH",
    9: "PROG_DETACH",
    26: "MAP_UPDATE_BATCH",
    27: "MAP_DELETE_BATCH",
    28: "LINK_CREATE",
    29: "LINK_UPDATE",
}
RTM_BASE = 16  # include/uapi/linux/rtnetlink.h: of each object there are NEW, DEL, GET, SET, in this order
GET = 2

# include/uapi/linux: seccomp.h, bpf_common.h, filter.h, audit.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, then nr, arch, ip, args
RESPONSE = struct.Struct("=QqiI")  # id, val, error, flags
RECEIVE = 3 << 30 | NOTIFICATION.size << 16 | ord("!") << 8
SEND = 3 << 30 | RESPONSE.size << 16 | ord("!") << 8 | 1
CONTINUE = 1
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
ARGUMENTS = 16  # where they begin in struct seccomp_data; the low half comes first
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Stepped:
    """What became of a command. `steps`: what each did, in order; the last one not, where it was killed before it."""

    steps: list[str] = field(default_factory=list)
    code: int = 0
    output: str = ""
    orphans: float = 0.0  # seconds that children lived on without it


@cache
def calls() -> dict[str, int]:
    """The numbers of CALLS on this machine, by name."""
    places = (f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    text = next(Path(one).read_text() for one in places if Path(one).exists())
    found = {name: int(number) for name, number in re.findall(r"#define __NR\w*?_(\w+)\s+(\d+)", text)}
    return {name: found[name] for name in CALLS if name in found} | {"seccomp": found["seccomp"]}


def stepped(
    command: Sequence[str],
    *,
    kill_before: int = 0,
    kill_with: int = signal.SIGKILL,
    whole: bool = True,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    at_step: Callable[[int], None] | None = None,
    refuse: Callable[[str, int, Sequence[int]], int] | None = None,
) -> Stepped:
    """Runs a command; kills it before its step of this number (from 1), or never, by this signal.

    `whole`: with its children; else it alone, and they are waited for. `at_step` is called before each step with its
    number. `refuse` is asked first, with a call's name, process and arguments: by the errno that it gives the call
    fails, as on a kernel that cannot do it, and is no step; 0 lets it go on. Raises TimeoutError where it takes longer
    than SECONDS.
    """
    result = Stepped()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given, _listening() as (install, listener):
        given.write(stdin.encode())
        given.seek(0)
        child = subprocess.Popen(
            command,
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=install,  # noqa: PLW1509 - no thread of ours holds a lock: tests have none
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        )
        try:
            _answer(result, child, listener(), kill_before, kill_with, whole=whole, at_step=at_step, refuse=refuse)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        result.code = child.returncode
        output.seek(0)
        result.output = output.read().decode(errors="replace")
    return result


@contextlib.contextmanager
def _listening() -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    """What the child does before it becomes the command, and what then gives us the filter's descriptor."""
    ours, theirs = socket.socketpair()
    program = _filter(theirs.fileno())
    found: list[int] = []

    def install() -> None:
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        number = calls()["seccomp"]
        descriptor = _libc.syscall(number, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, program)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "seccomp")
        socket.send_fds(theirs, [b"."], [descriptor])

    def listener() -> int:
        found.extend(socket.recv_fds(ours, 1, 1)[1])
        return found[0]

    with ours, theirs:
        yield install, listener
        for one in found:
            os.close(one)


def _filter(free: int) -> bytes:
    """A struct sock_fprog that asks at CALLS, but not at a message to `free`, by which the filter itself is sent.

    To ask takes a switch of processes each time: what cannot be a change is let through at once.
    """
    lines = [(LOAD, 0, 0, 0)]
    for name, number in calls().items():
        test = _tests(name, free)
        lines += [(EQUAL, 0, len(test), number), *test] if test else []
    lines.append((RETURN, 0, 0, ALLOW))
    text = b"".join(struct.pack("=HBBI", *line) for line in lines)
    _filter.kept = ctypes.create_string_buffer(text, len(text))  # type: ignore[attr-defined]
    return struct.pack("=H6xQ", len(lines), ctypes.addressof(_filter.kept))  # type: ignore[attr-defined]


def _tests(name: str, free: int) -> list[tuple[int, int, int, int]]:
    """The filter's lines for one call."""
    ask, allow, first = (RETURN, 0, 0, ASK), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, ARGUMENTS)
    if name == "seccomp":
        return []
    if name == "bpf":
        wanted = [one for command in BPF_COMMANDS for one in ((EQUAL, 0, 1, command), ask)]
        return [first, *wanted, allow]
    if name == "openat":
        return [(LOAD, 0, 0, ARGUMENTS + 2 * 8), (ANY_BIT, 0, 1, os.O_CREAT), ask, allow]
    if name == "sendmsg":
        return [first, (EQUAL, 1, 0, free), ask, allow]
    if name in AT_A_DESCRIPTOR:
        return [first, (GREATER, 0, 1, 2), ask, allow]
    return [ask]


def _answer(
    result: Stepped,
    child: subprocess.Popen[bytes],
    listener: int,
    kill_before: int,
    kill_with: int,
    *,
    whole: bool,
    at_step: Callable[[int], None] | None,
    refuse: Callable[[str, int, Sequence[int]], int] | None,
) -> None:
    """Lets each call go on until nobody of the group is left."""
    deadline, ended = time.monotonic() + SECONDS, 0.0
    names = {number: name for name, number in calls().items()}
    polling = select.poll()
    polling.register(listener, select.POLLIN)
    while _lives(child):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{child.args!r} takes longer than {SECONDS:.0f} s, after step {len(result.steps)}")
        if child.returncode is not None:
            ended = ended or time.monotonic()
        if not any(events & select.POLLIN for _, events in polling.poll(2)):
            continue
        notification = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, RECEIVE, notification)
        except OSError:
            continue  # it was killed meanwhile
        ident, pid, _, number, _, _, *arguments = NOTIFICATION.unpack(notification)
        if refuse and (error := refuse(names[number], pid, arguments)):
            with contextlib.suppress(OSError):
                fcntl.ioctl(listener, SEND, RESPONSE.pack(ident, 0, -error, 0))
            continue
        change = _change(names[number], pid, arguments)
        if change:
            result.steps.append(change)
            if at_step:
                at_step(len(result.steps))
            if len(result.steps) == kill_before:
                (os.killpg if whole else os.kill)(child.pid, kill_with)
                if kill_with == signal.SIGKILL and (whole or pid == child.pid):
                    continue  # an answer could reach it before the signal, and the step would be done
        with contextlib.suppress(OSError):
            fcntl.ioctl(listener, SEND, RESPONSE.pack(ident, 0, 0, CONTINUE))
    result.orphans = time.monotonic() - ended if ended else 0.0


def _lives(child: subprocess.Popen[bytes]) -> bool:
    """Whether anybody of a command's group does. Those that have ended are waited for: orphans become ours."""
    if child.poll() is not None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-child.pid, os.WNOHANG)[0]:
                pass
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _change(name: str, pid: int, arguments: list[int]) -> str:
    """What a call would change, "" for nothing that outlives the process."""
    if name == "bpf":
        command = BPF_COMMANDS.get(arguments[0] & 0xFFFFFFFF)
        return f"bpf {command}" if command else ""
    if name in ("sendto", "sendmsg"):
        return _message(name, pid, arguments)
    if name in AT_A_DESCRIPTOR:
        path = _link(f"/proc/{pid}/fd/{arguments[0] & 0xFFFFFFFF}")
        regular = path.startswith("/") and not path.startswith(("/dev/", "/tmp/", "/proc/self"))
        return f"{name} {path}" if regular and "(deleted)" not in path else ""
    place = next(at for at in (0, 1) if not (name.endswith("at") or name == "renameat2") or at)
    return f"{name} {_text(pid, arguments[place])}"


def _message(name: str, pid: int, arguments: list[int]) -> str:
    """Of rtnetlink's messages those that change something: their type stands behind the length."""
    with contextlib.suppress(OSError, struct.error):
        data = arguments[1]
        if name == "sendmsg":  # struct msghdr: name, its length, then the first of the parts
            data = struct.unpack("=Q", memory_of(pid, struct.unpack("=Q", memory_of(pid, arguments[1] + 16, 8))[0], 8))[
                0
            ]
        length, kind = struct.unpack("=IH", memory_of(pid, data, 6))
        rtnetlink = RTM_BASE <= kind < RTM_BASE + 128 and 16 <= length < 1 << 16
        if rtnetlink and _link(f"/proc/{pid}/fd/{arguments[0]}").startswith("socket:") and kind % 4 != GET:
            return f"netlink message {kind}"
    return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def memory_of(pid: int, place: int, size: int) -> bytes:
    """Bytes of a process that waits for an answer. Raises OSError."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(place)
        return memory.read(size)


def _text(pid: int, place: int) -> str:
    with contextlib.suppress(OSError, OverflowError):
        return memory_of(pid, place, 256).split(b"\0", 1)[0].decode(errors="replace")
    return "?"
