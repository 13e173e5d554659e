"""The fields that the kinds have which are read, and those of a manifest that are none of them: slips of the pen.

    for key, sentence in unknown_fields(objects):
        ...                                   # ("Service", "default", "web"), "Service default/web: spec.tipe: ..."

kubectl asks the API server, which refuses such a field. Here it is a warning: a later Kubernetes may have it, and what
it exports must come in. The names are those of Kubernetes 1.34: Service and Node in core/v1, EndpointSlice in
discovery.k8s.io/v1, ObjectMeta in meta/v1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import chain
from typing import Any, Final, Union

from pydatapath.annotations import ANNOTATIONS, OURS
from pydatapath.fields import show
from pydatapath.model import Manifested

__all__ = ["FIELDS", "MOST_SENTENCES", "unknown_fields"]

# What a map, or each map of a list, may hold; None: whatever stands there is not looked into
_Fields = Mapping[str, Union["_Fields", None]]
# The name of what is not known, and those that may stand in its place
_Slip = tuple[str, Collection[str]]

MOST_SENTENCES: Final = 20  # of a kind: who makes up thousands of fields is not told of all
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")


def _any(names: str) -> dict[str, None]:
    return dict.fromkeys(names.split())


_METADATA: Final[_Fields] = _any(
    "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation"
    " labels managedFields name namespace ownerReferences resourceVersion selfLink uid"
)
_OBJECT: Final[_Fields] = {**_any("apiVersion kind"), "metadata": _METADATA}
_NAMED: Final[_Fields] = _any("name")
# By kind; what `build` drops of a status, and so nobody sees here, is left out
FIELDS: Final[Mapping[str, _Fields]] = {
    "Service": {
        **_OBJECT,
        "spec": {
            **_any(
                "allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName externalTrafficPolicy"
                " healthCheckNodePort internalTrafficPolicy ipFamilies ipFamilyPolicy loadBalancerClass loadBalancerIP"
                " loadBalancerSourceRanges publishNotReadyAddresses selector sessionAffinity trafficDistribution type"
            ),
            "ports": _any("appProtocol name nodePort port protocol targetPort"),
            "sessionAffinityConfig": {"clientIP": _any("timeoutSeconds")},
        },
        "status": {
            "loadBalancer": {"ingress": {**_any("hostname ip ipMode"), "ports": _any("error port protocol")}},
        },
    },
    "EndpointSlice": {
        **_OBJECT,
        **_any("addressType"),
        "endpoints": {
            **_any("addresses deprecatedTopology hostname nodeName zone"),
            "conditions": _any("ready serving terminating"),
            "hints": {"forNodes": _NAMED, "forZones": _NAMED},
            "targetRef": _any("apiVersion fieldPath kind name namespace resourceVersion uid"),
        },
        "ports": _any("appProtocol name port protocol"),
    },
    "Node": {
        **_OBJECT,
        "spec": _any("configSource externalID podCIDR podCIDRs providerID taints unschedulable"),
        "status": {"addresses": _any("address type")},
    },
}


def unknown_fields(objects: Iterable[Manifested]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Kind, namespace and name of each object with a field that its kind has not, and a sentence about the field.

    The sentence is the same for all objects that have the field, so that it need be said but once. Of each kind
    MOST_SENTENCES fields are told. Of a status only what is read of it is looked at.
    """
    by_kind: dict[str, dict[str, Manifested]] = {}
    for one in objects:
        by_kind.setdefault(type(one).__name__, {})[one.key] = one
    for kind, those in by_kind.items():
        slips: dict[str, _Slip] = {}
        for path, slip in _in_parts([one.manifest for one in those.values()], kind):
            slips.setdefault(path, slip)
            if len(slips) == MOST_SENTENCES:
                break
        holders: dict[str, list[Manifested]] = {path: [] for path in slips}
        for one in those.values() if slips else ():
            for path in slips.keys() & dict(_unknown([one.manifest], kind)).keys():
                holders[path].append(one)
        for path, found in holders.items():
            sentence = _sentence(kind, path, slips[path], [one.key for one in found])
            yield from (((kind, one.namespace, one.name), sentence) for one in found)


def _sentence(kind: str, path: str, slip: _Slip, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
    return f"{kind} {', '.join(keys[:1])}{more}: {path}: is not known, and does nothing{_advice(*slip)}"


def _advice(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    if whose := [kind for kind, names in ANNOTATIONS.items() if name in names]:
        return f" (it belongs to a {whose[0]})"
    forms = {one.lower(): one for one in known}
    close = get_close_matches(name.lower(), sorted(forms), n=1, cutoff=0.75) if len(name) <= 80 else ()
    return f" (did you mean {forms[close[0]]}?)" if close else ""


def _in_parts(manifests: Sequence[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, _Slip]]:
    """What `_unknown` finds, a path again and again. Some at once, as many as the processor's cache holds: one by one
    would take five times as long, all at once three times.
    """
    for begin in range(0, len(manifests), 64):
        yield from _unknown(manifests[begin : begin + 64], kind)


def _unknown(manifests: Collection[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, _Slip]]:
    """What is in any of these manifests and not known, by its path; of each map no more than can be told."""
    yield from _beside(manifests, FIELDS[kind], "")
    annotations = _maps(one.get("annotations") for one in _maps(one.get("metadata") for one in manifests))
    ours = {name for one in annotations for name in one if name.startswith(OURS)}
    for name in nsmallest(MOST_SENTENCES, ours.difference(ANNOTATIONS[kind])):
        yield f"metadata.annotations[{show(name)}]", (name, ANNOTATIONS[kind])


def _beside(maps: Collection[Mapping[str, Any]], fields: _Fields, path: str) -> Iterator[tuple[str, _Slip]]:
    """What is in any of the maps and not in `fields`, here or deeper."""
    names = set().union(*maps)
    for name in nsmallest(MOST_SENTENCES, names - fields.keys()):
        yield f"{path}{name if _PLAIN.fullmatch(name) else show(name)}", (name, fields)
    for name, below in fields.items():
        if below and name in names:
            values = [one[name] for one in maps if name in one]
            lists = [one for one in values if type(one) is list]
            yield from _beside(_maps(chain(values, *lists)), below, f"{path}{name}{'[]' if lists else ''}.")


def _maps(values: Iterable[object]) -> list[dict[str, Any]]:
    return [one for one in values if type(one) is dict]
