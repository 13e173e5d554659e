"""The file system of pins: mounted where it is missing, folders private to root."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from pydatapath.errors import KernelError

__all__ = ["BPFFS", "ensure_mounted", "is_mounted", "make_private", "remove_tree"]

BPFFS: Final = Path("/sys/fs/bpf")
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
            hint=f"mount -t bpf bpf {BPFFS}",
        )


def make_private(folder: Path) -> None:
    """Makes a folder and those above it that are missing, root's alone whatever the umask is. Raises OSError."""
    for one in reversed((folder, *folder.parents)):
        if not one.exists():
            one.mkdir(mode=0o700, exist_ok=True)


def remove_tree(directory: Path) -> None:
    """Removes pins and their folder; the objects live on while a filter or a process holds them."""
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
