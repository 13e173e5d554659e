"""What all tests share: the order, who may run, and nobody leaves anything behind.

tests/packet, tests/traffic and tests/fault work on the real kernel. They skip, with the reason, where this machine
cannot run them. With PYDATAPATH_NO_SKIP set, a skip there is a failure for root: `all` means any skip, `host` only
the machine's own lacks that this file finds, so that a test may still skip a feature that an old kernel does not have.

They run in a mount namespace of this process: /run and /sys/fs/bpf are its own. Two test runs on one machine do not
see each other, and nothing outlives the run. (To look in: `nsenter --mount --target PID`.)

After each module, what is there is compared with before: a leak fails the module and names the test that left it. A
fixture of session scope makes its namespaces, pins and processes inside `with keep():` and is held to it at the end.
What the kernel has warned of meanwhile, in its log or by its taint, fails the module, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import settings

# Test folders are no packages (import mode importlib): what all share is here, and what makes tests red with the faults
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "fault")]
pytest.register_assert_rewrite("rows")

import kernel_log  # noqa: E402
import rows  # noqa: E402

ORDER = ("unit", "packet", "traffic", "fault")
NEEDS_KERNEL = ("packet", "traffic", "fault")
NO_SKIP = os.environ.get("PYDATAPATH_NO_SKIP", "")
TESTS = Path(__file__).parent
BPFFS = Path("/sys/fs/bpf")
RUN = Path("/run")
RUN_NETNS = RUN / "netns"
INSTANCES = RUN / "pydatapath"
WATCHED = (RUN_NETNS, BPFFS / "pydatapath", INSTANCES)
LACK = "this machine cannot run it: "

# No example has a time limit of its own (the test has); a kernel in an emulator is 30 times slower and gets fewer.
settings.register_profile("machine", deadline=None)
settings.register_profile("emulated", deadline=None, max_examples=10)
settings.load_profile("emulated" if os.environ.get("PYDATAPATH_EMULATED") else "machine")

# from include/uapi: sched.h, mount.h, prctl.h
CLONE_NEWNS = 0x20000
MS_PRIVATE = 0x40000
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_mounted: list[Path] = []
_kept: set[str] = set()


# Who may run, and in which order


def pytest_addoption(parser: pytest.Parser) -> None:
    """For a machine on which everything is slow, or a first look."""
    parser.addoption(
        "--one-of-each",
        action="store_true",
        help="of each test function one of its parameters, always the same, such as IPv4 here and IPv6 there",
    )
    parser.addoption("--faults", action="store_true", help="those tests alone that leave a row (rows.py)")


def pytest_configure(config: pytest.Config) -> None:
    """Fault tests lie in all folders: what writes their rows sees every test."""
    config.pluginmanager.register(rows)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first; those that this machine cannot run skip with the reason."""
    if config.getoption("--one-of-each"):
        chosen = set(one_of_each([item.nodeid for item in items]))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]
    if config.getoption("--faults"):
        config.hook.pytest_deselected(items=[item for item in items if not rows.is_fault_test(item)])
        items[:] = [item for item in items if rows.is_fault_test(item)]
    items.sort(key=lambda item: ORDER.index(_folder(item.path)) if _folder(item.path) in ORDER else len(ORDER))
    kernel_items = [item for item in items if _folder(item.path) in NEEDS_KERNEL]
    if kernel_items and (reason := _lack()):
        for item in kernel_items:
            item.add_marker(pytest.mark.skip(reason=LACK + reason))


def one_of_each(names: Iterable[str]) -> Iterator[str]:
    """One of the names that differ by what is in brackets only: which, the name itself decides."""
    by_function: dict[str, list[str]] = {}
    for name in names:
        by_function.setdefault(name.partition("[")[0], []).append(name)
    for function, its in by_function.items():
        yield its[zlib.crc32(function.encode()) % len(its)]


def _folder(path: Path) -> str:
    """The folder below tests/ that a test lies in, "" for none."""
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) and path != TESTS else ""


@functools.cache
def _lack() -> str:
    """What this machine lacks for the tests that need the kernel, "" for nothing; makes the private mounts."""
    if os.geteuid() != 0:
        return "not root"
    try:
        import bcc  # noqa: F401 - 60 ms: only where a test needs it
    except ImportError as error:
        return f"bcc cannot be imported ({error}): apt-get install python3-bpfcc, then make setup"
    try:
        _own_mounts()
    except OSError as error:
        return f"no private mounts ({error})"
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a daemon that a test forgets becomes our child: see _things
    return ""


