"""Programs that are made for a benchmark alone: compiled by bcc, pinned nowhere."""

from __future__ import annotations

import os
from typing import Any

from bench.processes import BenchError
from pydatapath.kernel import compile, source
from pydatapath.kernel.bcc_child import find_bcc

__all__ = ["compiled", "loaded"]


def compiled(text: str) -> Any:
    """A module of bcc's. Raises BenchError where bcc is not there."""
    bcc = find_bcc()
    if bcc is None:
        raise BenchError("bcc is missing: apt install python3-bpfcc")
    os.environ["BCC_KERNEL_SOURCE"] = str(source.shim())
    return bcc.BPF(text=text, cflags=[*compile._include_flags(), "-Wno-everything"])


def loaded(module: Any, name: str) -> int:
    """The descriptor of one of its programs, for a tc hook; it lives as long as the module."""
    bcc = find_bcc()
    assert bcc
    descriptor: int = module.load_func(name, bcc.BPF.SCHED_CLS).fd
    return descriptor
