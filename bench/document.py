"""A result's file: read, and held against bench/schema.json before anybody computes with it.

The check knows those words of JSON Schema that our schema uses, and refuses a schema with others: a package for all of
them would bring a compiled one along, for forty lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "faults", "read"]

SCHEMA = "pydatapath-bench/1"
SCHEMA_FILE = Path(__file__).with_name("schema.json")
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
OF_ITSELF = {"type", "const", "enum", "required"}
REMARKS = {"$schema", "title", "description"}


def _is(value: object, kind: str) -> bool:
    """Python's booleans are integers, JSON's are none."""
    return isinstance(value, TYPES[kind]) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."


def faults(value: Any, schema: Mapping[str, Any], where: str = "it") -> Iterator[str]:
    """What `schema` does not allow in `value`, a sentence each. Raises ValueError for a word that is not known here."""
    own = [*_of_itself(value, schema, where)]
    yield from own
    for word, rule in schema.items() if not own else ():
        if word == "items":
            for place, one in enumerate(value or []):
                yield from faults(one, rule, f"{where}[{place}]")
        elif word in {"properties", "additionalProperties"}:
            yield from _of_members(value, schema, word, where)
        elif word not in REMARKS | OF_ITSELF:
            raise ValueError(f"bench/schema.json says {word!r}, which the check does not know")


def _of_itself(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    """Not of what is inside it."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{where} is {_shown(value)}, not of type {' or '.join(kinds)}"
        return
    allowed = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    if value not in allowed:
        yield f"{where} is {_shown(value)}, none of {_shown(allowed)}"
    yield from (f"{where} has no {name!r}" for name in schema.get("required", ()) if name not in value)


def _of_members(value: Mapping[str, Any], schema: Mapping[str, Any], word: str, where: str) -> Iterator[str]:
    """Of those that the schema names, or of all others."""
    named = schema.get("properties", {})
    for name, one in value.items():
        rule = named.get(name) if word == "properties" else None if name in named else schema[word]
        if rule is not None:
            yield from faults(one, rule, name if where == "it" else f"{where}.{name}")


def read(path: Path) -> dict[str, Any]:
    """The document. Raises ValueError, one sentence with the file's name, for what is none of ours or is damaged."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: it is no JSON, or damaged: {error}") from None
    if not isinstance(found, dict) or "samples" not in found:
        raise ValueError(f"{path}: it is no result of a benchmark of ours")
    if found.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: its schema is {found.get('schema', 'none')}, and {SCHEMA} is what is known: run it again"
        )
    wrong = next(faults(found, json.loads(SCHEMA_FILE.read_text())), None)
    if wrong:
        raise ValueError(f"{path}: it is damaged: {wrong}")
    return found
