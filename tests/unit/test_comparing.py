"""What `diff` shows of one object."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SERVICE, at, edited

from pydatapath.comparing import unified
from pydatapath.records import Stored

KEY = ("Service", "default", "web")
NAMES = "LIVE/v1.Service.default.web MERGED/v1.Service.default.web"


def stored(manifest: dict[str, Any] | None) -> Stored | None:
    return None if manifest is None else Stored(*KEY, None, json.dumps(manifest, sort_keys=True))


def shown(live: dict[str, Any] | None, merged: dict[str, Any] | None) -> list[str]:
    return unified(KEY, stored(live), stored(merged)).splitlines()


def test_a_changed_field_is_shown_with_what_stands_around_it() -> None:
    """In the form of `kubectl diff`."""
    lines = shown(SERVICE, edited(SERVICE, at("spec", "clusterIP", value="10.96.0.99")))
    old, new = NAMES.split()
    assert lines[:3] == [f"diff -u -N {NAMES}", f"--- {old}", f"+++ {new}"]
    assert [line for line in lines[3:] if line[0] in "-+"] == [
        f"-  clusterIP: {SERVICE['spec']['clusterIP']}",
        "+  clusterIP: 10.96.0.99",
    ]
    assert " apiVersion: v1" in lines or "   ports:" in lines


def test_what_comes_and_what_goes_is_shown_whole() -> None:
    """Every line of it is new, or is over."""
    for lines, sign in ((shown(None, SERVICE), "+"), (shown(SERVICE, None), "-")):
        assert {line[0] for line in lines[4:]} == {sign}
        assert f"{sign}kind: Service" in lines


def test_what_is_the_same_is_not_shown() -> None:
    """Whatever the order in which it is written."""
    assert shown(SERVICE, dict(reversed(SERVICE.items()))) == []


@settings(deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_F26_a_terminal_is_given_nothing_to_obey(old: str, new: str) -> None:
    """Values, and keys, of whatever characters: all that is printed is printable, line by line."""
    names = [edited(SERVICE, at("metadata", "annotations", value={text: text})) for text in (old, new)]
    assert all(line.isprintable() for line in unified(KEY, *map(stored, names)).split("\n"))
    assert (unified(KEY, *map(stored, names)) == "") == (old == new)
