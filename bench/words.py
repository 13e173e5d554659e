"""What a figure is called where there is room for words: in pictures and headings."""

from __future__ import annotations

from bench.measures import Metric

__all__ = ["COMPARISONS", "title", "unit", "what"]

UNITS = (("gbit_per_s", "Gbit/s"), ("_per_s", "1/s"), ("_us", "us"), ("_ns", "ns"), ("_s", "s"))
COMPARISONS = {
    "run": "Ways to a pod, to a service, and out of the cluster",
    "snat": "Out of the cluster",
    "crowd": "Beside many services, endpoints and flows",
    "programming": "From the command to the first packet served right",
    "packet_costs": "What a packet costs in our programs",
}
WORDS = {
    "conn_per_s": "new TCP connections",
    "gbit_per_s": "one TCP stream",
    "tcp_p50_us": "TCP latency, half the round trip, median",
    "tcp_p99_us": "TCP latency, half the round trip, 99th percentile",
    "udp_p50_us": "UDP latency, half the round trip, median",
    "udp_p99_us": "UDP latency, half the round trip, 99th percentile",
    "udp_per_s": "datagrams of 64 bytes, some answered",
    "tcp_p999_us": "TCP latency, half the round trip, 99.9th percentile",
    "udp_p999_us": "UDP latency, half the round trip, 99.9th percentile",
    "udp_1400_per_s": "datagrams of 1,400 bytes",
    "one_way_per_s": "datagrams of 64 bytes, none answered",
    "req_per_s": "requests on TCP connections that are kept",
    "streams_gbit_per_s": "eight TCP streams together",
    "cpu_per_conn_us": "processor time for a new TCP connection",
    "cpu_per_req_us": "processor time for a request",
    "cpu_per_gbit_us": "processor time for a gigabit of one TCP stream",
    "streams_cpu_per_gbit_us": "processor time for a gigabit of eight TCP streams",
    "first_s": "first load, until the first and the last service answer",
    "one_s": "one service changed, until it answers so",
    "all_s": "all services changed, until the first and the last answer so",
    "one_flow_ns": "a packet of one known flow, by BPF_PROG_TEST_RUN",
    "first_command_s": "first load, until the command has ended",
    "one_command_s": "one service changed, until the command has ended",
    "all_command_s": "all services changed, until the command has ended",
    "retransmits": "segments sent again by one TCP stream",
    "streams_retransmits": "segments sent again by eight TCP streams",
    "ipv4_ns": "a packet in our programs, by BPF_PROG_TEST_RUN, IPv4",
    "ipv6_ns": "a packet in our programs, by BPF_PROG_TEST_RUN, IPv6",
    "load_ipv4_ns": "a packet in our programs, under iperf3, IPv4",
    "load_ipv6_ns": "a packet in our programs, under iperf3, IPv6",
    "connection_ns": "a short connection in our programs, under wrk",
    "random_flow_ns": "a packet of any known flow at random, by BPF_PROG_TEST_RUN",
}


def unit(key: str) -> str:
    """The unit of a figure: its key ends in it; "" for a plain count."""
    return next((text for end, text in UNITS if key.endswith(end)), "")


def what(metric: Metric) -> str:
    """In words, with the unit; those that have none here are called as in the tables."""
    if metric.key not in WORDS:
        return metric.title
    return f"{WORDS[metric.key]} ({said})" if (said := unit(metric.key)) else WORDS[metric.key]


def title(metric: Metric, by: str = "") -> str:
    """The same, by the sizes that it was measured at, and which way is better."""
    better = {1: ": more is better", -1: ": less is better"}
    return what(metric) + (f", by {by}" if by else "") + better.get(metric.better, "")
