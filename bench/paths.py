"""A case: one way for a packet from the client pod to the server, in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Begun, Ends, Measure
from bench.measures import PORTS
from bench.processes import BenchError, run, server
from bench.servers import server_commands
from bench.topology import BRIDGE, UPLINK, Node, Where, delete, node, stale_nodes

__all__ = [
    "CLUSTER_IP",
    "ROOT",
    "Case",
    "ReadyCase",
    "find_pydatapath",
    "lacks_pydatapath",
    "loaded",
    "nothing",
    "ready",
    "sweep_stale",
    "wait_for_servers",
    "why_not",
]

CLUSTER_IP = "10.96.0.10"  # the virtual IP of the one service
ALL = {port.server for port in PORTS}
SERVERS_UP_S = 60.0
LOAD_S = 620.0  # it compiles: 0.6, in an emulator minutes (compile.COMPILE_SECONDS)
ROOT = Path(__file__).resolve().parent.parent


def _lacks_nothing() -> str:
    return ""


@dataclass(frozen=True)
class Case:
    """One way to the server. `prepare` puts into the node (first argument) what is measured, and takes it away.

    `tracked`: netfilter tracks connections there. `bridge_netfilter`: also of what crosses the bridge.
    `beside`: the cases that it is compared with, the most telling first.
    `lack`: what this machine lacks for it, a sentence; "" where it can run.
    """

    name: str
    text: str
    prepare: Callable[[Node, Path], AbstractContextManager[None]]
    to_vip: bool = False
    where: Where = Where.POD
    tracked: bool = False
    bridge_netfilter: bool = False
    beside: Sequence[str] = ()
    lack: Callable[[], str] = _lacks_nothing


@dataclass(frozen=True)
class ReadyCase:
    """A case whose node stands, with its servers listening."""

    case: Case
    node: Node
    cpu: int | None

    def begin(self, measure: Measure, seconds: int) -> Begun:
        """Start a measurement from the client pod, over this case's way."""
        port, ends = measure.port, Ends(self.node.client, self.node.server, self.cpu)
        if self.case.to_vip:
            return measure.begin(ends, CLUSTER_IP, port.port, seconds)
        return measure.begin(ends, self.node.backends[0], port.target, seconds)

    def measure(self, measure: Measure, seconds: int) -> dict[str, float]:
        """Measure once; BenchError when there is no figure."""
        return self.begin(measure, seconds).end()


@contextlib.contextmanager
def nothing(_node: Node, _folder: Path) -> Iterator[None]:
    """A plain bridge or router needs nothing."""
    yield


def why_not(argv: Sequence[str], stdin: str | None = None) -> str:
    """Try a command in a network namespace that ends with it: "" where it works, or what it says."""
    try:
        run(["unshare", "--net", *argv], stdin=stdin)
    except BenchError as error:
        return str(error)
    return ""


def _command(this: Node, number: str) -> list[str]:
    """The pydatapath command for one node's own instance."""
    instance = this.name if number == "node1" else f"{this.name}-2"
    return [find_pydatapath(), "--instance", instance, "--netns", this.nodes[number]]


@contextlib.contextmanager
def loaded(this: Node, *options: str) -> Iterator[list[list[str]]]:
    """pydatapath loaded into all nodes, with further options; yields the command for each instance."""
    with ExitStack() as stack:
        commands = []
        for number in this.nodes:
            command = _command(this, number)
            stack.enter_context(_loaded_into_one(command, number, options))
            commands.append(command)
        yield commands


@contextlib.contextmanager
def _loaded_into_one(command: list[str], number: str, options: Sequence[str]) -> Iterator[None]:
    try:
        argv = [*command, "load", "--bridge", BRIDGE, "--uplink", UPLINK, "--node-name", number, *options]
        run(argv, timeout=LOAD_S)
        yield
    except BaseException:
        with contextlib.suppress(BenchError):  # what went wrong first is what the user must read
            run([*command, "unload"])
        raise
    run([*command, "unload"])


def find_pydatapath() -> str:
    """The `pydatapath` command: of this interpreter's environment, of the repository's, or of PATH."""
    for folder in (Path(sys.executable).parent, ROOT / ".venv" / "bin"):
        if os.access(folder / "pydatapath", os.X_OK):
            return str(folder / "pydatapath")
    found = shutil.which("pydatapath")
    if found is None:
        raise BenchError("the pydatapath command is not installed: run `make setup` in the project's root")
    return found


def lacks_pydatapath() -> str:
    """The command, where it is not installed."""
    try:
        find_pydatapath()
    except BenchError as error:
        return str(error)
    return ""


def wait_for_servers(netns: str, servers: Container[str]) -> None:
    """Return when every port of these servers is bound in `netns`. Raises BenchError after SERVERS_UP_S."""
    wanted = {(port.protocol, port.target) for port in PORTS if port.server in servers}
    deadline = time.monotonic() + SERVERS_UP_S
    while True:
        rows = [line.split() for line in run(["ss", "-Hltun"], netns=netns).splitlines()]
        missing = wanted - {(row[0], int(row[4].rsplit(":", 1)[1])) for row in rows}
        if not missing:
            return
        if time.monotonic() > deadline:
            ports = ", ".join(f"{port}/{protocol}" for protocol, port in sorted(missing))
            raise BenchError(f"nothing listens on {ports} in {netns} after {SERVERS_UP_S:.0f} s")
        time.sleep(0.05)


def _check_way(case: Case, this: Node) -> None:
    """The way leads there and back: where the server has no route to the pods, that is the NAT's proof."""
    try:
        run(["ping", "-c1", "-W2", "-q", this.backends[0]], netns=this.client)
    except BenchError:
        raise BenchError(f"{case.name}: the client pings {this.backends[0]} and gets no answer") from None


def sweep_stale() -> list[str]:
    """Clear up after earlier runs that were killed outright, and name what was found: nodes, and pydatapath in them."""
    stale = stale_nodes()
    for this in stale:
        for number in this.nodes:
            with contextlib.suppress(BenchError):  # not every node has one, and it may have been cut off half-way
                run([*_command(this, number), "unload"])
        delete(this)
    return [this.name for this in stale]


@contextlib.contextmanager
def ready(
    case: Case, run_id: str, workdir: Path, servers: Container[str] = ALL, *, backends: int, cpu: int | None
) -> Iterator[ReadyCase]:
    """Set a case up for the length of the `with`: node, pods, these of the servers, and what is measured."""
    folder = workdir / case.name
    folder.mkdir()
    with ExitStack() as stack:
        this = stack.enter_context(
            node(f"{run_id}-{case.name}", where=case.where, backends=backends, bridge_netfilter=case.bridge_netfilter)
        )
        for name, argv in server_commands(folder, cpu).items():
            if name in servers:
                stack.enter_context(server(argv, netns=this.server, log=folder / f"{name}.log"))
        wait_for_servers(this.server, servers)
        stack.enter_context(case.prepare(this, folder))
        _check_way(case, this)
        yield ReadyCase(case, this, cpu)
