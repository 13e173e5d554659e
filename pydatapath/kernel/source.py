"""The C sources: where they lie, and how they become the one text that bcc takes."""

from __future__ import annotations

import re
from pathlib import Path

from pydatapath.errors import CompileError

__all__ = ["assemble", "directory", "shim"]

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"\s*$')
_REINSTALL = "install pydatapath again"


def directory() -> Path:
    """The folder `bpf/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "bpf", package.parent / "bpf"):
        if (place / "datapath.c").is_file():
            return place
    raise CompileError("the C sources (bpf/datapath.c) are missing from this installation", hint=_REINSTALL)


def shim() -> Path:
    """The header shim that stands in for the running kernel's headers (bpf/include)."""
    return directory() / "include"


def assemble(main: Path) -> str:
    """The text of `main` with its local includes pasted in, each line still known by its own file and number.

    Raises CompileError where one is missing.

    bcc's rewriter edits the main file only: map operations in an included file would compile and then fail to load
    ("unknown opcode 8d", bcc 0.26). `#line` keeps the compiler's messages and the verifier's log truthful.
    """
    return "\n".join(_paste(main, set())) + "\n"


def _paste(path: Path, seen: set[Path]) -> list[str]:
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
            if line == "{":  # a function's body: bcc (0.26) has put a line of its own before the function
                lines.append(f'#line {number + 1} "{path.name}"')
            continue
        included = path.parent / match.group(1)
        if included in seen:
            lines.append("")
            continue
        if not included.is_file():
            raise CompileError(f"{path.name}:{number}: {included.name} is missing", hint=_REINSTALL)
        lines += [*_paste(included, seen), f'#line {number + 1} "{path.name}"']
    return lines
