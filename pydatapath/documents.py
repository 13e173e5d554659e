"""YAML and JSON text to plain data, and back: fast, and safe with text that wants to do harm.

PyYAML's parser runs in C, but its composer and constructor cost three times as much, recurse in C until the stack is
gone (100,000 open brackets are a segmentation fault), let the last of two equal keys win, and read an unquoted
creationTimestamp as a date. So only the parser is used, and its events become data here, by the rules that kubectl
follows (sigs.k8s.io/yaml, goyaml.v2/resolve.go): YAML 1.1 without dates and without numbers to base 60, and with
numbers as Go writes them, 1e3 and 0o17.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, Final

from pydatapath.errors import ManifestError
from pydatapath.fields import show
from pydatapath.schema import MAX_DEPTH

__all__ = ["documents", "to_yaml"]

# What aliases may add, in characters of the source. Real files repeat labels and lists of ports: some kilobytes.
MAX_EXPANSION: Final = 2_000_000

_WORDS: Final[dict[str, bool | None]] = {
    form: value
    for words, value in (("null", None), ("true yes on y", True), ("false no off n", False))
    for word in words.split()
    for form in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_BRACE: Final = re.compile(r"\s*\{")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_INTEGER: Final = re.compile(r"([-+]?)(?:0[bB]([01]+)|0[xX]([0-9a-fA-F]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class _TextError(Exception):
    """What is wrong in the text, and its line (0: unknown)."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def documents(text: str, source: str) -> Iterator[tuple[int, object]]:
    """The documents of a file, each with the line it begins on; empty ones are left out.

    Text that begins like JSON is read as such; where that fails and the name does not promise JSON, it is YAML, which
    may begin with a brace too. Raises ManifestError behind the last document that can be read.
    """
    try:
        yield from _documents(text, source)
    except _TextError as error:
        line = f":{error.line}" if error.line else ""
        raise ManifestError(f"{source}{line}: {error}") from None


def _documents(text: str, source: str) -> Iterator[tuple[int, object]]:
    if source.endswith(".json"):
        try:
            yield from _json(text)
        except json.JSONDecodeError as error:
            raise _TextError(f"not JSON: {error.msg}", error.lineno) from None
        return
    found: list[tuple[int, object]] = []
    if _BRACE.match(text):
        try:
            found.extend(_json(text))
        except json.JSONDecodeError:
            found.clear()
        except _TextError:
            yield from found
            raise
    if found:
        yield from found
        return
    yield from ((line, document) for line, document in _Yaml(text).documents() if document is not None)


def to_yaml(manifests: Iterable[Mapping[str, Any]]) -> str:
    """The manifests as YAML documents that `documents` and kubectl read back as they were."""
    import yaml

    base = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    dumper: Any = type("Dumper", (base,), {"ignore_aliases": lambda *_: True})
    dumper.add_representer(str, _text_node)
    listed = list(manifests)
    text: str = yaml.dump_all(listed, Dumper=dumper, sort_keys=False, allow_unicode=True)
    if text.replace("\n", "").isprintable():
        return text
    # What a terminal would obey, or a reader miss, such as marks that turn the direction of writing, is escaped
    escaped: str = yaml.dump_all(listed, Dumper=dumper, sort_keys=False, allow_unicode=False)
    return escaped


def _text_node(dumper: Any, text: str) -> Any:
    """Text as a node of YAML; in quotes where kubectl would read it as something else, unknown to PyYAML."""
    try:
        is_text = _plain(text) == text
    except ValueError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


# JSON


def _json(text: str) -> Iterator[tuple[int, object]]:
    """One JSON document after the other; JSONDecodeError where the text is not JSON."""
    decoder = json.JSONDecoder(object_pairs_hook=_json_object, parse_constant=_json_constant)
    position, counted, line = 0, 0, 1
    while (position := _end_of_space(text, position)) < len(text):
        line += text.count("\n", counted, position)
        counted = position
        try:
            document, position = decoder.raw_decode(text, position)
        except RecursionError:
            raise _TextError(f"is nested deeper than {MAX_DEPTH} levels", line) from None
        except json.JSONDecodeError:
            raise
        except ValueError:  # int() refuses 4,300 digits and more
            raise _TextError("holds a whole number of more than 64 bits", line) from None
        if document is not None:
            yield line, document


def _end_of_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        times = Counter(key for key, _ in pairs)
        twice = next(key for key, many in times.items() if many > 1)
        raise _TextError(f"the key {show(twice)} stands twice in one map", 0)
    return result


def _json_constant(name: str) -> None:
    raise _TextError(f"holds {name}, which is no number in JSON", 0)


# YAML


