"""YAML and JSON text to plain data: what kubectl takes it for."""

from __future__ import annotations

import time

import pytest
from samples import refusal

from pydatapath.documents import documents, to_yaml
from pydatapath.errors import ManifestError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05Z"),
        ("2025-01-02", "2025-01-02"),
        ("12:30", "12:30"),
        ("10.96.0.10", "10.96.0.10"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("0x1F", 31),
        ("-0b11", -3),
        ("010", 8),
        ("0o17", 15),
        ("0B11", 3),
        ("08", 8.0),
        ("0o9", "0o9"),
        ("1_000", 1000),
        ("0x_", "0x_"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-.5e3", -500.0),
        ("1e5", 1e5),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("n", False),
        ("Y", True),
        ("-", None),
        ("'80'", "80"),
        ("!!str 80", "80"),
        ("! 80", "80"),
        ("=", "="),
        ("|\n  a\n  b", "a\nb"),
        ("!!map {b: 1}", {"b": 1}),
    ],
)
def test_plain_text_means_what_kubectl_takes_it_for(text: str, value: object) -> None:
    """YAML 1.1 without dates and without numbers to base 60: a creationTimestamp stays text."""
    if text == "-":
        value = [None]
    assert list(documents(f"a: {text}" if text != "-" else "a:\n-", "x")) == [(1, {"a": value})]


@pytest.mark.parametrize(
    "text",
    [
        "-.5",
        "+.5",
        ".5e3",
        "1e3",
        "1E5",
        "0o7",
        "-0o7",
        "0O7",
        "0B11",
        "0X1F",
        "08",
        "1_",
        "0x_1",
        "1__0",
        "y",
        "n",
        "Y",
        "N",
    ],
)
def test_text_that_kubectl_takes_for_something_else_is_quoted(text: str) -> None:
    """All of these kubectl 1.32 refuses as an annotation where they stand without quotes; an address needs none."""
    document = {text: text, "clusterIP": "10.96.0.10"}
    written = to_yaml([document])
    assert f": '{text}'\n" in written
    assert "clusterIP: 10.96.0.10\n" in written
    assert list(documents(written, "x")) == [(1, document)]


def test_anchors_and_merge_keys() -> None:
    """Aliases and `<<` serve those who like them; what a map says itself wins."""
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [{y: 4}, *b]}\nthree: *b\nfour: {'<<': 1}"
    ((_, document),) = documents(text, "x")
    assert document == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 1, "y": 4},
        "three": {"x": 1, "y": 2},
        "four": {"<<": 1},
    }


def test_anchors_end_with_their_document() -> None:
    """An alias does not reach into the document before."""
    assert refusal(lambda: list(documents("a: &a 1\n---\nb: *a", "x"))) == "x:3: the alias 'a' has no anchor before it"


def test_shared_parts_are_written_out() -> None:
    """An exported manifest has no anchors: people read it."""
    labels = {"app": "web"}
    assert to_yaml([{"a": labels, "b": labels}]) == "a:\n  app: web\nb:\n  app: web\n"


@pytest.mark.parametrize(
    ("text", "source", "lines", "fault"),
    [
        ("a: 1\n---\nb: 2\n---\nc: [\n", "x.yaml", [1, 3], "x.yaml:6: not YAML: did not find expected node content"),
        ("a: 1\n---\nb: 1\nb: 2\n---\nc: 3", "x.yaml", [1], "x.yaml:4: the key 'b' stands twice in one map"),
        ('{"a": 1}\n{"b": }\n{"c": 3}', "x.json", [1], "x.json:2: not JSON: Expecting value"),
        ('{"a": 1}\n{"b": 1, "b": 2}', "-", [1], "-: the key 'b' stands twice in one map"),
    ],
    ids=["syntax", "twice", "JSON", "a stream of JSON"],
)
def test_documents_before_the_one_that_cannot_be_read_are_given(
    text: str, source: str, lines: list[int], fault: str
) -> None:
    """The rest of the text is unreadable: nobody knows where the bad document ends."""
    found = []
    with pytest.raises(ManifestError) as caught:
        found.extend(documents(text, source))
    assert [line for line, _ in found] == lines
    assert str(caught.value) == fault


def test_F25_long_JSON_takes_no_longer_for_each_of_its_parts() -> None:
    """Both took the square of their length, minutes of it; the bound is far above what they take."""
    begun = time.process_time()
    assert len(list(documents("{}\n" * 200_000, "x.json"))) == 200_000
    twice = ",".join(f'"{number % 99_999}": 1' for number in range(100_000))
    assert refusal(lambda: list(documents(f"{{{twice}}}", "x.json"))) == "x.json: the key '0' stands twice in one map"
    assert time.process_time() - begun < 10


def test_F26_what_a_terminal_would_obey_is_escaped_in_YAML() -> None:
    """Marks that turn the direction of writing, and those of no width; letters of all languages stand as they are."""
    hostile = {"note": "a\u202eb\u200bc", "name": "größe"}
    text = to_yaml([hostile])
    assert text.replace("\n", "").isprintable()
    assert list(documents(text, "x")) == [(1, hostile)]
    assert "größe" in to_yaml([{"name": "größe"}])
