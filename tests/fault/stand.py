"""The host that faults are played on: one node with pods that serve, what is loaded and applied there, and what of it
must be the same again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calls import KINDS, ask, ask_many, dial
from host_state import dump
from in_kernel import InKernel
from measuring import measured
from rows import tell, tell_worst
from scene import PORT, PYDATAPATH, VIP_PORT, Cluster, objects, pydatapath

from pydatapath import applying, instance
from pydatapath.documents import to_yaml
from pydatapath.kernel import cache, netns, tables
from pydatapath.kernel.maps import Maps
from pydatapath.lab import Lab, LabSpec
from pydatapath.plan import Called, Live
from pydatapath.record_copy import INCOMPLETE, PLANNED
from pydatapath.record_faults import copy_of
from pydatapath.records import HostChange, Records

__all__ = [
    "MAX_BACKENDS",
    "MAX_FLOWS",
    "OPTIONS",
    "OTHER_OPTIONS",
    "OTHER_SIZES",
    "STEADY",
    "Stand",
    "stand_up",
    "unwritten",
]

MAX_BACKENDS = 60_000 + os.getpid() % 10_000  # room for all by Maglev, in both families
MAX_FLOWS = 50_000 + os.getpid() % 10_000
OPTIONS = ("--max-backends", str(MAX_BACKENDS), "--max-flows", str(MAX_FLOWS), "--cluster-cidr", "10.244.0.0/16")
OTHER_MAX_BACKENDS, OTHER_MAX_FLOWS = MAX_BACKENDS + 12_000, MAX_FLOWS + 32_000
OWN_SIZES = (MAX_BACKENDS, 2 * MAX_FLOWS, OTHER_MAX_BACKENDS, 2 * OTHER_MAX_FLOWS)
# More programs, maps and routes, and all services planned anew
OTHERS = ("--service-cidr", "10.96.0.0/12", "--service-cidr", "10.112.0.0/16", "--algorithm", "maglev")
OTHER_OPTIONS = (*OPTIONS, *OTHERS)
# And maps of other sizes
OTHER_SIZES = (
    *("--max-backends", str(OTHER_MAX_BACKENDS), "--max-flows", str(OTHER_MAX_FLOWS)),
    *("--cluster-cidr", "10.244.0.0/16", *OTHERS),
)
PATIENCE = 150.0  # for one command, on a crowded machine
KERNEL_SECONDS = 15.0  # that the kernel may take to let go of what is over
STEADY, STEADY6 = ("10.96.0.70", VIP_PORT), ("fd00:10:96::70", VIP_PORT)
RESTLESS_FACTS = ("since", "mended", "changes", "programs")


class Stand:
    """A node with three pods, of which two serve; what is done to it goes by the command line."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.node, self.caller = lab.node(1), lab.pod(1, 1)
        self.servers = [lab.pod(1, 2), lab.pod(1, 3)]
        self.cluster = Cluster(lab)
        self.direct = (self.servers[0].address, PORT)
        # What is called in IPv6 wherever the same is in IPv4
        twins = {STEADY: STEADY6, self.direct: (self.servers[0].address6, PORT)}
        self.twins = twins if lab.dual_stack else {}
        self.base, self.changed = folder / "base.yaml", folder / "changed.yaml"
        self.base.write_text(self._manifests(changed=False))
        self.changed.write_text(self._manifests(changed=True))
        self.held: dict[tuple[str, int], socket.socket] = {}
        self.kernel = InKernel(OWN_SIZES)

    @property
    def which(self) -> instance.Instance:
        """The instance, loaded or not."""
        return instance.here(instance.DEFAULT, self.node.netns)

    def _manifests(self, *, changed: bool) -> str:
        """The steady service is the same in both; of the others one changes, one comes, one goes; so do Nodes."""
        first, second = self.servers
        made = objects("steady", STEADY[0], self.servers)
        if self.twins:
            made += objects("steady6", STEADY6[0], self.servers)
        if changed:
            made += objects("web", "10.96.0.71", [second], type="NodePort", node_port=30071)
        else:
            made += objects("web", "10.96.0.71", [first])
        made += objects("new" if changed else "old", "10.96.0.72", self.servers, sessionAffinity="ClientIP")
        texts = [one.manifest for one in made]
        texts += [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name},
                "spec": {"podCIDRs": [network]},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            }
            for name, network, address in (
                ("other", "10.244.7.0/24", "192.168.50.7"),
                ("third", "10.244.9.0/24" if changed else "10.244.8.0/24", "192.168.50.8"),
            )
        ]
        return to_yaml(texts)

    def command(self, *arguments: str, fault: str = "") -> list[str]:
        """A command line for this node; `fault` is Python that breaks something of it first."""
        start = [sys.executable, "-c", f"{fault}\nfrom pydatapath.cli import main\nmain()"] if fault else [PYDATAPATH]
        return [*map(str, start), "--netns", self.node.netns, *arguments]

    def do(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs pydatapath for this node, which must do it, without a word on stderr but warnings."""
        command = self.command(*arguments)
        done = measured(command, timeout=PATIENCE)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        assert not re.sub(r"^Warning: .*\n", "", done.stderr, flags=re.MULTILINE), f"{arguments}: {done.stderr}"
        return done

    def load(self, options: Sequence[str] = OPTIONS) -> None:
        """Loads, and applies the base where nothing is applied."""
        self.do("load", *options)

    def mend(self) -> None:
        """Loads again after a fault; how long that took is a figure of the test."""
        begun = time.monotonic()
        self.load()
        tell_worst(recovery_s=round(time.monotonic() - begun, 2))

    def apply(self, manifests: Path | None = None) -> None:
        """Makes exactly these objects."""
        self.do("apply", "--prune", "-f", str(manifests or self.base))

    def clear(self) -> None:
        """Unloads, and lets go of connections."""
        for one in self.held.values():
            one.close()
        self.held.clear()
        self.do("unload")
        left = self.leaks()
        tell(leaked=sum(left.values()))
        assert left == {}, f"left in the kernel: {left}: {self.kernel.names}"

    # What must go on

    def hold(self, target: tuple[str, int]) -> None:
        """Opens a connection that must live from now on, in each family."""
        for one in self._ways(target):
            self.held[one] = dial(self.caller, one)

    def _ways(self, target: tuple[str, int]) -> list[tuple[str, int]]:
        """A target and its twin."""
        return [target, *filter(None, [self.twins.get(target)])]

    def traffic(self, target: tuple[str, int], *, count: int = 3) -> list[str]:
        """What does not work of new calls by a pod and the node, in each family, and of the open connections; [] for
        nothing.
        """
        tell(load=f"{len(self.held)} TCP connections that stay open, new calls by TCP and UDP from a pod and the node")
        failures = []
        for host, place in itertools.product((self.caller, self.node), self._ways(target)):
            for kind, number in KINDS.items():
                found = ask_many(host, number, place, count).failures
                failures += [f"new {kind} from {host.name} to {place}: {one}" for one in found[:1]]
        for place, one in self.held.items():
            try:
                ask(one)
            except (OSError, ValueError) as error:
                failures.append(f"open connection to {place}: {error!r}")
        return failures

    # What must be the same again

    def state(self) -> dict[str, Any]:
        """The host, the records and what the maps say, without what differs from load to load."""
        found: dict[str, Any] = {
            # Programs have a new number at each load; their tag is a hash of their instructions
            key: re.sub(r'"id": \d+', '"id": 0', text)
            for key, text in dump(self.lab, [self.node]).items()
        }
        which = self.which
        if which.records.exists():
            with Records(which.records) as records, Maps(which.map_pins) as maps, netns.entered(which.netns_path):
                found["maps"] = _served(tables.read_live(maps, None)) | {"members": tables.read_members(maps)}
                found["records"] = _recorded(records)
                found["unfinished"] = bool(records.get(applying.UNFINISHED))
            found["modes"] = {str(path): oct(path.stat().st_mode) for path in which.pins.rglob("*")}
            found["unwritten"] = unwritten(which)
            found["copied"] = _copied(copy_of(which.records)) == _copied(which.records)
        found["kept programs"] = sorted(one.suffix for one in cache.DIRECTORY.iterdir() if one.suffix != ".json")
        found["kernel"] = self.kernel()
        return found

    def settled_state(self) -> dict[str, Any]:
        """`state`, once the kernel has taken apart what is over: when nothing has changed in it for a second."""
        found, since = self.kernel(), time.monotonic()
        deadline = since + KERNEL_SECONDS
        while time.monotonic() - since < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
            if (now := self.kernel()) != found:
                found, since = now, time.monotonic()
        return self.state()

    def leaks(self) -> dict[str, int]:
        """What is left in the kernel, once it had its time to take apart what is over."""
        deadline = time.monotonic() + KERNEL_SECONDS
        while any((found := self.kernel()).values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return {kind: count for kind, count in found.items() if count}

    def differences(self, wanted: dict[str, Any], seconds: float = KERNEL_SECONDS) -> list[str]:
        """What is not as it was; the kernel has its time to take apart what is over."""
        return self.differences_from_all([wanted], seconds)

    def differences_from_all(self, wanted: Sequence[dict[str, Any]], seconds: float = KERNEL_SECONDS) -> list[str]:
        """As `differences`, from the one of these states that is nearest."""
        deadline = time.monotonic() + seconds
        while (found := self.state()) not in wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        return min((_differences(one, found) for one in wanted), key=len)


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [
        _difference(key, wanted.get(key), found.get(key))
        for key in {*wanted, *found}
        if wanted.get(key) != found.get(key)
    ]


def _difference(key: str, wanted: object, found: object) -> str:
    """The lines of a part of the state that are not in both."""
    before, after = (
        json.dumps(one, indent=1, default=str).replace("\\n", "\n").splitlines() for one in (wanted, found)
    )
    lines = [f"- {one}" for one in before if one not in after] + [f"+ {one}" for one in after if one not in before]
    return f"{key}: " + "; ".join(lines[:12])


def _served(live: Live) -> dict[str, Any]:
    """Where services are called and what leads from there, by addresses instead of numbers."""

    def backends(called: Called) -> list[Any]:
        runs = (live.slots.get(run.first_slot, ()) for run in (called.inside, called.outside))
        return [[str(live.backends[one].address) if one in live.backends else "?" for one in run] for run in runs]

    return {
        "services": {str(at): [backends(one), one.affinity, int(one.flags)] for at, one in live.services.items()},
        "targets": {str(at): count for at, count in live.targets.items()},
        "vips": {at: int(kind) for at, kind in live.guards.vips.items()},
        "ranges": sorted(one.network for one in live.guards.ranges),
    }


def _recorded(records: Records) -> dict[str, Any]:
    facts = dict(records._db.execute("SELECT name, value FROM facts").fetchall())
    return {
        "facts": {name: value for name, value in facts.items() if name not in RESTLESS_FACTS},
        "objects": [(one.kind, one.namespace, one.name, one.manifest) for one in records.objects()],
        "changes": {kind.value: records.host_changes(kind) for kind in HostChange},
        "ports": sorted(str(one) + one.protocol for one in records.ports().values()),
        "members": sorted(records.members().items()),
        "frontends": sorted(records._db.execute("SELECT address, port, protocol, kind, held FROM frontends")),
        "claims": sorted(records._db.execute("SELECT * FROM claims")),
    }


def _copied(path: Path) -> list[str]:
    """All that a database and its copy hold, as SQL; nothing where it is not there."""
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as records:
        records.text_factory = lambda raw: raw.decode(errors="replace")  # a test may have spoiled what SQLite ignores
        lacking = tuple(f'INSERT INTO "{table}"' for table in PLANNED)
        rows = sorted(one for one in records.iterdump() if not one.startswith(lacking))
        return [one for one in rows if f"VALUES('{INCOMPLETE}'," not in one]


def unwritten(which: instance.Instance) -> bool:
    """Whether the maps are not what the records say."""
    with Records(which.records) as records, Maps(which.map_pins) as maps:
        return not applying.pending(records, maps)[0].empty


@contextlib.contextmanager
def stand_up(name: str, folder: Path, *, dual_stack: bool = False) -> Iterator[Stand]:
    """A stand for the length of the block, with kept programs of its own; nothing of it stays."""
    cache.DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tests", str(cache.DIRECTORY)], check=True)
    try:
        with Lab.up(LabSpec(name, nodes=1, pods=3, dual_stack=dual_stack)) as lab:
            made = Stand(lab, folder)
            try:
                made.cluster.serve(*made.servers)
                yield made
            finally:
                for one in made.held.values():
                    one.close()
                made.cluster.close()
                pydatapath("--netns", made.node.netns, "unload")
    finally:
        subprocess.run(["umount", "-l", str(cache.DIRECTORY)], check=True)
