"""What `apply` would do, as unified diffs of manifests: the same path, and nothing is kept."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence

from pydatapath import applying
from pydatapath.documents import to_yaml
from pydatapath.errors import ManifestError
from pydatapath.exporting import heads_first
from pydatapath.fields import visible
from pydatapath.kernel.maps import Maps
from pydatapath.kinds import API_VERSIONS
from pydatapath.model import Manifested
from pydatapath.records import Key, Records, Stored
from pydatapath.views import Difference

__all__ = ["differences", "unified"]


def differences(
    records: Records,
    maps: Maps,
    objects: Iterable[Manifested],
    *,
    prune: bool = False,
    faults: Sequence[ManifestError] = (),
) -> tuple[list[Difference], list[str]]:
    """What would change, in the order of the objects, what is pruned last; and the warnings that `apply` would give.

    Raises what applying.apply raises. What was done to the records is undone.
    """
    outcomes = applying.apply(records, maps, objects, prune=prune, dry_run=True, faults=faults)
    changed = {one.key: one.action for one in outcomes if one.action in ("created", "configured", "deleted")}
    merged = {key: records.object(*key) for key in changed}
    records.rollback()
    found = [
        Difference(*key, change=change, diff=unified(key, records.object(*key), merged[key]))
        for key, change in changed.items()
    ]
    return found, list(dict.fromkeys(text for one in outcomes for text in one.warnings))


def unified(key: Key, live: Stored | None, merged: Stored | None) -> str:
    """A unified diff in kubectl's form, "" where both are the same; None: there is none on that side.

    What a terminal would obey is escaped.
    """
    name = ".".join((API_VERSIONS[key[0]].replace("/", "."), *key))
    names = (f"LIVE/{name}", f"MERGED/{name}")
    lines = list(difflib.unified_diff(_lines(live), _lines(merged), *names, lineterm=""))
    return "".join(f"{visible(line)}\n" for line in (f"diff -u -N {' '.join(names)}", *lines)) if lines else ""


def _lines(stored: Stored | None) -> list[str]:
    # Not splitlines(), which also splits at characters that YAML leaves in a line
    return to_yaml([heads_first(json.loads(stored.manifest))]).split("\n")[:-1] if stored else []
