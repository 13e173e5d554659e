"""Starts the traffic of streams.py and iperf3 in a lab, ends it, and adds up what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from scene import is_readable

from pydatapath.lab import Host, Pod

__all__ = ["Account", "Scripts", "Traffic", "counted", "dropped", "say", "stream_objects"]

STREAMS = Path(__file__).with_name("streams.py")
READY_SECONDS, END_SECONDS = 20.0, 40.0
SEQUENCE_PORT, IPERF_PORT = 9000, 5201
THROUGH_VIP, THROUGH_SNAT, THROUGH_VIP6, THROUGH_SNAT6 = STREAMED = 1, 2, 3, 4  # the streams' ids
TALKERS = 100  # of each family
IPERF_RATE = "20M"  # bits a second: the machine has other work


def say(capsys: Any, text: str) -> None:
    """Figures, shown while the tests run."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def counted(host: Host, what: str) -> int:
    """A counter of a host's own stack by its name in /proc/net/snmp, such as "Udp RcvbufErrors", or in snmp6, such as
    "Udp6 RcvbufErrors".
    """
    protocol, name = what.split()
    with host.entered():
        lines = Path(f"/proc/thread-self/net/{'snmp6' if protocol.endswith('6') else 'snmp'}").read_text().splitlines()
    if protocol.endswith("6"):
        return int(dict(line.split() for line in lines)[protocol + name])
    names, values = (line.split()[1:] for line in lines if line.startswith(f"{protocol}:"))
    return int(values[names.index(name)])


def overflows(host: Host) -> int:
    """Datagrams for which a host's sockets had no room."""
    return counted(host, "Udp RcvbufErrors") + counted(host, "Udp6 RcvbufErrors")


def dropped(hosts: Iterable[Host]) -> Counter[str]:
    """What the kernel itself has thrown away: full queues of the CPUs, and at the devices of hosts and pods' nodes."""
    queues = [int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
    found = Counter({"queues of the CPUs": sum(queues)})
    listed = list(hosts)
    for host in {*listed, *(one.node for one in listed if isinstance(one, Pod))}:
        with host.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        for name, _, figures in (line.partition(":") for line in lines):
            received, sent = (int(figures.split()[place]) for place in (3, 11))
            found[f"{host.netns} {name.strip()}"] = received + sent
    return found


@dataclass
class Account:
    """What a run came to. `lost`: datagrams that did not arrive at the right place exactly once and unchanged."""

    sent: int = 0
    lost: int = 0
    strays: int = 0  # that came from elsewhere than their sender's own end, or to another receiver
    twice: int = 0
    lines: int = 0
    calls: int = 0
    broken: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    silence: float = 0.0  # ms, the longest between two datagrams of a stream
    way: float = 0.0  # ms, the longest that one was under way
    wait: float = 0.0  # ms, the longest for an answer
    resent: int = 0
    overflows: int = 0
    megabytes: float = 0.0
    names: list[set[str]] = field(default_factory=list)  # who has answered new calls, of each family
    refused: int = 0
    sent_by: dict[int, int] = field(default_factory=dict)
    own_ends: dict[int, str] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)  # by stream, the first numbers that did not come
    dropped: Counter[str] = field(default_factory=Counter)  # by the kernel itself, of this and all else that it had

    def __str__(self) -> str:
        return (
            f"{self.lost} of {self.sent:,} datagrams lost, {self.strays} misdelivered, {self.twice} twice;"
            f" {len(self.broken)} of {2 * TALKERS} connections broken ({self.lines:,} lines),"
            f" {len(self.failed)} of {self.calls:,} new calls failed; longest silence {self.silence:.1f} ms,"
            f" way {self.way:.1f} ms, answer {self.wait:.0f} ms; {self.resent} segments sent again,"
            f" {self.overflows} overflows, {self.megabytes:.0f} MB by iperf3"
            + (f"; missing {self.missing}, dropped {dict(self.dropped)}" if self.lost else "")
        )


def stream_objects(name: str, vip: str, pods: Iterable[Pod]) -> list[dict[str, Any]]:
    """A service for all of it, as manifests, of the family of `vip`: calls at 80, iperf3, numbered datagrams."""
    six = ":" in vip
    ports = [
        {"name": "calls", "protocol": "TCP", "port": 80, "targetPort": 8080},
        {"name": "asks", "protocol": "UDP", "port": 80, "targetPort": 8080},
        {"name": "bulk", "protocol": "TCP", "port": IPERF_PORT},
        {"name": "numbers", "protocol": "UDP", "port": SEQUENCE_PORT},
    ]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": vip, "ports": ports},
    }
    targets = [
        {"name": one["name"], "protocol": one["protocol"], "port": one.get("targetPort", one["port"])} for one in ports
    ]
    backends = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if six else "IPv4",
        "ports": targets,
        "endpoints": [
            {"addresses": [pod.address6 if six else pod.address], "nodeName": pod.node.netns} for pod in pods
        ],
    }
    return [service, backends]


