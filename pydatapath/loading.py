"""Loading a datapath into the kernel, exchanging it for another, and taking it away without a trace.

What can fail comes first: compiling, then the maps, then asking whether each place is free. Only then are programs
exchanged, and Ctrl-C waits until they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydatapath import applying, carrying, connecting, drift, leftovers, seeding, timers
from pydatapath.errors import DatapathError, KernelError, Unsupported, VerifierError
from pydatapath.instance import Instance
from pydatapath.interrupts import deferred
from pydatapath.kernel import bpffs, compile, netns, recalling, restoring
from pydatapath.kernel.layout import MAPS, Family
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.nattable import is_there
from pydatapath.node import Node, Options, Scope, options_of, resolve
from pydatapath.record_faults import DamagedRecords, remove_database, take_copy
from pydatapath.records import Records
from pydatapath.version import __version__
from pydatapath.wiring import facts_of, place_of

if TYPE_CHECKING:
    from pydatapath.kernel.host import Host

__all__ = ["clean_up", "exchange", "forget_others", "load", "reconcile", "require_root", "tidy", "unload"]

# The facts that a plan is made of (wiring.place_of), and what they are before the first load
_PLACE: Final[Mapping[str, object]] = {
    "node_name": "",
    "node_port_addresses": [],
    "zone": "",
    "algorithm": "random",
    "families": [Family.IPV4],
    "masqueraded": [],
}
MENDED: Final = "mended"  # a fact: what the last load had to mend of the records, as a sentence
COMPILED: Final = "compiled"  # a fact: the name of all that is compiled into the programs (compile.key_of)


def load(instance: Instance, options: Options, *, break_flows: bool = False) -> Node:
    """Loads, or exchanges what is loaded for what the options say. A load that fails leaves all as it was.

    Raises DatapathError and what compiling, attaching and the maps raise; LayoutError where open connections would
    break, unless `break_flows` says that they may.
    """
    require_root("load")
    options = Options.from_mapping(options.as_mapping())  # of a script they are as it says
    bpffs.ensure_mounted()
    with netns.entered(instance.netns_path), instance.locked(make=True):
        return exchange(instance, options, break_flows=break_flows)


def exchange(instance: Instance, options: Options, *, break_flows: bool = False) -> Node:
    """`load`, for who holds the instance's lock and is in its namespace."""
    from pydatapath.kernel import host

    mended = _mend_records(instance)
    fresh = not instance.records.exists()
    foreign_pins = fresh and instance.pins.exists()  # without records: another's, or a crash's
    if not fresh:
        with Records(instance.records, create=True) as records:  # an earlier version's are brought up to date
            applying.complete(records)
        _find_lost_maps(instance)
    # A name of its own for each load: a folder of one that was killed may hold the programs that run
    staging = instance.pins / f"{instance.program_pins.name}_{os.getpid()}_{time.monotonic_ns()}"
    programs = staging
    move: carrying.Move | None = None
    done = False
    try:
        with compile.Compiler() as compiler:
            seen = host.survey(between_pods=options.pod_fast_path != "never")
            node = resolve(options, seen, socket.gethostname())
            sizes = compile.Sizes.asked(options.max_flows, options.max_backends, options.max_services)
            move = carrying.prepare(instance, sizes.definitions, _timeouts(instance), break_flows=break_flows)
            if move.directory != instance.map_pins or not move.directory.exists():
                _refuse_too_large(sizes, node, move.made)
            program = _program(move.directory, node, sizes, staging)
            compiled = compile.key_of(program)
            if not fresh and _runs(instance, node, options, move, compiled):
                programs = instance.program_pins
            else:
                _compile(compiler, program, instance, move)
        with deferred():
            with Records(instance.records, create=True) as records, Maps(move.directory) as maps:
                move.carry(maps)
                facts = _facts(instance, node, options)
                facts |= {MENDED: mended, COMPILED: compiled, leftovers.PROGRAMS: programs.name}
                reconcile(records, maps, instance, node, seen, options, programs, facts, move)
                done = True  # a kill from here on leaves what the next load, or a repair, finishes
                if move.families:
                    recalling.end(programs, move.families)
                forget_others(records, maps, node, seen)
            _drop_maps(instance, node.families, node.masqueraded)
            _keep(instance, programs)
    except BaseException as error:
        if done:
            raise  # a signal that has waited
        _recover(instance, staging, move, fresh=fresh, foreign_pins=foreign_pins)
        if isinstance(error, VerifierError) or (isinstance(error, KernelError) and error.errno == errno.EINVAL):
            _name_what_is_lacking(error)
        raise
    return node


def _refuse_too_large(sizes: compile.Sizes, node: Node, made: Collection[str] | None) -> None:
    """Raises KernelError where there is less memory than these new maps (None: all) would take: the kernel would end
    other processes for it.
    """
    told = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    wanted, free = sizes.memory(node.families, made) >> 20, int(told[1]) >> 10 if told else 1 << 40
    if wanted > free:
        raise KernelError(
            f"maps of these sizes would take {wanted:,} MiB of memory, and {free:,} MiB are free",
            errno=errno.ENOMEM,
            hint="less of --max-flows, --max-backends or --max-services",
        )


