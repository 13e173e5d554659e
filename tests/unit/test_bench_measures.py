"""The benchmarks' figures: read out of what the tools print, and CPU time for each piece of work."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from bench.host import ForeignLoad
from bench.kube_proxy import ServicePort
from bench.kube_proxy_ipvs import ipvs_input, masquerade_input
from bench.measure import Measure
from bench.measures import MEASURES, METRICS
from bench.processes import BenchError
from bench.topology import Where

WRK = """\
Running 1s test @ http://10.96.0.10:80/
  16 threads and 16 connections
  Socket errors: connect 0, read 3, write 0, timeout 2
Requests/sec:  17905.25
Transfer/sec:      2.78MB
"""
SOCKPERF = """\
sockperf: # dropped messages = 1; # duplicated messages = 0; # out-of-order messages = 0
sockperf: ---> percentile 99.990 = 2498.105
sockperf: ---> percentile 99.900 =  279.890
sockperf: ---> percentile 99.000 =    5.793
sockperf: ---> percentile 50.000 =    3.324
"""
SENT = """\
sockperf: Test ended
sockperf: Total of 287093 messages sent in 1.000 sec
"""
IPERF3 = json.dumps(
    {"end": {"sum_sent": {"retransmits": 7}, "sum_received": {"bits_per_second": 23001565247.0, "seconds": 1.0}}}
)


@pytest.mark.parametrize(
    ("name", "text", "figures"),
    [
        ("conn", WRK, {"conn_per_s": 17905.25, "http_errors": 5}),
        ("requests", WRK, {"req_per_s": 17905.25, "http_errors": 5}),
        ("throughput", IPERF3, {"gbit_per_s": 23.001565247, "retransmits": 7}),
        ("streams", IPERF3, {"streams_gbit_per_s": 23.001565247, "streams_retransmits": 7}),
        (
            "tcp-latency",
            SOCKPERF,
            {"tcp_p50_us": 3.324, "tcp_p99_us": 5.793, "tcp_p999_us": 279.89, "tcp_dropped": 1},
        ),
        (
            "udp-latency",
            SOCKPERF,
            {"udp_p50_us": 3.324, "udp_p99_us": 5.793, "udp_p999_us": 279.89, "udp_dropped": 1},
        ),
        ("udp-packets", SENT, {"datagrams": 287093, "seconds": 1.0}),
        ("udp-large", SENT, {"datagrams": 287093, "seconds": 1.0}),
    ],
)
def test_a_tools_output_is_read(name: str, text: str, figures: dict[str, float]) -> None:
    assert MEASURES[name].parse(text) == pytest.approx(figures)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_a_tool_that_printed_no_result_has_failed(measure: Measure) -> None:
    """It is one sentence for the user, and never a figure of 0."""
    with pytest.raises(BenchError, match=r"^(wrk|iperf3|sockperf)[^\n]+$"):
        measure.parse("unable to connect\n")


def test_a_web_server_that_answers_nothing_is_no_figure() -> None:
    with pytest.raises(BenchError, match="no answer at all"):
        MEASURES["conn"].parse(WRK.replace("17905.25", "0.00"))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("conn", "Connection: close"),
        ("streams", "-P 8"),
        ("udp-packets", "-m 64"),
        ("udp-large", "-m 1400"),
        ("tcp-latency", "--tcp"),
    ],
)
def test_a_measure_asks_its_tool_for_what_it_is_called(name: str, option: str) -> None:
    assert option in " ".join(MEASURES[name].command("10.96.0.10", 80, 2))
    assert "Connection: close" not in MEASURES["requests"].command("10.96.0.10", 80, 2)


def test_cpu_time_is_divided_by_what_was_done_in_all_seconds() -> None:
    """3.6 s of both cores for 20,000 connections a second over two seconds: 90 us each."""
    assert MEASURES["conn"].cpu({"conn_per_s": 20_000.0}, 3.6, 2) == pytest.approx({"cpu_per_conn_us": 90.0})
    assert MEASURES["streams"].cpu({"streams_gbit_per_s": 40.0}, 4.0, 2) == pytest.approx(
        {"streams_cpu_per_gbit_us": 50_000.0}
    )
    assert MEASURES["conn"].cpu({}, 3.6, 2) == {}, "a measurement that failed has none"
    assert MEASURES["udp-latency"].cpu({"udp_p50_us": 8.0}, 3.6, 2) == {}


def test_every_figure_of_a_measure_is_in_the_table() -> None:
    """A key that METRICS does not know would be measured and never shown."""
    known = {metric.key for metric in METRICS}
    found = {one.cpu_per.key for one in MEASURES.values() if one.cpu_per} | {
        key
        for name, text in (("conn", WRK), ("requests", WRK), ("streams", IPERF3))
        for key in MEASURES[name].parse(text)
    }
    assert found - {"http_errors"} <= known
    assert {getattr(one, "key", "udp_per_s") for one in MEASURES.values()} <= known


@pytest.mark.parametrize("where", Where)
def test_addresses_of_the_server_are_in_the_subnet_of_its_gateway(where: Where) -> None:
    """Outside it has one, and the node's uplink is its way to the pods."""
    addresses = where.backends(3)
    assert len(set(addresses)) == (1 if where in {Where.ROUTED, Where.OUTSIDE} else 3)
    _client_hop, server_hop = where.neighbours
    assert {one.rpartition(".")[0] for one in addresses} == {server_hop.rpartition(".")[0]}
    assert server_hop not in addresses


def test_ipvs_has_a_virtual_server_for_each_port_and_masquerades_outsiders() -> None:
    dns = ServicePort("default/dns:dns", "10.96.0.10", "udp", 53, (("10.244.1.11", 9090), ("10.244.1.12", 9090)))
    assert ipvs_input([dns]).splitlines() == [
        "-A -u 10.96.0.10:53 -s rr",
        "-a -u 10.96.0.10:53 -r 10.244.1.11:9090 -m -w 1",
        "-a -u 10.96.0.10:53 -r 10.244.1.12:9090 -m -w 1",
    ]
    rules = masquerade_input([dns], "10.244.0.0/16")
    assert "-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p udp --dport 53 -j KUBE-MARK-MASQ\n" in rules
    assert "-A KUBE-POSTROUTING -s 10.244.1.12/32 -d 10.244.1.12/32 -p udp --dport 9090 -j MASQUERADE\n" in rules
    assert rules.endswith("COMMIT\n")


BUSY = [sys.executable, "-c", "while True: pass"]


def test_processor_time_of_others_is_not_ours() -> None:
    """Ours is what we and our children do; a child's child stands for somebody else's process here."""
    load = ForeignLoad()
    begun = time.process_time()
    while time.process_time() - begun < 0.4:
        pass
    elapsed, _others, ours = load.seconds()
    assert 0.3 < ours <= elapsed * (os.cpu_count() or 1)
    with subprocess.Popen(
        ["sh", "-c", f"{shlex.join(BUSY)} & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout
        other = int(shell.stdout.readline())
        try:
            load, others, until = ForeignLoad(), 0.0, time.monotonic() + 20
            while others <= 0.2 and time.monotonic() < until:  # on a crowded machine it waits for its turn
                time.sleep(0.1)
                _elapsed, others, ours = load.seconds()
            cores = load.cores()
        finally:
            os.kill(other, signal.SIGKILL)
    assert others > 0.2
    assert ours < others
    assert cores > 0
