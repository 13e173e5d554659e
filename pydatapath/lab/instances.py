"""The datapaths that are loaded in a lab's namespaces: their pins and records must not outlive these."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pydatapath.errors import DatapathError
from pydatapath.instance import PINS, RUN, Instance
from pydatapath.kernel import netns as namespaces

__all__ = ["living_in", "unload"]


def unload(names: Sequence[str]) -> list[Instance]:
    """Unload every datapath that lives in one of the namespaces called `names`; gives those that were loaded.

    Raises Conflict when another process holds one of them for long.
    """
    found = living_in(names)
    if not found:
        return []
    from pydatapath import loading

    return [one for one in found if loading.unload(one)]


def living_in(names: Sequence[str]) -> list[Instance]:
    """The datapaths that live in the namespaces called `names`, or have left something of theirs there.

    Never those of this process's own namespace or init's, should such a name have been given to one of these.
    """
    places = sorted({*RUN.glob("*/*"), *PINS.glob("*/*")})
    if not places:
        return []
    never = {_cookie(namespaces.current_path()), _cookie("/proc/1/ns/net")}
    by_cookie = {_cookie(str(namespaces.RUN_NETNS / name)): name for name in names}
    found: dict[Instance, None] = {}
    for path in places:
        cookie = int(path.name) if path.name.isdigit() else None
        if cookie is not None and cookie in by_cookie and cookie not in never:
            found[Instance(path.parent.name, by_cookie[cookie], cookie)] = None
    return list(found)


def _cookie(path: str) -> int | None:
    """The number of a namespace, None when nothing is there or it is no namespace."""
    with contextlib.suppress(DatapathError, OSError):
        return namespaces.cookie(path)
    return None
