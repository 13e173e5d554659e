"""What `load` refuses before anything is made."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pydatapath.errors import KernelError
from pydatapath.kernel.compile import Sizes
from pydatapath.kernel.layout import Family
from pydatapath.loading import _refuse_too_large


@pytest.mark.parametrize("part", ["flows", "backends", "services"])
def test_maps_for_which_there_is_no_memory_are_refused(part: str) -> None:
    """The kernel would give it, and end other processes for it; with the defaults nothing is said, nor of maps that are
    not made anew.
    """
    node: Any = SimpleNamespace(families=(Family.IPV4, Family.IPV6))
    _refuse_too_large(Sizes(), node, None)
    _refuse_too_large(replace(Sizes(), **{part: 1 << 40}), node, ("fragments",))
    for made in (None, (part,)):
        with pytest.raises(
            KernelError, match=r"maps of these sizes would take [\d,]+ MiB of memory, and [\d,]+ MiB are"
        ):
            _refuse_too_large(replace(Sizes(), **{part: 1 << 40}), node, made)