class Scripts:
    """Processes in the namespaces of a lab, by names; what is left of them ends with the block."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def talk(self, host: Host, address: str, count: int, port: int = 80) -> None:
        """Lets so many connections talk from a host, and new calls beside them."""
        self._start(f"talk {host.netns}", host, "talk", address, port, count)
        self._wait(f"talk {host.netns}", "ready")

    def end_talk(self, host: Host) -> dict[str, Any]:
        """What came of it (see streams.py)."""
        return self._stop(f"talk {host.netns}")

    def _start(self, name: str, host: Host, *words: object) -> None:
        command = [sys.executable, "-I", "-S", str(STREAMS), *map(str, words)]
        self._running[name] = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if words[0] != "talk":
            self._wait(name, "ready")

    def _wait(self, name: str, said: str) -> None:
        output = self._running[name].stdout
        assert output is not None
        heard = b""
        while said.encode() not in heard:
            assert is_readable(output, READY_SECONDS), f"{name} does not get ready"
            part = os.read(output.fileno(), 4096)
            assert part, f"{name} has ended"
            heard += part

    def _stop(self, name: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        told = self._running.pop(name).communicate(timeout=seconds)[0]
        return json.loads(told)  # type: ignore[no-any-return]

    def _kill(self) -> None:
        for one in self._running.values():
            one.kill()
        for one in self._running.values():
            one.communicate(timeout=END_SECONDS)
        self._running.clear()


class Traffic(Scripts):
    """Everything that talks at once, in both families: from `client` to `targets` (one of each), whose backend is
    `staying`, and to `outside`.

    `receivers`: who else could get what is the backend's. `rate`: datagrams a second in each of the four streams;
    `at_least`: so many in each, however long that takes. A context manager; `end` gives the account.
    """

    def __init__(
        self,
        client: Host,
        targets: tuple[str, str],
        staying: Pod,
        outside: Host,
        receivers: Iterable[Host],
        rate: int,
        at_least: int = 0,
    ) -> None:
        self.client, self.targets, self.staying, self.outside = client, targets, staying, outside
        self.rate, self.at_least = rate, at_least
        self.hosts = [staying, *receivers, outside]
        super().__init__()
        self._before: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            for host in self.hosts:
                self._start(f"receive {host.netns}", host, "receive", host.netns, SEQUENCE_PORT)
            iperf = self.staying.popen(
                ["iperf3", "-s", "-1", "-p", str(IPERF_PORT), "--forceflush"], stdout=subprocess.PIPE
            )
            self._running["iperf3 -s"] = iperf
            self._wait("iperf3 -s", "Server listening")
            ways = (self.targets[0], self.outside.address, self.targets[1], self.outside.address6)
            for stream, address in zip(STREAMED, ways, strict=True):
                words = ("send", stream, address, SEQUENCE_PORT, self.rate, self.at_least)
                self._start(f"send {stream}", self.client, *words)
            self._dropped = dropped((self.client, *self.hosts))
            self._before = {host.netns: overflows(host) for host in (self.client, *self.hosts)}
            self._resent = counted(self.client, "Tcp RetransSegs")
            for target in self.targets:
                self._start(f"talk {target}", self.client, "talk", target, self._talk_port, TALKERS)
            command = ["iperf3", "-c", self.targets[0], "-p", str(IPERF_PORT), "-b", IPERF_RATE, "-t", "3600", "-J"]
            self._running["iperf3 -c"] = self.client.popen(command, stdout=subprocess.PIPE)
            for target in self.targets:
                self._wait(f"talk {target}", "ready")
        except BaseException:
            self._kill()
            raise
        return self

    @property
    def _talk_port(self) -> int:
        return 8080 if self.targets[0] == self.staying.address else 80

    def end(self) -> Account:
        """Ends all, the senders first."""
        made = Account()
        patience = END_SECONDS + self.at_least / self.rate
        sent = [self._stop(f"send {stream}", patience) for stream in STREAMED]
        talks = [self._stop(f"talk {target}") for target in self.targets]
        self._end_iperf(made)
        found = {host.netns: self._stop(f"receive {host.netns}") for host in self.hosts}
        made.wait = max(one["longest"] for one in talks)
        for talk in talks:
            made.lines, made.calls = made.lines + talk["lines"], made.calls + talk["calls"]
            made.broken += talk["broken"]
            made.failed += talk["failed"]
            made.names.append(set(talk["names"]))
        made.resent = counted(self.client, "Tcp RetransSegs") - self._resent
        made.overflows = sum(overflows(host) - self._before[host.netns] for host in (self.client, *self.hosts))
        made.dropped = dropped((self.client, *self.hosts)) - self._dropped
        for stream, place, told in zip(STREAMED, 2 * (self.staying, self.outside), sent, strict=True):
            made.sent += told["sent"]
            made.sent_by[stream], made.own_ends[stream] = told["sent"], told["own"]
            made.refused += sum(told["refused"].values())
            self._add(made, found, str(stream), place.netns, told)
        return made

    @staticmethod
    def _add(made: Account, found: dict[str, Any], stream: str, right: str, told: dict[str, Any]) -> None:
        for where, receiver in found.items():
            if (came := receiver["streams"].get(stream)) and where != right:
                made.strays += came["came"]
        came = found[right]["streams"].get(stream)
        if came is None:
            made.lost += told["sent"]
            return
        made.lost += told["sent"] - came["distinct"]
        if came["distinct"] < told["sent"]:
            made.missing[stream] = came["missing"]
        made.twice += came["twice"]
        # Whoever sends from one socket is seen by one end, all the time
        made.strays += came["came"] - max(came["sources"].values())
        made.silence, made.way = max(made.silence, came["silence"]), max(made.way, came["way"])

    def _end_iperf(self, made: Account) -> None:
        client = self._running.pop("iperf3 -c")
        client.send_signal(signal.SIGINT)
        told = json.loads(client.communicate(timeout=END_SECONDS)[0])
        made.megabytes = sum(one["sum"]["bytes"] for one in told["intervals"]) / 1e6
        if "interrupt" not in told.get("error", ""):
            made.broken.append(f"iperf3: {told.get('error', 'ended by itself')}")
        if any(one["sum"]["bytes"] == 0 for one in told["intervals"][:-1]):
            made.broken.append("iperf3: a second without a byte")
        server = self._running.pop("iperf3 -s")
        server.communicate(timeout=END_SECONDS)
