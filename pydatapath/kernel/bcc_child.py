"""The child process that runs bcc: a request as JSON on stdin, an answer as JSON on stdout, the rest on stderr.

Request: text, cflags, programs, tails (those that go into the program array: {program: place}), records (maps whose
structs are asked for), directory (where programs are pinned). Answer: {"records": {map: {"key": [[field, offset, size],
...]}}, "programs": {name: {"code": base64, "maps": {descriptor in the code: map}}}} or {"error": "missing" | "compile"
| "load PROGRAM"}.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pydatapath.kernel import libbpf

SYSTEM_BCC: Final = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")


def main() -> None:
    """Answers one request. bcc is imported before the request is there: the parent has things to do meanwhile."""
    bcc = find_bcc()
    request = sys.stdin.read()
    if request:
        json.dump({"error": "missing"} if bcc is None else answer(bcc, json.loads(request)), sys.stdout)


def answer(bcc: ModuleType, request: dict[str, Any]) -> dict[str, Any]:
    """Compiles, loads, fills the program array and pins."""
    try:
        module = bcc.BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:
        print(error, file=sys.stderr)
        return {"error": "compile"}
    loaded = {}
    for name in request["programs"]:
        try:
            loaded[name] = module.load_func(name, bcc.BPF.SCHED_CLS).fd
        except Exception as error:
            print(error, file=sys.stderr)
            return {"error": f"load {name}"}
    for name, place in request["tails"].items():
        module["walks"][ctypes.c_int(place)] = ctypes.c_int(loaded[name])
    for name, descriptor in loaded.items():
        libbpf.pin(descriptor, f"{request['directory']}/{name}")
    names = {str(module[name].map_fd): name for name in [*request["records"], "walks"]}
    return {
        "records": {name: record_shapes(module[name]) for name in request["records"]},
        "programs": {
            name: {"code": base64.b64encode(module.dump_func(name)).decode(), "maps": names} for name in loaded
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
