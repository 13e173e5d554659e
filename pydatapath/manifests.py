"""Kubernetes manifests from files, folders and standard input to model objects.

    loaded = read(["web.yaml", "services/", "-"])
    loaded.objects                                # Service, EndpointSlice and Node
    loaded.skipped                                # ["Deployment default/web"]: known, and none of our business
    loaded.faults                                 # with keep_going: what could not be taken, and why

What comes in may be large, broken or hostile. Reading ends in objects and in a ManifestError for each bad one, in
bounded time and memory; no device, no waiting for a pipe that nobody writes to, no code run by a tag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pydatapath.collecting import collector_resting
from pydatapath.documents import documents, to_yaml
from pydatapath.errors import ManifestError, Refused
from pydatapath.fields import LABEL, SUBDOMAIN, items_of, printable
from pydatapath.kinds import API_VERSIONS, is_namespaced, kind_of, title
from pydatapath.model import Manifested
from pydatapath.reading import file_bytes
from pydatapath.schema import build, checked, parse

__all__ = ["MAX_BYTES", "Loaded", "parse", "read", "to_yaml"]

MAX_BYTES: Final = 100_000_000  # 600,000 endpoints; what is larger is not a manifest
_SUFFIXES: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `read` found, in the order of the files: the objects, the titles of those that are none of ours, and an
    error for each that is bad.
    """

    objects: list[Manifested] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    faults: list[ManifestError] = field(default_factory=list)


def read(paths: Iterable[str], *, keep_going: bool = False) -> Loaded:
    """The objects of all `paths`: files, folders (their *.yaml, *.yml and *.json, not deeper), or "-", standard input.

    Raises Refused, with every fault there is, where anything is wrong anywhere; with `keep_going` it gives what is
    good, and the faults beside it. Of a file that cannot be read to its end the documents before that are taken.
    """
    reader = _Reader()
    with collector_resting():
        for path in paths:
            reader.take_path(path)
    if reader.loaded.faults and not keep_going:
        raise Refused(reader.loaded.faults)
    return reader.loaded


class _Reader:
    """Collects objects and faults over all files."""

    def __init__(self) -> None:
        self.loaded = Loaded()
        self._places: dict[tuple[str, str], str] = {}  # where each object stands

    def take_path(self, path: str) -> None:
        try:
            for name in _files(path):
                self._take_file(name)
        except ManifestError as error:
            self.loaded.faults.append(error)

    def _take_file(self, path: str) -> None:
        source = "standard input" if path == "-" else printable(path)
        empty = True
        try:
            for line, document in documents(_text(path, source), source):
                empty = False
                self._take(document, source, f":{line}")
        except ManifestError as error:
            self.loaded.faults.append(error)
        else:
            if empty:
                self.loaded.faults.append(ManifestError(f"{source}: holds no objects"))

    def _take(self, document: object, source: str, at: str, *, of_list: bool = False) -> None:
        """One document: an object, a list of them, or something to skip. `of_list`: part of one that was checked."""
        where = f"{source}{at}"
        try:
            manifest = document if of_list and isinstance(document, dict) else checked(document, where)
            kind = kind_of(manifest, where)
            if kind in API_VERSIONS:
                self._keep(build(manifest, kind, source, at), kind, source, where)
            elif kind.endswith("List"):
                self._take_list(manifest, kind, source, at)
            else:
                self.loaded.skipped.append(title(manifest))
        except ManifestError as error:
            error.key = _key_of(document)
            self.loaded.faults.append(error)

    def _take_list(self, manifest: dict[str, Any], kind: str, source: str, at: str) -> None:
        """A List of anything, or one of a single kind, whose items need not say what they are."""
        if manifest.get("items") is None:  # a slip such as `item:`, by which --prune would delete everything
            raise ManifestError(f"{source}{at}: {kind}: items: is missing")
        try:
            items = list(items_of(manifest, "items", ""))
        except ManifestError as error:
            raise ManifestError(f"{source}{at}: {kind}: {error}") from None
        for path, item in items:
            typed = item
            if kind != "List" and isinstance(item, dict) and "kind" not in item:
                typed = {"apiVersion": manifest.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
            self._take(typed, source, f"{at}: {path}", of_list=True)

    def _keep(self, found: Manifested, kind: str, source: str, where: str) -> None:
        if other := self._places.get((kind, found.key)):
            raise ManifestError(f"{source}: {kind} {found.key}: stands in {other} and again in {where}")
        self._places[kind, found.key] = where
        self.loaded.objects.append(found)


def _key_of(document: object) -> tuple[str, str, str] | None:
    """Kind, namespace and name of a bad object of ours, where these at least are good."""
    if not isinstance(document, dict):
        return None
    kind, metadata = document.get("kind"), document.get("metadata")
    if not isinstance(kind, str) or kind not in API_VERSIONS or not isinstance(metadata, dict):
        return None
    namespace, name = metadata.get("namespace") or "default", metadata.get("name")
    if not isinstance(namespace, str) or not isinstance(name, str):
        return None
    if not is_namespaced(kind):
        return (kind, "", name) if SUBDOMAIN.fullmatch(name) else None
    return (kind, namespace, name) if LABEL.fullmatch(namespace) and SUBDOMAIN.fullmatch(name) else None


def _files(path: str) -> list[str]:
    """The files that `path` means. Hidden ones are left out: editors and mounted ConfigMaps put theirs there."""
    if path == "-" or not os.path.isdir(path):
        return [path]
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise _unreadable(printable(path), error) from None
    names = [name for name in names if name.endswith(_SUFFIXES) and not name.startswith(".")]
    if not names:
        raise ManifestError(f"{printable(path)}: no .yaml, .yml or .json file in this folder")
    return [str(Path(path, name)) for name in names]


def _unreadable(source: str, error: OSError) -> ManifestError:
    return ManifestError(f"{source}: {(error.strerror or 'cannot be read').lower()}")


def _text(path: str, source: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark."""
    try:
        data = _stdin_bytes() if path == "-" else file_bytes(path, MAX_BYTES)
    except OSError as error:
        raise _unreadable(source, error) from None
    except ValueError as error:
        raise ManifestError(f"{source}: {error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{source}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def _stdin_bytes() -> bytes:
    stream: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    data = stream.read(MAX_BYTES + 1) if stream else b""
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 1_000_000} MB")
    return data
