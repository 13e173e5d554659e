"""While flows move to a table of another size: what is not there yet is looked for where it was.

Between the last look at the table that the old programs write and the writing of what was found in the next,
connections go on: what the old programs have entered meanwhile the new ones do not know, and a server's answer would
reach its client from another address, who refuses it. So `recall` (bpf/recall.h) is in the new programs' array of tail
calls until all is carried, and takes along what a packet asks for.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from pydatapath.kernel import compile, libbpf
from pydatapath.kernel.cache import WALKS
from pydatapath.kernel.layout import MAPS, RECALL, Family, tail_place
from pydatapath.kernel.maps import Map

__all__ = ["begin", "end"]

_U32: Final = struct.Struct("=I")


def begin(program: compile.Program, former: Path, families: Collection[Family]) -> None:
    """From here on these programs, which are pinned and do not hang yet, look for flows in the maps of this folder,
    too. They hold these until `end`, or until other programs are in their place.

    Raises CompileError, VerifierError, Unsupported.
    """
    parts = [
        compile.recall_part(program, family, former, _entries(former / f"flows{family.suffix}", family))
        for family in families
    ]
    with compile.Compiler() as compiler:
        compiler.ask(parts)
    for family in families:
        (program.program_directory / f"{RECALL}{family.suffix}").unlink()  # the array holds it


def _entries(path: Path, family: Family) -> int:
    with Map(MAPS[f"flows{family.suffix}"], path) as table:
        return table.info.max_entries


def end(programs: Path, families: Collection[Family]) -> None:
    """All is carried: the programs in this folder look nowhere else any more. Those of a version before this one never
    did: they have no such place.
    """
    with libbpf.opened(libbpf.open_pin(str(programs / WALKS))) as walks:
        there = libbpf.map_info(walks).max_entries
        for place in (tail_place(RECALL, family) for family in families):
            if place < there:
                libbpf.remove(walks, _U32.pack(place))
