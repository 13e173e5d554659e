"""What a load that was killed has left: programs that are not yet in their place, folders that nobody needs.

programs      the programs that run, unless the records name another folder that is there
programs_*    some that are being made. The transaction that records what they are made for names them: from then on
              it is they that run, and what is still called `programs` is over
maps_vN_*     maps that are being made, or that were: carrying.py says which
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydatapath.instance import Instance
from pydatapath.kernel import bpffs
from pydatapath.records import Records

__all__ = ["PROGRAMS", "adopt", "are_known", "folders", "programs_of", "remove"]

PROGRAMS: Final = "programs"  # a fact: the folder in which the programs were made that the other facts are about


def programs_of(records: Records, instance: Instance) -> Path:
    """The folder of the programs that the records are about."""
    name = records.get(PROGRAMS, "")
    made = instance.pins / name
    return made if name and made.exists() else instance.program_pins


def adopt(records: Records, instance: Instance) -> None:
    """These programs are where they belong; a load was killed before it could do that."""
    made = programs_of(records, instance)
    if made != instance.program_pins:
        bpffs.remove_tree(instance.program_pins)
        made.rename(instance.program_pins)


def are_known(records: Records, instance: Instance) -> bool:
    """Whether it can be told which programs the records are about: an earlier version does not say what its load was
    about that was killed.
    """
    return records.get(PROGRAMS) is not None or not any(instance.pins.glob(f"{instance.program_pins.name}_*"))


def folders(instance: Instance) -> list[Path]:
    """All that loads which were killed have left."""
    maps = (f"{instance.map_pins.name}_{side}_*" for side in ("next", "before"))
    return sorted(path for name in (f"{instance.program_pins.name}_*", *maps) for path in instance.pins.glob(name))


def remove(instance: Instance) -> None:
    """Takes it away, once the programs are in their place and nothing is to be carried."""
    for path in folders(instance):
        bpffs.remove_tree(path)