def _name_what_is_lacking(error: DatapathError) -> None:
    """Raises Unsupported where the kernel refused what it does not know: what it said itself does not tell."""
    from pydatapath.kernel.features import lacking

    if lacks := lacking():
        names = " and ".join(f"{one.name} (Linux {one.since})" for one in lacks)
        raise Unsupported(
            f"this kernel lacks {names}: {error}", hint="use a later one; `pydatapath doctor` says what else is missing"
        ) from error


def _mend_records(instance: Instance) -> str:
    """Damaged or lost records are their copy's, or none: a sentence about it, "" where nothing was to do.

    Raises DatapathError where there is no copy, and what runs serves what nobody would know any more.
    """
    taken = take_copy(instance.records)
    if taken is not None:
        return taken
    if served := _count_served(instance):
        raise DamagedRecords(
            f"the records {instance.records} are lost, without a copy, and {served} addresses of services are served by"
            " what runs",
            hint="traffic goes on as it is; `pydatapath unload` ends it, then `load`, and `apply` all manifests",
        )
    if not instance.records.exists():
        return ""
    remove_database(instance.records)
    return f"the records {instance.records} were damaged: nothing is applied"


def _find_lost_maps(instance: Instance) -> None:
    """Pins that somebody took away are made anew of the maps that run: new ones would know no open connection. Which
    programs run the records know, where a load was killed.
    """
    if carrying.is_elsewhere(instance):
        return
    with Records(instance.records) as records:
        leftovers.adopt(records, instance)
        there = [records.get(name, _PLACE[name]) for name in ("families", "masqueraded")]
    wanted = [name for name, contract in MAPS.items() if is_there(contract, *there)]
    if lost := [name for name in wanted if not (instance.map_pins / name).exists()]:
        for folder in (instance.map_pins, instance.program_pins):
            bpffs.make_private(folder)
        hooked = restoring.hanging(instance.name, (index for index, _ in socket.if_nameindex()))
        restoring.restore_maps(instance.map_pins, instance.program_pins, lost, hooked)


def _count_served(instance: Instance) -> int:
    """At how many addresses and ports services are called, as far as maps are pinned."""
    with contextlib.suppress(DatapathError), Maps(instance.map_pins) as maps:
        return sum(len(maps[name]) for name in ("services", "services6") if (instance.map_pins / name).exists())
    return 0


def _timeouts(instance: Instance) -> Mapping[str, int]:
    """The times that the programs which run were given."""
    options = {}
    if instance.records.exists():
        with contextlib.suppress(DatapathError), Records(instance.records) as records:
            options = records.get("options", {})
    return timers.read(options.get("timeout", ()))


def reconcile(
    records: Records,
    maps: Maps,
    instance: Instance,
    node: Node,
    seen: Host,
    options: Options,
    programs: Path,
    facts: Mapping[str, object],
    move: carrying.Move | None = None,
) -> None:
    """Makes the maps what records and host say, hangs these programs (a folder of pins) up wherever they belong, in
    place of what hangs there, and records these facts of it. Where any of that fails the programs that hung there do so
    again first of all, and maps and plan are as they were. `move`: these maps take the place of others.
    """
    seeded = seeding.seed(maps, node, seen)
    before = {name: records.get(name, default) for name, default in _PLACE.items()}
    records.put(place_of(node, options.algorithm))
    try:
        applying.refresh_all(records, maps)  # on another node, or at another address, the plan is another
        if move is not None:
            move.switch()
            maps.directory = instance.map_pins
        # What opens while this is done is answered by the next program, which must know it
        catch_up: Callable[[], object] = partial(move.catch_up, maps) if move is not None else lambda: None
        with connecting.connected(records, instance, node, programs, catch_up):
            catch_up()
            records.put(facts)
            records.commit()
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            _plan_as_before(records, maps, before)
        seeding.write_back(maps, seeded)
        raise


def forget_others(records: Records, maps: Maps, node: Node, seen: Host) -> None:
    """What an earlier load told the maps and did to the host, and nobody needs now: behind all that could be undone."""
    seeding.forget_others(maps, node, seen)
    connecting.drop_others(records, node)


def _plan_as_before(records: Records, maps: Maps, place: Mapping[str, object]) -> None:
    """After an exchange that failed: the services are planned for the place that the node had."""
    records.rollback()
    # Where this fails, too, the next command that changes something goes on with it
    records.put({**place, applying.UNFINISHED: True})
    records.commit()
    with contextlib.suppress(DatapathError):
        applying.refresh_all(records, maps)
        records.commit()


def unload(instance: Instance) -> bool:
    """Takes away all that load put there and nothing else. False: there was nothing."""
    require_root("unload")
    if not instance.has_folders:
        return False
    with netns.entered(instance.netns_path), instance.locked(make=True):
        there = instance.exists
        if there:
            connecting.disconnect(instance)
        instance.remove()  # also what an unload that was killed has left
    return there


def clean_up(instance: Instance) -> None:
    """Removes the pins and records of an instance whose namespace is gone, and touches nothing else."""
    require_root("unload")
    instance.check_folders()
    instance.remove()


