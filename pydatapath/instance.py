"""One datapath among others on a machine: its name, its network namespace, where its pins and records lie.

An instance is told apart by its name and by its namespace, so that `--netns node1` and `--netns node2` never meet even
under the default name. Its folders carry the namespace's cookie, which is never used twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydatapath.errors import Conflict, DatapathError, KernelError, NotLoaded
from pydatapath.kernel import bpffs, netns
from pydatapath.kernel.layout import LAYOUT_VERSION
from pydatapath.record_faults import copy_of

__all__ = ["DEFAULT", "PINS", "RUN", "Instance", "check_all_folders", "check_name", "find"]

DEFAULT: Final = "default"
RUN: Final = Path("/run/pydatapath")
PINS: Final = bpffs.BPFFS / "pydatapath"
LOCK_SECONDS: Final = 30.0
HOLDER_BYTES: Final = 16  # of the lock: the process that holds it
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Instance:
    """Where one instance lives. `netns` is the namespace as the user named it ("": the one we run in)."""

    name: str
    netns: str
    cookie: int

    @property
    def netns_path(self) -> str | None:
        """The path to enter, None for the current namespace."""
        return netns.path_of(self.netns) if self.netns else None

    @property
    def pins(self) -> Path:
        """The folder of everything pinned."""
        return PINS / self.name / str(self.cookie)

    @property
    def map_pins(self) -> Path:
        """The folder of the maps, one for each layout version, so that no version takes another's for its own."""
        return self.pins / f"maps_v{LAYOUT_VERSION}"

    @property
    def program_pins(self) -> Path:
        """The folder of the programs that are attached."""
        return self.pins / "programs"

    @property
    def directory(self) -> Path:
        """The folder of the records."""
        return RUN / self.name / str(self.cookie)

    @property
    def records(self) -> Path:
        """The database of what was asked for."""
        return self.directory / "state.db"

    @property
    def exists(self) -> bool:
        """Whether anything of it is there, on either side."""
        return self.records.exists() or self.pins.exists()

    @property
    def has_folders(self) -> bool:
        """Whether there is a folder that it may have made, or another instance of its name."""
        return self.directory.parent.exists() or self.pins.parent.exists() or self._root_of_pins.exists()

    @property
    def _root_of_pins(self) -> Path:
        return self.pins.parent.parent

    def check_folders(self) -> None:
        """Raises Conflict where a folder of its pins or its records is not root's alone."""
        bpffs.check_private(self.pins, bpffs.BPFFS)
        bpffs.check_private(self.directory, RUN.parent)

    @contextlib.contextmanager
    def locked(self, seconds: float | None = None, *, make: bool = False) -> Iterator[None]:
        """Hold the instance alone for the block. `make`: its folder, too, where there is none.

        Raises Conflict, naming who holds it, after 30 s or so many, and as `check_folders`; KernelError where its
        folder cannot be written, and NotLoaded where there is none.
        """
        while True:
            self.check_folders()
            try:
                if make:
                    bpffs.make_private(self.directory, RUN.parent)
                lock = open(self.directory / "lock", "rb+", buffering=0, opener=_private)  # noqa: SIM115 - see `with`
            except FileNotFoundError:
                if make:
                    continue  # an unload has just taken the folder away
                raise NotLoaded(f"instance {self.name!r} is not loaded", hint="`pydatapath load` loads it") from None
            except OSError as error:
                raise KernelError(
                    f"the folder {self.directory} cannot be written: {error.strerror}",
                    hint="traffic goes on as it is; make room there, or make it writable",
                    errno=error.errno or 0,
                ) from None
            with lock:
                self._wait_for(lock.fileno(), LOCK_SECONDS if seconds is None else seconds)
                # An unload that we waited for has taken the folder, and this lock with it, away
                if os.fstat(lock.fileno()).st_nlink:
                    with contextlib.suppress(OSError):  # of a command that was killed: only who holds the lock makes it
                        copy_of(self.records).with_suffix(".copy.new").unlink()
                    with contextlib.suppress(OSError):  # who holds it is told where the disk has room for that
                        lock.write(f"{os.getpid():<{HOLDER_BYTES}}".encode())  # cut short, ext4 would write to the disk
                    if not make and not self.pins.exists() and len([*self.directory.iterdir()]) == 1:
                        self.remove()  # the lock alone, made while an unload took all else away
                        continue
                    yield
                    return

    def _wait_for(self, descriptor: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                holder = os.pread(descriptor, HOLDER_BYTES, 0).decode(errors="replace").rstrip()
                who = f"process {holder}" if Path("/proc", holder, "stat").exists() and holder else "another process"
                raise Conflict(
                    f"instance {self.name!r} has been busy for {seconds:.0f} s: {who} holds its lock",
                    hint="wait for that command, or end it",
                ) from None
            return

    def remove(self, *, pins: bool = True) -> None:
        """Takes pins and records away, and the folders that are empty then."""
        import shutil

        if pins:
            bpffs.remove_tree(self.pins)
        with contextlib.suppress(OSError):
            copy_of(self.records).unlink()  # first: without the records a load would believe it
        shutil.rmtree(self.directory, ignore_errors=True)
        for folder in (self.pins.parent, self._root_of_pins, self.directory.parent, RUN):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def check_name(name: str) -> str:
    """The name, if it can be one: it becomes a folder's. Raises DatapathError."""
    if not _NAME.fullmatch(name):
        raise DatapathError(
            f"instance name {name!r} cannot be used", hint="lower-case letters, digits and dashes, at most 32, please"
        )
    return name


def here(name: str, namespace: str) -> Instance:
    """The instance of this name in this namespace ("": the current one), loaded or not."""
    path = netns.path_of(namespace) if namespace else None
    return Instance(check_name(name), namespace, netns.cookie(path))


def find(name: str, namespace: str) -> Instance:
    """The loaded instance of this name in this namespace ("": the current one). Raises NotLoaded, and Conflict where
    its folders are not root's alone.
    """
    instance = here(name, namespace)
    try:
        if instance.records.exists() or copy_of(instance.records).exists():
            instance.check_folders()
            return instance
    except PermissionError as error:
        raise DatapathError(f"instance {name!r} cannot be read: {error.strerror}", hint="run it with sudo") from None
    where = f" in namespace {namespace}" if namespace else ""
    elsewhere = "" if namespace else ", ".join(f"`--netns {one.netns}`" for one in loaded(name))
    hint = f"it is with {elsewhere}; or `pydatapath load`" if elsewhere else "`pydatapath load` loads it"
    raise NotLoaded(f"instance {name!r} is not loaded{where}", hint=hint)


def loaded(name: str | None = None) -> list[Instance]:
    """All instances with records whose namespace is still there, of one name or of any."""
    paths = sorted(RUN.glob(f"{name or '*'}/*/state.db"))
    alive = netns.living() if paths else {}
    found = [(path.parent.parent.name, _cookie_of(path.parent)) for path in paths]
    return [Instance(one, alive[cookie], cookie) for one, cookie in found if cookie is not None and cookie in alive]


def unfinished() -> list[Instance]:
    """Instances without records whose namespace is there: of a first load, or an unload, that was killed."""
    folders = [one for one in _folders() if not (RUN / one.parent.name / one.name / "state.db").exists()]
    alive = netns.living() if folders else {}
    found = [(path.parent.name, _cookie_of(path)) for path in folders]
    return list(dict.fromkeys(Instance(one, alive[cookie], cookie) for one, cookie in found if cookie in alive))


def left_behind() -> list[Instance]:
    """Instances whose namespace is gone: their filters and routes went with it, their pins and records did not."""
    folders = _folders()
    alive = netns.living() if folders else {}
    dead = [Instance(path.parent.name, "", cookie) for path in folders if (cookie := _cookie_of(path)) is not None]
    return list(dict.fromkeys(one for one in dead if one.cookie not in alive))


def check_all_folders() -> None:
    """Raises Conflict where a folder of any instance is not root's alone, also one that somebody made in its place."""
    with contextlib.suppress(FileNotFoundError):  # an unload may just take one away
        for root in (PINS, RUN):
            for folder in sorted((root, *root.glob("*"), *root.glob("*/*"))):
                if folder == root or folder.is_dir():
                    bpffs.check_private(folder, root.parent)


def _folders() -> list[Path]:
    return sorted({*RUN.glob("*/*"), *PINS.glob("*/*")})


def _cookie_of(folder: Path) -> int | None:
    return int(folder.name) if folder.name.isdigit() else None
