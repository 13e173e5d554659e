"""Any document and any text at all: an object, or one error in printable words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import NODE, SERVICE, SLICE, at

from pydatapath.documents import documents
from pydatapath.errors import ManifestError
from pydatapath.manifests import parse, to_yaml

unhurried = settings(deadline=None)  # a busy machine is no bug
INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"))
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)
WORDS = st.sampled_from(
    (
        "80",
        "TCP",
        "UDP",
        "http",
        "10.96.0.1",
        "fd00::1",
        "::ffff:1.2.3.4",
        "None",
        "IPv6",
        "FQDN",
        "ExternalName",
        "web",
    )
)
VALUES = JSON_LIKE | WORDS | st.sampled_from([0, 80, 65536, 2**70, [], {}, [[]], [{}], "\x1b[31m", "\ud800"])


def places(document: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything in a document."""
    found = [path] if path else []
    steps = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for step, value in steps:
        found += places(value, (*path, step))
    return found


def found_or_refused(action: Callable[[], Any]) -> Any:
    """What `action` gives, or None where it raises ManifestError; its message must be printable."""
    try:
        return action()
    except ManifestError as error:
        message = str(error) + error.hint
    assert message.isprintable()
    return None


@settings(unhurried)
@given(JSON_LIKE)
def test_any_document_gives_an_object_or_a_manifest_error(document: object) -> None:
    """Whatever a Python caller hands over, the only exception is ManifestError, in printable words."""
    found_or_refused(lambda: parse(document, "x"))


@settings(unhurried, max_examples=300)
@given(
    st.sampled_from([SERVICE, SLICE, NODE]).flatmap(
        lambda document: st.tuples(
            st.just(document), st.lists(st.tuples(st.sampled_from(places(document)), VALUES), min_size=1, max_size=3)
        )
    )
)
def test_any_edit_of_a_good_document_gives_an_object_or_a_manifest_error(
    case: tuple[dict[str, Any], list[tuple[tuple[str | int, ...], object]]],
) -> None:
    """As above, where it is likelier to hurt: nearly right documents. What is taken can be stored and printed."""
    document = copy.deepcopy(case[0])
    for path, value in case[1]:
        try:
            at(*path, value=value)(document)
        except (AttributeError, IndexError, KeyError, TypeError):
            continue  # an earlier edit took this place away
    found = found_or_refused(lambda: parse(document, "x"))
    if found is None:
        return
    assert repr(found).isprintable()
    assert found.key.isascii()
    assert parse(json.loads(json.dumps(found.manifest)), "x") == found
    assert parse(found.manifest, "x").manifest == found.manifest


@settings(unhurried)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_gives_documents_or_a_manifest_error(text: str) -> None:
    """Whatever a file holds, the only exception is ManifestError."""
    found_or_refused(lambda: list(documents(text.encode("utf-8", "replace").decode(), "x")))


@settings(unhurried)
@given(
    st.dictionaries(
        TEXT,
        st.recursive(
            st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
            lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
            max_leaves=20,
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    """`to_yaml` and `documents` are each other's inverse, for every text and number."""
    assert [found for _, found in documents(to_yaml([document, document]), "x")] == [document, document]
