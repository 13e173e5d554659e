"""The measures: one tool each, from the client pod to an address, and the figures out of what the tool prints."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run

__all__ = ["CONGESTION", "MEASURES", "METRICS", "PORTS", "Ends", "Measure", "Metric", "Port", "server_commands"]

HTTP_PORT = 8080
IPERF_PORT = 5201
SOCKPERF_PORT = 11111
SINK_PORT = 11112
MUTE_SINK_PORT = 11113
SMALL_BYTES = 64
SINK = Path(__file__).with_name("sink.py")
WRK_CONNECTIONS = 16
CONGESTION = "cubic"  # Debian's default; some hosts have bbr, whose pacing hides what a path can carry
GRACE_S = 15.0  # what a tool may take over the measured time: connecting, warm-up (sockperf: 0.4 s), its report


@dataclass(frozen=True)
class Port:
    """A port of the benchmark's one service. Only http changes the port number on its way."""

    name: str
    protocol: str
    port: int
    target: int


PORTS = (
    Port("http", "tcp", 80, HTTP_PORT),
    Port("iperf", "tcp", IPERF_PORT, IPERF_PORT),
    Port("sockperf", "tcp", SOCKPERF_PORT, SOCKPERF_PORT),
    Port("sockperf-udp", "udp", SOCKPERF_PORT, SOCKPERF_PORT),
    Port("sink", "udp", SINK_PORT, SINK_PORT),
    Port("mute-sink", "udp", MUTE_SINK_PORT, MUTE_SINK_PORT),
)


@dataclass(frozen=True)
class Metric:
    """One figure of the table. `better` is +1 where more is better, -1 where less is, 0 where it is only shown."""

    key: str
    title: str
    better: int
    digits: int


METRICS = (
    Metric("conn_per_s", "conn/s", 1, 0),
    Metric("gbit_per_s", "Gbit/s", 1, 2),
    Metric("retransmits", "retransmits", 0, 0),
    Metric("tcp_p50_us", "tcp p50 us", -1, 1),
    Metric("tcp_p99_us", "tcp p99 us", -1, 1),
    Metric("udp_p50_us", "udp p50 us", -1, 1),
    Metric("udp_p99_us", "udp p99 us", -1, 1),
    Metric("udp_per_s", "udp/s", 1, 0),
    Metric("one_way_per_s", "udp one-way/s", 1, 0),
)


@dataclass(frozen=True)
class Ends:
    """The namespaces of client and server, and the core that they share in a one-core measure."""

    client: str
    server: str
    cpu: int | None


@dataclass(frozen=True)
class Measure:
    """A tool: its command line for (address, port, seconds), and the parser of its stdout.

    `one_core`: both ends share a core. A ping-pong between two cores takes 8 or 40 us as the scheduler places the
    ends and the idle core has to be woken: that hides what the path costs, so the choice is taken from it.
    """

    name: str
    port: Port
    command: Callable[[str, int, int], list[str]]
    parse: Callable[[str], dict[str, float]]
    one_core: bool = False

    def measure(self, ends: Ends, address: str, port: int, seconds: int) -> dict[str, float]:
        """Measure from inside the client's namespace; BenchError when there is no figure."""
        argv = self.command(address, port, seconds)
        if self.one_core:
            argv = on_cpu(ends.cpu, argv)
        return self.parse(run(argv, netns=ends.client, timeout=seconds + GRACE_S))


@dataclass(frozen=True)
class Flood(Measure):
    """Datagrams to a sink, as fast as one sender can: the tool says how many it sends, the kernel how many come."""

    key: str = "udp_per_s"

    def measure(self, ends: Ends, address: str, port: int, seconds: int) -> dict[str, float]:
        """As a Measure."""
        before = _datagrams(ends.server)
        sent = super().measure(ends, address, port, seconds)
        arrived = _datagrams(ends.server) - before
        return {self.key: arrived / sent["seconds"], "udp_lost": max(0, sent["datagrams"] - arrived)}


def _datagrams(netns: str) -> int:
    """How many datagrams UDP has taken in there, those for full sockets included."""
    names, figures = re.findall(r"Udp: (.+)", run(["cat", "/proc/net/snmp"], netns=netns))
    counted = dict(zip(names.split(), map(int, figures.split()), strict=True))
    return counted["InDatagrams"] + counted["RcvbufErrors"]


def _number(pattern: str, text: str, tool: str) -> float:
    """The number that `pattern` captures; BenchError when it is not there."""
    found = re.search(pattern, text)
    if not found:
        last = (text.strip().splitlines() or ["nothing"])[-1]
        raise BenchError(f"{tool} printed no result; its last line was: {last}")
    return float(found[1])


