"""The file system of pins: mounted where it is missing, folders private to root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from pathlib import Path
from typing import Final

from pydatapath.errors import Conflict, KernelError

__all__ = ["BPFFS", "MOUNT", "check_private", "ensure_mounted", "is_mounted", "make_private", "remove_tree"]

BPFFS: Final = Path("/sys/fs/bpf")
# Without the mode all may write there
MOUNT: Final = f"mount -t bpf -o mode=0700 bpf {BPFFS}"
BPF_FS_MAGIC: Final = 0xCAFE4A11  # include/uapi/linux/magic.h

_libc = ctypes.CDLL(None, use_errno=True)


def is_mounted() -> bool:
    """Whether a bpf file system lies at /sys/fs/bpf."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs: f_type is its first long
    return _libc.statfs(os.fsencode(BPFFS), buffer) == 0 and int.from_bytes(buffer.raw[:8], "little") == BPF_FS_MAGIC


def ensure_mounted() -> None:
    """Mounts it, as systemd does at boot, where it is missing. Raises KernelError with the command to give."""
    if is_mounted():
        return
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise KernelError(
            f"no bpf file system at {BPFFS}, and mounting one failed: {os.strerror(code)}",
            errno=code,
            hint=MOUNT,
        )


def make_private(folder: Path, below: Path | None = None) -> None:
    """Makes a folder and those above it that are missing, root's alone whatever the umask is.

    `below`, which stays as it is: where the first of them lies, the file system of pins unless said otherwise. Raises
    OSError, and Conflict as `check_private`.
    """
    for one in _way(folder, below or BPFFS):
        if not os.path.lexists(one):
            one.mkdir(mode=0o700, exist_ok=True)
        _check(one)


def check_private(folder: Path, below: Path) -> None:
    """Raises Conflict where a folder, or one above it, is not its user's alone: who else may write there can put what
    is his in the place of what is ours. What is not there is no fault.
    """
    with contextlib.suppress(FileNotFoundError):  # an unload may just take them away
        for one in _way(folder, below):
            _check(one)


def _way(folder: Path, below: Path) -> list[Path]:
    return [one for one in reversed((folder, *folder.parents)) if below in one.parents]


def _check(folder: Path) -> None:
    found, user = folder.lstat(), os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        raise Conflict(f"the folder {folder} is a symbolic link", hint=f"see who made it, then `rm {folder}`")
    if not stat.S_ISDIR(found.st_mode):
        raise Conflict(f"the folder {folder} is a file", hint=f"see who made it, then `rm {folder}`")
    if found.st_uid != user:
        raise Conflict(
            f"the folder {folder} belongs to user {found.st_uid} and not to user {user}, who runs this",
            hint=f"see what is in it, then `rm -r {folder}`; or `chown {user} {folder}` where all of that is yours",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Conflict(
            f"the folder {folder} may be written by others: its mode is {stat.S_IMODE(found.st_mode):04o}",
            hint=f"see what is in it, then `chmod 0700 {folder}`",
        )


def remove_tree(directory: Path) -> None:
    """Removes pins and their folder; the objects live on while a filter or a process holds them."""
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
