"""Sysctls of the namespace that the calling thread is in, named as `net/ipv4/ip_forward`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydatapath.errors import KernelError

__all__ = ["read", "write"]

ROOT: Final = Path("/proc/sys")


def read(name: str) -> str | None:
    """A sysctl's value; None where there is none of this name."""
    try:
        return (ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError(f"cannot read sysctl {name}: {error.strerror}", errno=error.errno or 0) from error


def write(name: str, value: str) -> None:
    """Sets a sysctl. Raises KernelError."""
    try:
        (ROOT / name).write_text(value)
    except OSError as error:
        raise KernelError(
            f"cannot set sysctl {name}={value}: {error.strerror}",
            errno=error.errno or 0,
            hint="in a container /proc/sys may be read-only: set it from outside",
        ) from error
