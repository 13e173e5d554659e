"""How the C files become the one text that bcc takes, with every line known by its own file and number."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from pydatapath.errors import CompileError
from pydatapath.kernel import source

MARKER = re.compile(r'#line (\d+) "([^"]+)"')


def places(text: str) -> dict[str, str]:
    """Where the compiler sees each line that is not empty: `file:number`, as an error would name it."""
    found, name, number = {}, "", 0
    for line in text.splitlines():
        marker = MARKER.fullmatch(line)
        if marker:
            number, name = int(marker[1]), marker[2]
            continue
        if line.strip():
            found[f"{name}:{number}"] = line
        number += 1
    return found


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A main file whose headers include each other."""
    files = {
        "main.c": '#include <linux/bpf.h>\n#include "a.h"\n#include "b.h"\n\n'
        'int main_line;\n  #  include "c.h"\nint end;\n',
        "a.h": '#include "b.h"\nint a_line;\n',
        "b.h": "int b_line;",
        "c.h": '#include "main.c"\nint c_line;\n\n#include "a.h"\nint c_end;\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "main.c"


def test_every_header_is_pasted_once_where_it_is_first_asked_for(nested: Path) -> None:
    """The order is the compiler's own with include guards; headers in angle brackets are left to it."""
    lines = [line for line in source.assemble(nested).splitlines() if line.strip() and not line.startswith("#line")]
    assert lines == [
        "#include <linux/bpf.h>",
        "int b_line;",
        "int a_line;",
        "int main_line;",
        "int c_line;",
        "int c_end;",
        "int end;",
    ]


def test_every_line_keeps_its_file_and_number(nested: Path) -> None:
    """An error is named at the line where an editor finds it, also behind an include that is not pasted again."""
    assert places(source.assemble(nested)) == {
        "main.c:1": "#include <linux/bpf.h>",
        "b.h:1": "int b_line;",
        "a.h:2": "int a_line;",
        "main.c:5": "int main_line;",
        "c.h:2": "int c_line;",
        "c.h:5": "int c_end;",
        "main.c:7": "int end;",
    }


def test_the_datapath_is_whole() -> None:
    """Of our own sources every line arrives, at its place, and no include of ours is left to the compiler."""
    folder = source.directory()
    seen = places(source.assemble(folder / "datapath.c"))
    files = {place.partition(":")[0] for place in seen}
    assert files == {path.name for path in folder.iterdir() if path.suffix in (".c", ".h")}
    for name in files:
        for number, line in enumerate((folder / name).read_text().splitlines(), start=1):
            if line.strip() and not line.startswith('#include "'):
                assert seen[f"{name}:{number}"] == line
    assert not any(line.startswith('#include "') for line in seen.values())


def test_the_shim_lies_beside_the_sources() -> None:
    """bcc looks below BCC_KERNEL_SOURCE for this file first."""
    assert (source.shim() / "include/linux/kconfig.h").is_file()


def copied(folder: Path) -> ModuleType:
    """The module as it lies in a package that was installed in `folder`."""
    place = folder / "pydatapath/kernel/source.py"
    place.parent.mkdir(parents=True)
    shutil.copy(str(source.__file__), place)
    spec = importlib.util.spec_from_file_location("installed_source", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", ["pydatapath/bpf", "bpf"])
def test_an_installed_package_finds_its_sources(tmp_path: Path, place: str) -> None:
    """A wheel carries them inside the package, a checkout beside it."""
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "datapath.c").touch()
    assert copied(tmp_path).directory() == tmp_path / place


def test_missing_sources_are_one_error(tmp_path: Path) -> None:
    """An installation without bpf/ says so, and what to do."""
    with pytest.raises(CompileError, match=r"^the C sources \(bpf/datapath\.c\) are missing") as caught:
        copied(tmp_path).directory()
    assert caught.value.hint == "install pydatapath again"


def test_a_missing_header_is_one_error(tmp_path: Path) -> None:
    """A header that was lost is named, with the line that asks for it."""
    (tmp_path / "main.c").write_text('int first;\n#include "lost.h"\n')
    with pytest.raises(CompileError, match=r"^main\.c:2: lost\.h is missing") as caught:
        source.assemble(tmp_path / "main.c")
    assert caught.value.hint == "install pydatapath again"