def _own_mounts() -> None:
    """Give this process mounts of its own for all that pydatapath puts into the file system."""
    _call("unshare", CLONE_NEWNS)
    # Mount by mount, not all at once from /: in a chroot, / need not be a mount.
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        _id, _parent, _device, _root, place, _options, *optional = line.split(" ")
        if any(tag.startswith("shared:") for tag in optional):
            _call("mount", None, re.sub(r"\\([0-7]{3})", _unescape, place).encode(), None, MS_PRIVATE, None)
    # All of /run: a mount on /run/pydatapath would go when an `unload` outside removes that folder, empty there.
    for place, kind, mode in ((RUN, b"tmpfs", 755), (BPFFS, b"bpf", 700)):
        place.mkdir(parents=True, exist_ok=True)
        _call("mount", b"tests", str(place).encode(), kind, 0, b"mode=%d" % mode)
        _mounted.append(place)


def _unescape(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))


def pytest_unconfigure() -> None:
    """Take our mounts away: where / is a shared mount hidden by a chroot, they were seen outside too."""
    while _mounted:
        _libc.umount2(str(_mounted.pop()).encode(), MNT_DETACH)


def _call(name: str, *arguments: object) -> None:
    """Call libc; raise OSError where it fails."""
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


# A skip is a failure where PYDATAPATH_NO_SKIP says so


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that skipped."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _must_run(item.path, str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"skipped, but PYDATAPATH_NO_SKIP={NO_SKIP}: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A whole module that skipped."""
    report = yield
    if report.skipped and _must_run(collector.path, str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"module skipped, but PYDATAPATH_NO_SKIP={NO_SKIP}: {_reason(report.longrepr)}"
    return report


def _must_run(path: Path, reason: str) -> bool:
    if os.geteuid() != 0 or _folder(path) not in NEEDS_KERNEL:
        return False
    return NO_SKIP == "all" or (NO_SKIP == "host" and LACK in reason)


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


# Nobody leaves anything behind


@pytest.fixture(scope="session")
def keep() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Makes blocks: what a fixture of session scope makes inside one may stay until the session ends."""

    @contextlib.contextmanager
    def keep_what_is_made_here() -> Iterator[None]:
        before = _things()
        yield
        _kept.update(_things() - before)

    yield keep_what_is_made_here
    kept = set(_kept)
    _kept.clear()
    _fail_if_left(lambda: _things() & kept, "a fixture of session scope made it", {})


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Compare what is there before and after the module; yields the test that each new thing appeared in."""
    appeared: dict[str, str] = {}
    if _folder(request.path) not in NEEDS_KERNEL or _lack():
        yield appeared
        return
    before = _things()
    yield appeared
    _fail_if_left(lambda: _things() - before - _kept, "a fixture of this module made it", appeared)


def _fail_if_left(left: Callable[[], set[str]], otherwise: str, appeared: dict[str, str]) -> None:
    deadline = time.monotonic() + 3  # the kernel takes namespaces and links apart in the background
    while (things := left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if things:
        lines = [
            f"{_described(thing)}: " + (f"appeared in {appeared[thing]}" if thing in appeared else otherwise)
            for thing in sorted(things)
        ]
        pytest.fail("left behind:\n  " + "\n  ".join(lines), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def _no_complaint_of_the_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel's taint and log are as they were. They are the whole machine's: other work may be what it warns of."""
    if _folder(request.path) not in NEEDS_KERNEL or _lack():
        yield
        return
    with kernel_log.Watch() as watch:
        yield
        if found := watch.complaints():
            where = request.path.relative_to(TESTS.parent)
            pytest.fail("\n  ".join([f"during {where} the kernel said:", *found]), pytrace=False)


@pytest.fixture(autouse=True)
def _note_what_appears(request: pytest.FixtureRequest, _nothing_left_behind: dict[str, str]) -> Iterator[None]:
    """Remember which test made what, for the comparison after the module."""
    if _folder(request.path) not in NEEDS_KERNEL or _lack():
        yield
        return
    before = _things()
    yield
    for thing in _things() - before:
        _nothing_left_behind.setdefault(thing, request.node.nodeid)


def _things() -> set[str]:
    """Namespaces, pins, instances, links of this namespace and child processes, each by its name."""
    found = {f"{path}" for root in WATCHED if root.is_dir() for path in root.rglob("*")}
    found |= {f"link {name}" for _, name in socket.if_nameindex()}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found |= {f"process {pid}" for pid in (task / "children").read_text().split() if _process(pid)}
    return found


def _process(pid: str) -> str:
    """The command of a process, "" for one that has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return "" if state in "ZX" else command or "a thread of the kernel"


def _described(thing: str) -> str:
    kind, _, pid = thing.partition(" ")
    return f"{thing} ({_process(pid)})" if kind == "process" else thing