def require_root(command: str) -> None:
    """Raises KernelError where the process may not do it."""
    if os.geteuid() != 0:
        raise KernelError(f"{command} needs root: it changes the kernel's network", hint="run it with sudo")


def _runs(instance: Instance, node: Node, options: Options, move: carrying.Move, compiled: str) -> bool:
    """Whether other options leave the programs that run as they are, and nothing of them is lost. The same options
    again make them anew.
    """
    if move.sources or move.directory != instance.map_pins:
        return False
    with Records(instance.records) as records:
        if records.get(COMPILED) != compiled or options_of(records) == options:
            return False
    return not any(drift.pins(instance, instance.program_pins, node))


def _program(maps: Path, node: Node, sizes: compile.Sizes, staging: Path) -> compile.Program:
    """What is to be compiled, into a folder of its own, beside the programs that run now."""
    return compile.Program(
        maps,
        staging,
        ipv4=_programs_scope(node.scopes[Family.IPV4]),
        ipv6=_programs_scope(node.scopes[Family.IPV6]) if Family.IPV6 in node.scopes else None,
        hooks=tuple(dict.fromkeys(one.hook for one in node.attachments)),
        sizes=sizes,
        uplink_index=node.uplinks[0].index if node.uplinks else 0,
        uplink_mac=node.uplinks[0].mac if node.uplinks else "00:00:00:00:00:00",
        masquerade=compile.Masquerade(**vars(node.masquerade)) if node.masqueraded else None,
        timeouts=node.timeouts,
        pod_fast_path=node.fast_path.is_used,
    )


def _compile(compiler: compile.Compiler, program: compile.Program, instance: Instance, move: carrying.Move) -> None:
    """Whose flows move are looked for where they are now, too, until all are carried."""
    maps = program.map_directory
    for folder in (maps, program.program_directory):
        bpffs.make_private(folder)
    compile.compile_programs(compiler, program)
    for pin in maps.iterdir():
        pin.chmod(0o600)
    if moved := [family for family in move.families if family in program.scopes]:
        recalling.begin(program, instance.map_pins, moved)


def _programs_scope(scope: Scope) -> compile.Scope:
    """What the programs of one family know of the node."""
    return compile.Scope(
        node_address=scope.masquerade_address,
        pod_networks=scope.pod_networks,
        service_networks=scope.service_networks,
        uplink_address=next(iter(scope.addresses), None),
        cluster_networks=scope.cluster_networks,
        exclusive_networks=scope.exclusive_networks,
        unmasqueraded_networks=scope.unmasqueraded_networks,
        egress=tuple(compile.Egress(**vars(one)) for one in scope.egress),
    )


def _facts(instance: Instance, node: Node, options: Options) -> dict[str, object]:
    """What is remembered of a load that is done."""
    return {
        "netns": instance.netns if "/" not in instance.netns else str(Path(instance.netns).absolute()),
        "version": __version__,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "node_ips": [str(address) for address in node.addresses],
        "pod_networks": [str(network) for network in node.pod_networks],
        "egress_addresses": [*dict.fromkeys(str(one.address) for at in node.scopes.values() for one in at.egress)],
        "service_networks": [str(network) for network in node.service_networks],
        "options": options.as_mapping(),
        "made_for": facts_of(node),
        "pod_fast_path": node.fast_path.told,
    }


def _keep(instance: Instance, programs: Path) -> None:
    """The staged programs are the running ones now, and all others are over; so are the maps of other layouts."""
    for folder in [*instance.pins.glob(f"{instance.program_pins.name}*"), *instance.pins.glob("maps_v*")]:
        if folder not in (programs, instance.map_pins):
            bpffs.remove_tree(folder)
    programs.rename(instance.program_pins)


def _drop_maps(instance: Instance, families: Collection[Family], masqueraded: Collection[Family]) -> None:
    """The maps that no program has any more, because their family is not loaded, or leaves as it is."""
    for contract in MAPS.values():
        if not is_there(contract, families, masqueraded):
            (instance.map_pins / contract.name).unlink(missing_ok=True)


def tidy(instance: Instance, node: Node) -> None:
    """What nobody has any more goes, of loads that were killed, too; the programs are in their place."""
    recalling.end(instance.program_pins, node.families)
    _drop_maps(instance, node.families, node.masqueraded)
    leftovers.remove(instance)


def _recover(
    instance: Instance, programs: Path, move: carrying.Move | None, *, fresh: bool, foreign_pins: bool
) -> None:
    """After a load that failed: as it was before. The staged programs go last, when nothing runs them any more."""
    with contextlib.suppress(DatapathError, OSError):
        if move is not None:
            move.switch_back()
        if fresh:
            connecting.disconnect(instance)
        else:
            with Records(instance.records) as records:
                # What a family that was to come had is nobody's
                before = [records.get(name, _PLACE[name]) for name in ("families", "masqueraded")]
            _drop_maps(instance, *before)
        if move is not None:
            move.take_back()
        bpffs.remove_tree(programs)
    if fresh:
        instance.remove(pins=not foreign_pins)
