"""Files that somebody names on the command line, read in bounded time and memory: no device, no waiting for a pipe."""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["file_bytes"]


def file_bytes(path: str, most: int) -> bytes:
    """What a regular file or a pipe holds. Raises OSError, or ValueError, which says what else is wrong: it is another
    kind of file (a device, a socket), or larger than `most` bytes.

    A pipe is opened without waiting for somebody to write to it: one that nobody holds open is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:  # a zero byte in the name
        raise ValueError("no such file or directory") from None
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
            raise ValueError("neither a file nor a folder")
        too_large = f"larger than {most // 1_000_000} MB"
        if status.st_size > most:
            raise ValueError(too_large)
        os.set_blocking(descriptor, True)
        data = stream.read(most + 1)  # files below /proc say 0 and hold more
        if len(data) > most:
            raise ValueError(too_large)
        return data
