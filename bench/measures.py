"""The measures: one tool each, from the client pod to an address, and the figures out of what the tool prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bench.measure import CommandLine, CpuPer, Flood, Measure, Port
from bench.processes import BenchError

__all__ = [
    "CONGESTION",
    "HTTP_PORT",
    "IPERF_PORT",
    "MEASURES",
    "METRICS",
    "MUTE_SINK_PORT",
    "PORTS",
    "SINK_PORT",
    "SOCKPERF_PORT",
    "Metric",
]

HTTP_PORT = 8080
IPERF_PORT = 5201
SOCKPERF_PORT = 11111
SINK_PORT = 11112
MUTE_SINK_PORT = 11113
SMALL_BYTES, LARGE_BYTES = 64, 1400
STREAMS = 8
SOCKPERF_ASLEEP_S = 2.15  # sockperf 3.7: `sleep(2)` in its client, that no option takes away, and what comes before
WRK_CONNECTIONS = 16
CONGESTION = "cubic"  # Debian's default; some hosts have bbr, whose pacing hides what a path can carry


PORTS = (
    Port("http", "tcp", 80, HTTP_PORT, "nginx"),
    Port("iperf", "tcp", IPERF_PORT, IPERF_PORT, "iperf3"),
    Port("sockperf", "tcp", SOCKPERF_PORT, SOCKPERF_PORT, "sockperf"),
    Port("sockperf-udp", "udp", SOCKPERF_PORT, SOCKPERF_PORT, "sockperf-udp"),
    Port("sink", "udp", SINK_PORT, SINK_PORT, "sink"),
    Port("mute-sink", "udp", MUTE_SINK_PORT, MUTE_SINK_PORT, "sink"),
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
    Metric("cpu_per_conn_us", "cpu us/conn", -1, 1),
    Metric("req_per_s", "req/s", 1, 0),
    Metric("cpu_per_req_us", "cpu us/req", -1, 1),
    Metric("gbit_per_s", "Gbit/s", 1, 2),
    Metric("retransmits", "retransmits", 0, 0),
    Metric("cpu_per_gbit_us", "cpu us/Gbit", -1, 0),
    Metric("streams_gbit_per_s", "Gbit/s of 8", 1, 2),
    Metric("streams_retransmits", "retransmits of 8", 0, 0),
    Metric("streams_cpu_per_gbit_us", "cpu us/Gbit of 8", -1, 0),
    Metric("tcp_p50_us", "tcp p50 us", -1, 1),
    Metric("tcp_p99_us", "tcp p99 us", -1, 1),
    Metric("tcp_p999_us", "tcp p99.9 us", -1, 1),
    Metric("udp_p50_us", "udp p50 us", -1, 1),
    Metric("udp_p99_us", "udp p99 us", -1, 1),
    Metric("udp_p999_us", "udp p99.9 us", -1, 1),
    Metric("udp_per_s", "udp/s", 1, 0),
    Metric("udp_1400_per_s", "udp 1400/s", 1, 0),
    Metric("one_way_per_s", "udp one-way/s", 1, 0),
)


def _number(pattern: str, text: str, tool: str) -> float:
    """The number that `pattern` captures; BenchError when it is not there."""
    found = re.search(pattern, text)
    if not found:
        last = (text.strip().splitlines() or ["nothing"])[-1]
        raise BenchError(f"{tool} printed no result; its last line was: {last}")
    return float(found[1])


def _wrk(*options: str) -> CommandLine:
    def command(address: str, port: int, seconds: int) -> list[str]:
        return ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{seconds}s", *options, f"http://{address}:{port}/"]

    return command


def parse_wrk(key: str, text: str) -> dict[str, float]:
    """wrk's answers a second, as `key`, and how many connections went wrong."""
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    errors += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    rate = _number(r"Requests/sec:\s+([\d.]+)", text, "wrk")
    if rate == 0:
        raise BenchError("wrk got no answer at all")
    return {key: rate, "http_errors": float(errors)}


