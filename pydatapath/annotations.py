"""The annotations that are pydatapath's own: what Kubernetes has no field for.

pydatapath.io/algorithm of a Service: `random` or `maglev`. pydatapath.io/affinity-scope of a Service: `port` or
`service`; with the latter a client that has a backend by one port has the same pod by the others (C11).
pydatapath.io/weights of an EndpointSlice: a JSON map of addresses to weights, since an entry of `endpoints` can carry
no annotation of its own (C12).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar, get_args

from pydatapath.fields import FieldError, map_of, number_of, show, strings_of, type_name, unicast_of
from pydatapath.model import AffinityScope, Algorithm

__all__ = [
    "ALGORITHM",
    "ALGORITHMS",
    "ANNOTATIONS",
    "MOST_WEIGHT",
    "OURS",
    "WEIGHTS",
    "algorithm_of",
    "scope_of",
    "weigh",
    "weights_of",
]

OURS: Final = "pydatapath.io/"
ALGORITHM: Final = f"{OURS}algorithm"
AFFINITY_SCOPE: Final = f"{OURS}affinity-scope"
WEIGHTS: Final = f"{OURS}weights"
# Those that mean something, by the kind that carries them
ANNOTATIONS: Final[Mapping[str, Collection[str]]] = {
    "Service": (AFFINITY_SCOPE, ALGORITHM),
    "EndpointSlice": (WEIGHTS,),
    "Node": (),
}
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)
MOST_WEIGHT: Final = 1000
_SCOPES: Final[tuple[AffinityScope, ...]] = get_args(AffinityScope)
_Word = TypeVar("_Word", bound=str)


def algorithm_of(manifest: Mapping[str, Any]) -> Algorithm | None:
    """How a Service shares its new flows; None where it does not say. Raises FieldError."""
    return _word_of(manifest, ALGORITHM, ALGORITHMS)


def scope_of(manifest: Mapping[str, Any]) -> AffinityScope:
    """Whether a Service's ports keep clients each for itself or together; without affinity it means nothing. Raises
    FieldError.
    """
    return _word_of(manifest, AFFINITY_SCOPE, _SCOPES) or "port"


def weights_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The weights that an EndpointSlice gives, by canonical address. Raises FieldError.

    One of an address that the slice has not means nothing: endpoints come and go, an annotation stays.
    """
    text, path = _annotations(manifest).get(WEIGHTS), _path(WEIGHTS)
    if text is None:
        return {}
    try:
        weights = json.loads(text)
    except (ValueError, RecursionError):
        raise FieldError(path, f"{show(text)} is not JSON") from None
    if not isinstance(weights, dict):
        raise FieldError(path, f"a map of addresses to weights is expected, not {type_name(weights)}")
    return {unicast_of(address, path): _weight(weights, address, path) for address in weights}


def weigh(manifest: dict[str, Any], address: str, weight: int) -> None:
    """Gives an address of an EndpointSlice this weight, in its manifest; 1 is not written down. Raises FieldError."""
    weights = {**weights_of(manifest), address: weight}
    if weight == 1:
        del weights[address]
    metadata = manifest["metadata"]
    kept = {name: text for name, text in _annotations(manifest).items() if name != WEIGHTS}
    annotations = {**kept, WEIGHTS: json.dumps(weights, sort_keys=True)} if weights else kept
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations


def _annotations(manifest: Mapping[str, Any]) -> dict[str, str]:
    return strings_of(map_of(manifest, "metadata", ""), "annotations", "metadata")


def _word_of(manifest: Mapping[str, Any], name: str, allowed: tuple[_Word, ...]) -> _Word | None:
    """Which of these words an annotation is; None where it is not there. Raises FieldError."""
    value = _annotations(manifest).get(name)
    for one in allowed:
        if value == one:
            return one
    if value is None:
        return None
    raise FieldError(_path(name), f"{show(value)} is not {' or '.join(allowed)}")


def _path(name: str) -> str:
    return f"metadata.annotations[{name!r}]"


def _weight(weights: Mapping[str, Any], address: str, path: str) -> int:
    weight = number_of(weights, address, path)
    if weight is None or not 0 <= weight <= MOST_WEIGHT:
        shown = "null" if weight is None else show(weight)
        raise FieldError(f"{path}.{address}", f"{shown} is not a weight (0 to {MOST_WEIGHT:,})")
    return weight
