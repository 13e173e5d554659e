"""`repair`: what has drifted is made as `load` and `apply` left it; without a compiler where the programs are there."""

from __future__ import annotations

from pydatapath import applying, carrying, drift, leftovers, loading
from pydatapath.drift import Look
from pydatapath.errors import DatapathError, KernelError, NotLoaded
from pydatapath.instance import Instance
from pydatapath.interrupts import deferred
from pydatapath.kernel import bpffs, netns, restoring
from pydatapath.kernel.maps import Maps
from pydatapath.node import Node, options_of
from pydatapath.record_faults import DamagedRecords, copy_of, take_copy
from pydatapath.records import Records
from pydatapath.wiring import maps_of, places_of

__all__ = ["repair"]


def repair(instance: Instance) -> list[str]:
    """Mends all drift. Returns a sentence about each thing that was not as it should be; none: nothing was to do.

    Raises KernelError where something is left, and what `load` raises.
    """
    loading.require_root("repair")
    bpffs.ensure_mounted()
    with netns.entered(instance.netns_path), instance.locked():
        if not instance.records.exists() and not copy_of(instance.records).exists():
            raise NotLoaded(f"instance {instance.name!r} is not loaded", hint="`pydatapath load` loads it")
        told = _take_copy(instance)
        _refuse_unfinished(instance)
        planned = _plan_by_copy(instance)
        told = told or planned  # what was taken says enough
        found = _look(instance)
        if not found.found:
            return told
        if found.node is None:  # says why
            raise DatapathError(found.found[0], hint="`pydatapath load` with other options, or the host as it was")
        with deferred():
            _restore_pins(instance, found.node)
            _mend(instance)
        left = _look(instance).found
        if left:
            raise KernelError(f"not all could be mended: {'; '.join(left)}", hint="`pydatapath unload` and `load`")
        return told + found.found


def _take_copy(instance: Instance) -> list[str]:
    """Damaged records are their copy's, which the change that notes it makes anew. A sentence about it, or none."""
    taken = take_copy(instance.records)
    if taken is None:
        raise DamagedRecords(
            f"the records {instance.records} are damaged, and so is their copy, if there is one",
            hint="traffic goes on as it is; `pydatapath unload` and `load` start afresh",
        )
    if not taken:
        return []
    with Records(instance.records) as records:
        records.put({loading.MENDED: taken})
    return [taken]


def _refuse_unfinished(instance: Instance) -> None:
    """Nobody knows what a first load was told that was killed."""
    with Records(instance.records) as records:
        if records.get("options") is None:
            raise NotLoaded(
                f"instance {instance.name!r} is not loaded: its first load was killed", hint="`pydatapath load` again"
            )
        records.keep_copy()


def _plan_by_copy(instance: Instance) -> list[str]:
    """Services are planned where a copy has been taken, now or by a command that was killed. A sentence, or none."""
    with Records(instance.records) as records:
        if not records.incomplete:
            return []
        applying.complete(records)
        return ["the records were a copy, by which services had not been planned yet"]


def _look(instance: Instance) -> Look:
    with Records(instance.records) as records, Maps(instance.map_pins) as maps:
        return drift.look(records, maps, instance)


def _restore_pins(instance: Instance, node: Node) -> None:
    """By what still hangs at interfaces, what it uses and where its tail calls lead; after a load that was killed first
    by what it had done.
    """
    with Records(instance.records) as records:
        leftovers.adopt(records, instance)
    carrying.restore(instance)
    others = restoring.lost_maps(instance.map_pins, instance.program_pins, maps_of(node))
    if others and carrying.is_aside(instance):
        return  # flows are in the maps of both folders: what carries them is another exchange
    hooked = restoring.hanging(instance.name, dict.fromkeys(one.interface.index for one in node.attachments))
    for folder in (instance.map_pins, instance.program_pins):
        bpffs.make_private(folder)
    restoring.restore(instance.map_pins, instance.program_pins, maps_of(node), hooked, places_of(node))


def _mend(instance: Instance) -> None:
    """With what is pinned, where that is all that is needed; else as `load` does."""
    with Records(instance.records) as records, Maps(instance.map_pins) as maps:
        options = options_of(records)
        now = drift.look(records, maps, instance, entries=False)
        if now.is_whole and now.node is not None:
            loading.reconcile(records, maps, instance, now.node, now.seen, options, instance.program_pins, {})
            loading.forget_others(records, maps, now.node, now.seen)
            loading.tidy(instance, now.node)
            return
    loading.exchange(instance, options)
