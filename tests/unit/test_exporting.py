"""What is exported is what was applied: whatever the objects, applying them again is no change."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import NODE, SERVICE, SLICE, at, edited, named
from test_manifests_anything import VALUES, places

from pydatapath import applying, manifests
from pydatapath.errors import ManifestError
from pydatapath.exporting import manifests_of
from pydatapath.model import Manifested
from pydatapath.records import Records


def test_nodes_come_first_and_slices_behind_their_service(tmp_path: Path) -> None:
    """By name; each begins with what it is."""
    documents = [
        edited(SLICE, at("metadata", "name", value="a")),
        named("zoo", edited(SERVICE, at("spec", "clusterIP", value="10.96.0.11"))),
        SERVICE,
        edited(SLICE, at("metadata", "labels", value={})),
        NODE,
    ]
    found = exported(tmp_path, [manifests.parse(one, "test") for one in documents])
    assert [(one["kind"], one["metadata"]["name"]) for one in found] == [
        ("Node", "worker-2"),
        ("Service", "web"),
        ("EndpointSlice", "a"),
        ("EndpointSlice", "web-abc"),
        ("Service", "zoo"),
    ]
    assert [list(one)[:3] for one in found] == [["apiVersion", "kind", "metadata"]] * 5


def exported(folder: Path, objects: list[Manifested]) -> list[dict[str, Any]]:
    """What these are exported as."""
    with Records(folder / "first.db", create=True) as records:
        applying.edit(records, objects)
        return manifests_of(records.objects())


@st.composite
def objects(draw: st.DrawFn, sample: dict[str, Any]) -> Manifested:
    """A document that is edited somewhere, where that is still an object."""
    document = copy.deepcopy(sample)
    for path in draw(st.lists(st.sampled_from(places(sample)[4:]), max_size=2)):
        try:
            at(*path, value=draw(VALUES))(document)
            manifests.parse(copy.deepcopy(document), "test")
        except (AttributeError, IndexError, KeyError, TypeError, ManifestError):
            document = copy.deepcopy(sample)
    return manifests.parse(document, "test")


@settings(deadline=None, max_examples=60)
@given(st.tuples(objects(SERVICE), objects(SLICE), objects(NODE)), st.sampled_from(["yaml", "json"]))
def test_applying_what_is_exported_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, given_objects: tuple[Manifested, ...], form: str
) -> None:
    """By way of the text that a user keeps; and it is exported as the same."""
    assume(len({(type(one), one.key) for one in given_objects}) == 3)
    folder = tmp_path_factory.mktemp("export")
    found = exported(folder, list(given_objects))
    path = folder / f"kept.{form}"
    path.write_text(manifests.to_yaml(found) if form == "yaml" else json.dumps({"kind": "List", "items": found}))
    again = manifests.read([str(path)]).objects
    with Records(folder / "first.db") as records:
        assert {one.action for one in applying.edit(records, again, prune=True).outcomes} == {"unchanged"}
    (folder / "other").mkdir()
    assert exported(folder / "other", again) == found
