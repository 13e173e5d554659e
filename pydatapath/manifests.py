"""Kubernetes manifests from files, folders and standard input to model objects, all of them or none.

    loaded = read(["web.yaml", "services/", "-"])
    loaded.objects                                # Service and EndpointSlice
    loaded.skipped                                # ["Deployment default/web"]: known, and none of our business

What comes in may be large, broken or hostile. Reading ends in objects or in one ManifestError, in bounded time and
memory; no device, no waiting for a pipe that nobody writes to, no code run by a tag.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pydatapath.documents import documents, to_yaml
from pydatapath.errors import ManifestError
from pydatapath.fields import items_of, printable
from pydatapath.kinds import API_VERSIONS, kind_of, title
from pydatapath.model import EndpointSlice, Service
from pydatapath.schema import build, checked, parse

__all__ = ["MAX_BYTES", "Loaded", "parse", "read", "to_yaml"]

MAX_BYTES: Final = 100_000_000  # 600,000 endpoints; what is larger is not a manifest
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_TOLD: Final = 3  # further errors that a hint names: more would hide the first


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `read` found, in the order of the files: the objects, and the titles of those that it did not take."""

    objects: list[Service | EndpointSlice] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read(paths: Iterable[str]) -> Loaded:
    """The objects of all `paths`: files, folders (their *.yaml, *.yml and *.json, not deeper), or "-", standard input.

    Raises one ManifestError when anything is wrong anywhere: the first fault is its message, its hint names the next.
    """
    reader = _Reader()
    with _collector_resting():
        for path in paths:
            reader.take_path(path)
    if reader.errors:
        raise _one_error(reader.errors)
    return reader.loaded


def _one_error(errors: list[ManifestError]) -> ManifestError:
    first, *others = errors
    if not others:
        return first
    told = "; ".join(str(error) for error in others[:_TOLD])
    return ManifestError(str(first), hint=f"and {len(others)} more: {told}{'; ...' if len(others) > _TOLD else ''}")


@contextmanager
def _collector_resting() -> Iterator[None]:
    """No garbage collection: it would look through a hundred thousand new objects, again and again, to find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Reader:
    """Collects objects and faults over all files."""

    def __init__(self) -> None:
        self.loaded = Loaded()
        self.errors: list[ManifestError] = []
        self._places: dict[tuple[str, str], str] = {}  # where each object stands

    def take_path(self, path: str) -> None:
        try:
            for name in _files(path):
                self._take_file(name)
        except ManifestError as error:
            self.errors.append(error)

    def _take_file(self, path: str) -> None:
        source = "standard input" if path == "-" else printable(path)
        try:
            found = documents(_text(path, source), source)
            if not found:
                self.errors.append(ManifestError(f"{source}: holds no objects"))
        except ManifestError as error:
            self.errors.append(error)
            return
        for line, document in found:
            self._take(document, source, f":{line}")

    def _take(self, document: object, source: str, at: str) -> None:
        """One document: an object, a list of them, or something to skip."""
        where = f"{source}{at}"
        try:
            manifest = checked(document, where)
            kind = kind_of(manifest, where)
            if kind in API_VERSIONS:
                self._keep(build(manifest, kind, source, at), kind, source, where)
            elif kind.endswith("List"):
                self._take_list(manifest, kind, source, at)
            else:
                self.loaded.skipped.append(title(manifest))
        except ManifestError as error:
            self.errors.append(error)

    def _take_list(self, manifest: dict[str, Any], kind: str, source: str, at: str) -> None:
        """A List of anything, or one of a single kind, whose items need not say what they are."""
        try:
            items = list(items_of(manifest, "items", ""))
        except ManifestError as error:
            raise ManifestError(f"{source}{at}: {kind}: {error}") from None
        for path, item in items:
            typed = item
            if kind != "List" and isinstance(item, dict) and "kind" not in item:
                typed = {"apiVersion": manifest.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
            self._take(typed, source, f"{at}: {path}")

    def _keep(self, found: Service | EndpointSlice, kind: str, source: str, where: str) -> None:
        if other := self._places.get((kind, found.key)):
            raise ManifestError(f"{source}: {kind} {found.key}: stands in {other} and again in {where}")
        self._places[kind, found.key] = where
        self.loaded.objects.append(found)


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


def _too_large(source: str) -> ManifestError:
    return ManifestError(f"{source}: larger than {MAX_BYTES // 1_000_000} MB")


def _text(path: str, source: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark."""
    try:
        data = _stdin_bytes() if path == "-" else _file_bytes(path, source)
    except OSError as error:
        raise _unreadable(source, error) from None
    if len(data) > MAX_BYTES:
        raise _too_large(source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{source}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def _stdin_bytes() -> bytes:
    stream: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    return stream.read(MAX_BYTES + 1) if stream else b""


def _file_bytes(path: str, source: str) -> bytes:
    """At most MAX_BYTES and one more, of a regular file or a pipe; anything else (a device, a socket) is refused.

    A pipe is opened without waiting for somebody to write to it: one that nobody holds open is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:  # a zero byte in the name
        raise ManifestError(f"{source}: no such file or directory") from None
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
            raise ManifestError(f"{source}: neither a file nor a folder")
        if status.st_size > MAX_BYTES:
            raise _too_large(source)
        os.set_blocking(descriptor, True)
        return stream.read(MAX_BYTES + 1)  # files below /proc say 0 and hold more
