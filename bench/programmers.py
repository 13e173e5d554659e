"""How each implementation is told its services: all for the first time, one that has changed, all changed.

A step is prepared first (manifests, rules), which is nobody's time; what comes back is the command itself.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from bench.kube_proxy import ServicePort, restore_input
from bench.kube_proxy_ipvs import ipvs_input
from bench.kube_proxy_nft import TABLE, nft_input, one_changed
from bench.many import SERVICE_NETWORK, Called, Many, resync
from bench.paths import find_pydatapath, loaded
from bench.processes import run
from bench.topology import NODE_IP, POD_NETWORK, Node
from pydatapath import Datapath, schema

__all__ = ["LEGACY_FORM", "NFT_FORM", "PROGRAMMERS", "STEPS", "Change", "Prepare", "Programmer", "Step"]

Step: TypeAlias = Literal["first", "one", "all"]
Command: TypeAlias = Callable[[], object]
NFT_FORM, LEGACY_FORM = "iptables-nft-restore", "iptables-legacy-restore"  # Debian's iptables-restore is the former
STEPS: tuple[Step, ...] = ("first", "one", "all")
COMMAND_S = 90.0
MAX_BACKENDS = 262_144
AS_INSTALLED = ("env", "--unset=PYTHONDONTWRITEBYTECODE")  # with its byte code, whatever a developer has set
EMPTY = "".join(f"*{table}\nCOMMIT\n" for table in ("mangle", "filter", "nat"))


@dataclass(frozen=True)
class Change:
    """What becomes of the services: `to` is all of them as they must be, `one` the only one that has changed."""

    step: Step
    to: Many
    one: Called


Prepare: TypeAlias = Callable[[Change], Command]


@dataclass(frozen=True)
class Programmer:
    """An implementation: `begin` puts it into a node without any service, and takes it away again."""

    name: str
    text: str
    begin: Callable[[Node, Path], AbstractContextManager[Prepare]]
    bridge_netfilter: bool = True


def _all(objects: Sequence[object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


@contextlib.contextmanager
def _by_command(this: Node, folder: Path) -> Iterator[Prepare]:
    """A manifest of what has changed; the whole list where that is all."""
    with loaded(this, "--max-backends", str(MAX_BACKENDS)):
        command = [*AS_INSTALLED, find_pydatapath(), "--instance", this.name, "--netns", this.netns, "apply", "-f"]

        def prepare(change: Change) -> Command:
            path = folder / f"{change.step}.json"
            path.write_text(_all([change.one.slice()] if change.step == "one" else change.to.manifests()))
            return functools.partial(run, [*command, str(path)], timeout=COMMAND_S)

        yield prepare


@contextlib.contextmanager
def _by_api(this: Node, _folder: Path) -> Iterator[Prepare]:
    """As a program that follows a cluster would: the objects are in memory, and the datapath is open."""
    with loaded(this, "--max-backends", str(MAX_BACKENDS)), Datapath.open(this.name, this.netns) as datapath:

        def prepare(change: Change) -> Command:
            objects = [change.one.slice()] if change.step == "one" else change.to.manifests()
            return functools.partial(datapath.apply, [schema.parse(copy.deepcopy(one), "bench") for one in objects])

        yield prepare


@contextlib.contextmanager
def _by_restore(restore: str, whole: bool, this: Node, _folder: Path) -> Iterator[Prepare]:
    """The whole of the nat table; at one change what kube-proxy's partial sync writes, or the whole again."""

    def prepare(change: Change) -> Command:
        rules = restore_input(change.to.service_ports(), POD_NETWORK)
        if change.step != "first":
            names = [port.name for port in change.one.service_ports()]
            rules = resync(rules, None if whole or change.step == "all" else names)
        return functools.partial(run, [restore, "--noflush"], netns=this.netns, stdin=rules, timeout=COMMAND_S)

    try:
        yield prepare
    finally:
        run([restore], netns=this.netns, stdin=EMPTY, timeout=COMMAND_S)