def _wrk(address: str, port: int, seconds: int) -> list[str]:
    """A connection for each request: the server closes it, wrk opens the next."""
    url = f"http://{address}:{port}/"
    return ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{seconds}s", "-H", "Connection: close", url]


def parse_wrk(text: str) -> dict[str, float]:
    """wrk's answers a second, and how many connections went wrong."""
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    errors += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    rate = _number(r"Requests/sec:\s+([\d.]+)", text, "wrk")
    if rate == 0:
        raise BenchError("wrk got no answer at all")
    return {"conn_per_s": rate, "http_errors": float(errors)}


def _iperf3(address: str, port: int, seconds: int) -> list[str]:
    """One TCP stream, client to server."""
    return ["iperf3", "-J", "-C", CONGESTION, "-c", address, "-p", str(port), "-t", str(seconds)]


def parse_iperf3(text: str) -> dict[str, float]:
    """What arrived, in Gbit/s, and the sender's retransmissions."""
    try:
        end = json.loads(text)["end"]
        arrived = float(end["sum_received"]["bits_per_second"])
        return {"gbit_per_s": arrived / 1e9, "retransmits": float(end["sum_sent"]["retransmits"])}
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"iperf3's JSON is not what it was: {error!r}") from None


def _sockperf(mode: str, *options: str) -> Callable[[str, int, int], list[str]]:
    def command(address: str, port: int, seconds: int) -> list[str]:
        return ["sockperf", mode, *options, "-i", address, "-p", str(port), "-t", str(seconds)]

    return command


def _parse_sockperf(protocol: str) -> Callable[[str], dict[str, float]]:
    def parse(text: str) -> dict[str, float]:
        """Half the round trip in us, as sockperf counts it."""
        return {
            f"{protocol}_p50_us": _number(r"percentile 50\.000 =\s+([\d.]+)", text, "sockperf"),
            f"{protocol}_p99_us": _number(r"percentile 99\.000 =\s+([\d.]+)", text, "sockperf"),
            f"{protocol}_dropped": _number(r"# dropped messages = (\d+)", text, "sockperf"),
        }

    return parse


def parse_sent(text: str) -> dict[str, float]:
    """How many datagrams sockperf has sent, and in how many seconds."""
    return {
        "datagrams": _number(r"Total of (\d+) messages sent", text, "sockperf"),
        "seconds": _number(r"messages sent in ([\d.]+) sec", text, "sockperf"),
    }


_FLOOD = _sockperf("throughput", "-m", str(SMALL_BYTES))
MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("conn", PORTS[0], _wrk, parse_wrk),
        Measure("throughput", PORTS[1], _iperf3, parse_iperf3),
        Measure("tcp-latency", PORTS[2], _sockperf("ping-pong", "--tcp"), _parse_sockperf("tcp"), one_core=True),
        Measure("udp-latency", PORTS[3], _sockperf("ping-pong"), _parse_sockperf("udp"), one_core=True),
        Flood("udp-packets", PORTS[4], _FLOOD, parse_sent),
        Flood("udp-one-way", PORTS[5], _FLOOD, parse_sent, key="one_way_per_s"),
    )
}


def nginx_config(folder: Path) -> str:
    """One process, a tiny answer from memory, every file of its own inside `folder`."""
    temp = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{temp}
    server {{
        listen {HTTP_PORT} backlog=4096;
        location / {{ return 200 "ok\\n"; }}
    }}
}}
"""


def on_cpu(cpu: int | None, argv: list[str]) -> list[str]:
    """`argv` held to one core; None: wherever the scheduler likes."""
    return argv if cpu is None else ["taskset", "--cpu-list", str(cpu), *argv]


def server_commands(folder: Path, cpu: int | None) -> dict[str, list[str]]:
    """The server's processes by name, sockperf's on core `cpu`; writes nginx's configuration into `folder`."""
    config = folder / "nginx.conf"
    config.write_text(nginx_config(folder))
    return {
        "nginx": ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)],
        "iperf3": ["iperf3", "-s", "-p", str(IPERF_PORT)],
        "sockperf": on_cpu(cpu, ["sockperf", "server", "--tcp", "-p", str(SOCKPERF_PORT)]),
        "sockperf-udp": on_cpu(cpu, ["sockperf", "server", "-p", str(SOCKPERF_PORT)]),
        "sink": [sys.executable, str(SINK), str(SINK_PORT), str(MUTE_SINK_PORT)],
    }
