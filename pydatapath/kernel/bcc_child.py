"""The child process that runs bcc: a request as JSON on stdin, an answer as JSON on stdout, the rest on stderr.

Request: text, cflags, programs ({function: name of the pin}), places (those that go into the program array: {name:
place}), maps ({name: name in C}), directory (where programs are pinned). Answer: {"records": {map: {"key": [[field,
offset, size], ...]}}, "programs": {name: {"code": base64, "maps": {descriptor in the code: map}}}} or {"error":
"missing" | "compile" | "load PROGRAM"}.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pydatapath.kernel import libbpf

DESCRIPTORS: Final = 256
SYSTEM_BCC: Final = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")


def main() -> None:
    """Answers one request. bcc is imported before the request is there: the parent has things to do meanwhile."""
    allow_descriptors()
    bcc = find_bcc()
    request = sys.stdin.read()
    if request:
        json.dump({"error": "missing"} if bcc is None else answer(bcc, json.loads(request)), sys.stdout)


def allow_descriptors() -> None:
    """Each map and program takes one: a low limit is raised, as far as that may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))


def answer(bcc: ModuleType, request: dict[str, Any]) -> dict[str, Any]:
    """Compiles, loads, fills the program array and pins."""
    try:
        module = bcc.BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:
        print(error, file=sys.stderr)
        return {"error": "compile"}
    loaded = {}
    for function, name in request["programs"].items():
        try:
            loaded[name] = module.load_func(function, bcc.BPF.SCHED_CLS).fd
        except Exception as error:
            print(error, file=sys.stderr)
            return {"error": f"load {name}"}
    for name, place in request["places"].items():
        module["walks"][ctypes.c_int(place)] = ctypes.c_int(loaded[name])
    for name, descriptor in loaded.items():
        libbpf.pin(descriptor, f"{request['directory']}/{name}")
    maps = {**request["maps"], "walks": "walks"}
    names = {str(module[in_c].map_fd): name for name, in_c in maps.items()}
    return {
        "records": {name: record_shapes(module[in_c]) for name, in_c in request["maps"].items()},
        "programs": {
            name: {"code": base64.b64encode(module.dump_func(function)).decode(), "maps": names}
            for function, name in request["programs"].items()
        },
    }


def find_bcc() -> ModuleType | None:
    """The real bcc: an importable one, else the system's, without letting other system packages in.

    A virtual environment does not see Debian's dist-packages; and PyPI's `bcc` is an unrelated package.
    """
    try:
        import bcc
    except ImportError:
        pass
    else:
        if hasattr(bcc, "BPF"):
            found: ModuleType = bcc
            return found
        del sys.modules["bcc"]
    if not SYSTEM_BCC.is_file():
        return None
    spec = importlib.util.spec_from_file_location(
        "bcc", SYSTEM_BCC, submodule_search_locations=[str(SYSTEM_BCC.parent)]
    )
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def record_shapes(table: Any) -> dict[str, list[list[Any]]]:
    """How the compiler laid out a map's key and value: (field, offset, size) of each."""
    # Of a per-CPU map Leaf is an array, and sLeaf what one CPU has
    return {"key": record_shape(table.Key), "value": record_shape(getattr(table, "sLeaf", table.Leaf))}


def record_shape(kind: Any) -> list[list[Any]]:
    """The fields of one ctypes class that bcc made; none for a plain number."""
    if not (isinstance(kind, type) and issubclass(kind, ctypes.Structure)):
        return []
    fields = [(field[0], getattr(kind, field[0])) for field in kind._fields_]
    return [[name, place.offset, place.size] for name, place in fields]


if __name__ == "__main__":
    main()