def _nft_changes(change: Change) -> str:
    """The chains that have changed, each anew, in one transaction."""
    ports: Sequence[ServicePort] = (change.one if change.step == "one" else change.to).service_ports()
    return "".join(map(one_changed, ports))


@contextlib.contextmanager
def _by_nft(whole: bool, this: Node, _folder: Path) -> Iterator[Prepare]:
    """The table, and then its changes; or the whole table every time, in place of the old one."""

    def prepare(change: Change) -> Command:
        if whole or change.step == "first":
            table = nft_input(change.to.service_ports(), POD_NETWORK, SERVICE_NETWORK, [NODE_IP])
            rules = f"add {TABLE}\ndelete {TABLE}\n{table}"
        else:
            rules = _nft_changes(change)
        return functools.partial(run, ["nft", "-f", "-"], netns=this.netns, stdin=rules, timeout=COMMAND_S)

    try:
        yield prepare
    finally:
        run(["nft", "flush", "ruleset"], netns=this.netns, timeout=COMMAND_S)


def ipvs_changes(before: Sequence[ServicePort], after: Sequence[ServicePort]) -> str:
    """What `ipvsadm --restore` reads where backends have changed: the new ones first, so that there is always one."""
    lines = []
    for old, new in zip(before, after, strict=True):
        virtual = f"-{new.protocol[0]} {new.cluster_ip}:{new.port}"
        come, gone = sorted({*new.backends} - {*old.backends}), sorted({*old.backends} - {*new.backends})
        lines += [f"-a {virtual} -r {address}:{port} -m -w 1" for address, port in come]
        lines += [f"-d {virtual} -r {address}:{port}" for address, port in gone]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _by_ipvs(this: Node, _folder: Path) -> Iterator[Prepare]:
    """All virtual servers, then the backends that come and go. Virtual IPs are the node's own, as kube-proxy has it."""
    run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"], netns=this.netns)
    now: list[ServicePort] = []

    def prepare(change: Change) -> Command:
        ports = change.to.service_ports()
        rules = ipvs_changes(now, ports) if now else ipvs_input(ports)
        addresses = dict.fromkeys(f"address add {port.cluster_ip}/32 dev kube-ipvs0\n" for port in ports)
        lines = "" if now else "".join(addresses)
        now[:] = ports

        def command() -> None:
            if lines:
                run(["ip", "-batch", "-"], netns=this.netns, stdin=lines, timeout=COMMAND_S)
            run(["ipvsadm", "--restore"], netns=this.netns, stdin=rules, timeout=COMMAND_S)

        return command

    try:
        yield prepare
    finally:
        run(["ipvsadm", "--clear"], netns=this.netns, timeout=COMMAND_S)
        run(["ip", "link", "delete", "kube-ipvs0"], netns=this.netns)


PROGRAMMERS: Mapping[str, Programmer] = {
    one.name: one
    for one in (
        Programmer("pydatapath", "`pydatapath apply -f` of what has changed", _by_command, bridge_netfilter=False),
        Programmer("pydatapath-api", "the same by Datapath.apply, of objects", _by_api, bridge_netfilter=False),
        Programmer(
            "iptables",
            f"{NFT_FORM} of the nat table, as kube-proxy's syncs write it: one change is a partial sync",
            functools.partial(_by_restore, NFT_FORM, False),
        ),
        Programmer(
            "iptables-legacy",
            f"the same by {LEGACY_FORM}",
            functools.partial(_by_restore, LEGACY_FORM, False),
        ),
        Programmer(
            "iptables-legacy-whole",
            f"{LEGACY_FORM} of the whole nat table at every change, as in a full sync",
            functools.partial(_by_restore, LEGACY_FORM, True),
        ),
        Programmer(
            "nftables",
            "`nft -f` of the table, then of the changed services' chains, as in kube-proxy's nftables mode",
            functools.partial(_by_nft, False),
        ),
        Programmer("nftables-whole", "`nft -f` of the whole table at every change", functools.partial(_by_nft, True)),
        Programmer("ipvs", "`ipvsadm --restore` of all, then of what has changed", _by_ipvs),
    )
}
