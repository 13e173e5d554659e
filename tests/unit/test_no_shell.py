"""No shell ever reads a command of ours, and no text becomes code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pydatapath

PACKAGE = Path(pydatapath.__file__).parent
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
CODE = {"eval", "exec", "compile", "__import__"}


def faults(source: str) -> list[str]:
    """The calls that would ask a shell, or make code of text, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        bare = isinstance(node.func, ast.Name)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        from_os = isinstance(owner, ast.Name) and owner.id in {"os", "subprocess", "asyncio", "commands"}
        shell = any(one.arg == "shell" and not _is_false(one.value) for one in node.keywords)
        if shell or (name in SHELLS and (bare or from_os)) or (bare and name in CODE):
            found.append(f"{node.lineno}: {name}")
    return found


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_F25_no_shell_and_no_code_from_text(path: Path) -> None:
    """Commands are lists of arguments, documents are data."""
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    ["os.system(x)", "subprocess.run(x, shell=True)", "eval(x)", "popen(x)", "subprocess.Popen(x, shell=wanted)"],
)
def test_what_is_looked_for_is_found(text: str) -> None:
    """A test that finds nothing anywhere would say nothing."""
    assert faults(text)
