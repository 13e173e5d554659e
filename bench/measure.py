"""What a measure is: a tool that is started, and figures that are waited for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bench.processes import Command, run

__all__ = ["Begun", "CommandLine", "CpuPer", "Ends", "Flood", "Measure", "Port", "on_cpu"]

GRACE_S = 15.0  # what a tool may take over the measured time: connecting, warm-up (sockperf: 0.4 s), its report
CommandLine: TypeAlias = Callable[[str, int, int], list[str]]


@dataclass(frozen=True)
class Port:
    """A port of the benchmark's one service, and who serves it. Only http changes the port number on its way."""

    name: str
    protocol: str
    port: int
    target: int
    server: str = ""


@dataclass(frozen=True)
class Ends:
    """The namespaces of client and server, and the core that they share in a one-core measure."""

    client: str
    server: str
    cpu: int | None


@dataclass(frozen=True)
class CpuPer:
    """CPU time for each piece of work: as `key`, microseconds divided by what was done at this `rate`."""

    key: str
    rate: str


@dataclass(frozen=True)
class Begun:
    """A measurement that goes on; whoever began it calls `end` or `abandon`."""

    command: Command
    read: Callable[[str], dict[str, float]]
    patience_s: float

    def end(self) -> dict[str, float]:
        """Wait for the figures; BenchError when there are none."""
        return self.read(self.command.finish(self.patience_s))

    def abandon(self) -> None:
        """Nobody wants the figures any more."""
        self.command.kill()


@dataclass(frozen=True)
class Measure:
    """A tool: its command line for (address, port, seconds), and the parser of its stdout.

    `asleep_s`: how long the tool sleeps between its start and its work.

    `one_core`: both ends share a core. A ping-pong between two cores takes 8 or 40 us as the scheduler places the
    ends and the idle core has to be woken: that hides what the path costs, so the choice is taken from it.
    """

    name: str
    port: Port
    command: CommandLine
    parse: Callable[[str], dict[str, float]]
    one_core: bool = False
    cpu_per: CpuPer | None = None
    asleep_s: float = 0.0

    @property
    def tools(self) -> set[str]:
        """What must be installed at both ends."""
        return {self.port.server, self.command("", 0, 0)[0]}

    def cpu(self, values: Mapping[str, float], cpu_s: float, seconds: int) -> dict[str, float]:
        """The CPU time that each piece of work took, of `cpu_s` seconds that the machine was busy for us meanwhile."""
        if self.cpu_per is None or not values.get(self.cpu_per.rate):
            return {}
        return {self.cpu_per.key: cpu_s * 1e6 / (values[self.cpu_per.rate] * seconds)}

    def begin(self, ends: Ends, address: str, port: int, seconds: int) -> Begun:
        """Start measuring from inside the client's namespace."""
        argv = self.command(address, port, seconds)
        if self.one_core:
            argv = on_cpu(ends.cpu, argv)
        return Begun(Command(argv, netns=ends.client), self.parse, seconds + GRACE_S)


@dataclass(frozen=True)
class Flood(Measure):
    """Datagrams to a sink, as fast as one sender can: the tool says how many it sends, the kernel how many come."""

    key: str = "udp_per_s"

    def begin(self, ends: Ends, address: str, port: int, seconds: int) -> Begun:
        """As a Measure."""
        before = _datagrams(ends.server)

        def arrivals(text: str) -> dict[str, float]:
            sent, arrived = self.parse(text), _datagrams(ends.server) - before
            return {self.key: arrived / sent["seconds"], "udp_lost": max(0, sent["datagrams"] - arrived)}

        return dataclasses.replace(super().begin(ends, address, port, seconds), read=arrivals)


def _datagrams(netns: str) -> int:
    """How many datagrams UDP has taken in there, those for full sockets included."""
    names, figures = re.findall(r"Udp: (.+)", run(["cat", "/proc/net/snmp"], netns=netns))
    counted = dict(zip(names.split(), map(int, figures.split()), strict=True))
    return int(counted["InDatagrams"] + counted["RcvbufErrors"])


def on_cpu(cpu: int | None, argv: list[str]) -> list[str]:
    """`argv` held to one core; None: wherever the scheduler likes."""
    return argv if cpu is None else ["taskset", "--cpu-list", str(cpu), *argv]