def _iperf3(streams: int) -> CommandLine:
    """So many TCP streams, client to server."""

    def command(address: str, port: int, seconds: int) -> list[str]:
        options = ["-P", str(streams), "-t", str(seconds)]
        return ["iperf3", "-J", "-C", CONGESTION, "-c", address, "-p", str(port), *options]

    return command


def parse_iperf3(prefix: str, text: str) -> dict[str, float]:
    """What arrived of all streams together, in Gbit/s, and the sender's retransmissions."""
    try:
        end = json.loads(text)["end"]
        arrived = float(end["sum_received"]["bits_per_second"])
        again = float(end["sum_sent"]["retransmits"])
        return {f"{prefix}gbit_per_s": arrived / 1e9, f"{prefix}retransmits": again}
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"iperf3's JSON is not what it was: {error!r}") from None


def _sockperf(mode: str, *options: str) -> CommandLine:
    def command(address: str, port: int, seconds: int) -> list[str]:
        return ["sockperf", mode, *options, "-i", address, "-p", str(port), "-t", str(seconds)]

    return command


def _parse_sockperf(protocol: str) -> Callable[[str], dict[str, float]]:
    def parse(text: str) -> dict[str, float]:
        """Half the round trip in us, as sockperf counts it."""
        return {
            f"{protocol}_p50_us": _number(r"percentile 50\.000 =\s+([\d.]+)", text, "sockperf"),
            f"{protocol}_p99_us": _number(r"percentile 99\.000 =\s+([\d.]+)", text, "sockperf"),
            f"{protocol}_p999_us": _number(r"percentile 99\.900 =\s+([\d.]+)", text, "sockperf"),
            f"{protocol}_dropped": _number(r"# dropped messages = (\d+)", text, "sockperf"),
        }

    return parse


def parse_sent(text: str) -> dict[str, float]:
    """How many datagrams sockperf has sent, and in how many seconds."""
    return {
        "datagrams": _number(r"Total of (\d+) messages sent", text, "sockperf"),
        "seconds": _number(r"messages sent in ([\d.]+) sec", text, "sockperf"),
    }


_SMALL, _LARGE = (_sockperf("throughput", "-m", str(size)) for size in (SMALL_BYTES, LARGE_BYTES))


def _throughput(name: str, streams: int, prefix: str) -> Measure:
    per = CpuPer(f"{prefix}cpu_per_gbit_us", f"{prefix}gbit_per_s")
    return Measure(name, PORTS[1], _iperf3(streams), partial(parse_iperf3, prefix), cpu_per=per)


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "conn",
            PORTS[0],
            _wrk("-H", "Connection: close"),  # the server closes it, wrk opens the next
            partial(parse_wrk, "conn_per_s"),
            cpu_per=CpuPer("cpu_per_conn_us", "conn_per_s"),
        ),
        Measure(
            "requests",
            PORTS[0],
            _wrk(),
            partial(parse_wrk, "req_per_s"),
            cpu_per=CpuPer("cpu_per_req_us", "req_per_s"),
        ),
        _throughput("throughput", 1, ""),
        _throughput("streams", STREAMS, "streams_"),
        Measure(
            "tcp-latency",
            PORTS[2],
            _sockperf("ping-pong", "--tcp"),
            _parse_sockperf("tcp"),
            True,
            asleep_s=SOCKPERF_ASLEEP_S,
        ),
        Measure(
            "udp-latency", PORTS[3], _sockperf("ping-pong"), _parse_sockperf("udp"), True, asleep_s=SOCKPERF_ASLEEP_S
        ),
        Flood("udp-packets", PORTS[4], _SMALL, parse_sent, asleep_s=SOCKPERF_ASLEEP_S),
        Flood("udp-large", PORTS[4], _LARGE, parse_sent, asleep_s=SOCKPERF_ASLEEP_S, key="udp_1400_per_s"),
        Flood("udp-one-way", PORTS[5], _SMALL, parse_sent, asleep_s=SOCKPERF_ASLEEP_S, key="one_way_per_s"),
    )
}
