"""What is applied, as manifests that `apply` takes back: pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydatapath.records import Stored

__all__ = ["heads_first", "manifests_of"]


def manifests_of(objects: Iterable[Stored]) -> list[dict[str, Any]]:
    """Nodes, then each service and its slices, by namespace and name; each in the order in which people write."""
    return [heads_first(json.loads(one.manifest)) for one in sorted(objects, key=_place)]


def _place(stored: Stored) -> tuple[object, ...]:
    of = stored.service or stored.name
    return stored.kind != "Node", stored.namespace, of, stored.kind != "Service", stored.name


def heads_first(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that begins with what it is, as people write."""
    return {name: manifest[name] for name in ("apiVersion", "kind", "metadata")} | manifest