class _Yaml:
    """The documents of one YAML text, made from the parser's events."""

    def __init__(self, text: str) -> None:
        import yaml

        self._text = text
        self._error = yaml.YAMLError
        self._loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._document_start = yaml.DocumentStartEvent
        self._scalar_event: type[Any] = yaml.ScalarEvent
        self._alias_event = yaml.AliasEvent
        self._mapping_start = yaml.MappingStartEvent
        self._mapping_end = yaml.MappingEndEvent
        self._sequence_end = yaml.SequenceEndEvent
        self._anchors: dict[str, tuple[Any, int]] = {}  # value, and the characters that it stands for
        self._expanded = 0  # characters that aliases have added so far

    def documents(self) -> Iterator[tuple[int, object]]:
        """Each document with its first line."""
        parser = None
        try:
            parser = self._loader(self._text)
            self._next = parser.get_event
            while (event := self._next()) is not None:
                if type(event) is self._document_start:
                    self._anchors.clear()
                    first = self._next()
                    yield first.start_mark.line + 1, self._value(first, 1)
        except self._error as error:
            raise self._syntax(error) from None
        finally:
            if parser is not None:
                parser.dispose()

    def _value(self, event: Any, depth: int) -> Any:
        """The data of a node that begins with `event`, all its events taken."""
        kind = type(event)
        if kind is self._scalar_event and event.anchor is None:
            return self._scalar(event)
        if kind is self._alias_event:
            return self._alias(event)
        if depth > MAX_DEPTH:
            raise _TextError(f"is nested deeper than {MAX_DEPTH} levels", event.start_mark.line + 1)
        before = self._expanded
        end = event
        value: Any
        if kind is self._scalar_event:
            value = self._scalar(event)
        elif event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._bad_tag(event)
        elif kind is self._mapping_start:
            value, end = self._mapping(depth)
        else:
            value, end = self._sequence(depth)
        if event.anchor is not None:
            size = end.end_mark.index - event.start_mark.index + self._expanded - before
            self._anchors[event.anchor] = value, size
        return value

    def _mapping(self, depth: int) -> tuple[dict[str, Any], Any]:
        result: dict[str, Any] = {}
        get, scalar, end = self._next, self._scalar_event, self._mapping_end
        merged = None
        while type(event := get()) is not end:
            if type(event) is not scalar:
                raise _TextError("the key of a map is plain text", event.start_mark.line + 1)
            key = event.value
            value = self._value(get(), depth + 1)
            if key == "<<" and event.implicit[0]:
                merged = value, event.start_mark.line + 1
            elif key in result:
                raise _TextError(f"the key {show(key)} stands twice in one map", event.start_mark.line + 1)
            else:
                result[key] = value
        if merged is not None:
            _merge(result, *merged)
        return result, event

    def _sequence(self, depth: int) -> tuple[list[Any], Any]:
        result: list[Any] = []
        get, end = self._next, self._sequence_end
        while type(event := get()) is not end:
            result.append(self._value(event, depth + 1))
        return result, event

    def _alias(self, event: Any) -> Any:
        """What an alias stands for: the same object, not a copy, but counted as if it had been written out."""
        if event.anchor not in self._anchors:
            raise _TextError(f"the alias {show(event.anchor)} has no anchor before it", event.start_mark.line + 1)
        value, size = self._anchors[event.anchor]
        self._expanded += size
        if self._expanded > MAX_EXPANSION:
            problem = f"aliases stand for more than {MAX_EXPANSION // 1_000_000} MB of text"
            raise _TextError(problem, event.start_mark.line + 1)
        return value

    def _scalar(self, event: Any) -> str | float | bool | None:
        """Text, or what plain text means."""
        if event.tag is not None:
            if event.tag not in ("!", "tag:yaml.org,2002:str"):
                raise self._bad_tag(event)
            return str(event.value)
        text: str = event.value
        try:
            return _plain(text) if event.implicit[0] else text
        except ValueError as error:
            raise _TextError(str(error), event.start_mark.line + 1) from None

    def _bad_tag(self, event: Any) -> _TextError:
        return _TextError(f"the tag {show(event.tag)} has no place in a manifest", event.start_mark.line + 1)

    def _syntax(self, error: Any) -> _TextError:
        """The parser's complaint in one line."""
        if mark := getattr(error, "problem_mark", None):
            if error.problem == "exceeded maximum nesting depth":  # PyYAML 6.0.4 and later look before we do
                return _TextError(f"is nested deeper than {MAX_DEPTH} levels", mark.line + 1)
            return _TextError(f"not YAML: {error.problem or error.context}", mark.line + 1)
        position = getattr(error, "position", 0)  # counted in bytes; only ASCII's control characters come here
        line = self._text.encode()[:position].count(b"\n") + 1
        return _TextError(f"not YAML: {getattr(error, 'reason', 'cannot be read')}", line)


def _plain(text: str) -> str | float | bool | None:
    """What text without quotes means. Raises ValueError for a number that JSON has not."""
    if text in _WORDS:
        return _WORDS[text]
    return _number(text) if text[0] in "+-.0123456789" else text


def _number(text: str) -> str | float:
    """The number that plain text is, or the text."""
    plain = text if text.startswith(".") else text.replace("_", "")
    if match := _INTEGER.fullmatch(plain):
        sign, binary, hexadecimal, octal, decimal = match.groups()
        digits = binary or hexadecimal or octal or decimal
        base = 2 if binary else 16 if hexadecimal else 8 if octal else 10
        value = int(digits, base) if len(digits) <= 80 else 2**64
        if value >= 2**64:
            raise ValueError("holds a whole number of more than 64 bits")
        return -value if sign == "-" else value
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"holds {text}, which is no number in JSON")
    if not _FLOAT.fullmatch(plain):
        return text
    number = float(plain)
    if not isfinite(number):
        raise ValueError(f"holds {show(text)}, which is no number in JSON")
    return number


def _merge(target: dict[str, Any], value: object, line: int) -> None:
    """The YAML 1.1 key `<<`: what the maps under it hold and `target` does not."""
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, dict):
            raise _TextError("a map is expected under <<", line)
        for key, item in source.items():
            target.setdefault(key, item)
