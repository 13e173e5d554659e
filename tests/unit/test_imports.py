"""What is imported when: a reading command is quick, and one room alone knows the kernel."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pydatapath

PACKAGE = Path(pydatapath.__file__).parent
KERNEL_ONLY = {"bcc", "pyroute2", "ctypes"}
ABSENT = "no-such-instance-of-a-test"

# Runs a command line, then prints every module that is there now and was not before
PROBE = """
import sys
before = set(sys.modules)
from pydatapath.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """The modules that a command line imports in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def strangers(modules: set[str]) -> set[str]:
    """The top-level packages among them that are not the standard library's."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("pydatapath.")}


def test_help_imports_nothing_but_click() -> None:
    """`pydatapath --help` must not wait for anything that it does not print."""
    modules = imported("--help")
    assert strangers(modules) == {"click", "pydatapath"}
    assert not modules & {"sqlite3", "ctypes", "asyncio", "json", "subprocess", "socket", "importlib.metadata"}
    assert ours(modules) == {
        "pydatapath.cli",
        "pydatapath.cli.target",
        "pydatapath.errors",
        "pydatapath.version",
    }


@pytest.mark.parametrize(
    "command", [["service", "list"], ["backend", "list"], ["flow", "list"], ["status"]], ids=" ".join
)
def test_a_reading_command_imports_neither_bcc_nor_pyroute2_nor_yaml(command: list[str]) -> None:
    """They cost 60, 150 and 10 ms; the whole command has 150."""
    modules = imported("--instance", ABSENT, *command)
    assert strangers(modules) == {"click", "pydatapath"}
    assert not modules & {"asyncio", "subprocess", "unittest", "multiprocessing", "email", "http", "importlib.metadata"}
    assert not ours(modules) & {
        "pydatapath.kernel.attach",
        "pydatapath.kernel.compile",
        "pydatapath.kernel.features",
        "pydatapath.lab",
        "pydatapath.loading",
        "pydatapath.manifests",
    }


def test_apply_imports_what_it_needs(tmp_path: Path) -> None:
    """One slice's change is most of all imports: what looks at hosts, flows and options stays outside."""
    path = tmp_path / "one.json"
    path.write_text('{"apiVersion": "v1", "kind": "Service"}')
    modules = imported("--instance", ABSENT, "apply", "-f", str(path))
    assert not strangers(modules) - {"click", "pydatapath"}
    assert not modules & {"asyncio", "hashlib", "shutil", "subprocess"}
    assert not ours(modules) & {
        "pydatapath.editing",
        "pydatapath.egress",
        "pydatapath.kernel.flowtable",
        "pydatapath.kernel.host",
        "pydatapath.loading",
        "pydatapath.node",
        "pydatapath.views",
    }
    assert "pydatapath.applying" in ours(modules)


def test_a_command_ends_without_a_search_for_garbage() -> None:
    ends = "import atexit, gc; atexit.register(lambda: print('frozen', gc.get_freeze_count() > 0))"
    asked = [sys.executable, "-c", f"{ends}; from pydatapath.__main__ import main; main()", "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen True"


def test_the_package_itself_imports_nothing() -> None:
    """`import pydatapath` is free; each public name is imported when it is asked for."""
    code = "import sys; before = set(sys.modules); import pydatapath; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ours(set(done.stdout.split())) == {"pydatapath.version"}
    assert "click" not in done.stdout.split()


def test_the_public_names_are_exact_and_sorted() -> None:
    """Every name of __all__ is there, has a docstring, and is named nowhere else."""
    assert pydatapath.__all__ == [
        "Backend",
        "Datapath",
        "DatapathError",
        "EndpointSlice",
        "Options",
        "PydatapathError",
        "Service",
        "__version__",
    ]
    assert pydatapath.__all__ == sorted(pydatapath.__all__)
    assert {*pydatapath._PLACES, "__version__"} == set(pydatapath.__all__)
    for name in pydatapath._PLACES:
        found = getattr(pydatapath, name)
        assert found.__name__ == {"PydatapathError": "DatapathError"}.get(name, name)
        assert found.__doc__


def test_other_names_are_not_there() -> None:
    """As in any module."""
    with pytest.raises(AttributeError, match=r"^module 'pydatapath' has no attribute 'Datapth'$"):
        pydatapath.Datapth  # noqa: B018


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The top-level names of all imports in a file, also of those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found.add((node.module or "").partition(".")[0])
    return found


def test_only_one_room_touches_the_kernel() -> None:
    """Nothing outside pydatapath/kernel imports bcc, pyroute2 or ctypes, not even inside a function."""
    found = {str(path.relative_to(PACKAGE)): imports_of(path) & KERNEL_ONLY for path in files()}
    outside = {name: names for name, names in found.items() if names and not name.startswith("kernel/")}
    assert outside == {}
    assert any(found.values()), "the walk finds imports at all"


def test_only_the_command_line_knows_click() -> None:
    """The library raises errors; what they look like is said in one place."""
    knowing = {str(path.relative_to(PACKAGE)) for path in files() if "click" in imports_of(path)}
    assert knowing
    assert all(name.startswith("cli/") for name in knowing)


def test_the_plan_is_pure() -> None:
    """What decides imports neither a map, nor a file, nor a process: it is given all that it decides on."""
    allowed = {"__future__", "collections", "dataclasses", "ipaddress", "pydatapath", "types", "typing"}
    for name in ("plan", "model", "serving", "guarding", "membership"):
        assert imports_of(PACKAGE / f"{name}.py") <= allowed
    for name in ("slots", "maglev"):
        assert imports_of(PACKAGE / f"{name}.py") <= allowed | {"hashlib", "heapq", "math", "operator"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_module_exports_is_there(path: Path) -> None:
    """__all__ names only what the module defines or imports, and nothing twice."""
    tree = ast.parse(path.read_text())
    exported: list[str] = []
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["__all__"]:
            exported = ast.literal_eval(node.value)
    assert set(exported) <= defined
    assert len(set(exported)) == len(exported)
