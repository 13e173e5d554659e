"""What figures depend on and no argument of a command changes: machine, kernel, versions and settings of the tools."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.measures import CONGESTION, LARGE_BYTES, SMALL_BYTES, STREAMS, WRK_CONNECTIONS
from bench.paths import ROOT

__all__ = ["environment"]

VERSIONS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "wrk": (["wrk", "-v"], r"wrk (\S+)"),
    "iperf3": (["iperf3", "--version"], r"iperf (\S+)"),
    "sockperf": (["sockperf", "--version"], r"version (\S+)"),
    "iptables": (["iptables", "-V"], r"iptables (.+)"),
    "iptables-nft": (["iptables-nft", "-V"], r"iptables (.+)"),
    "iptables-legacy": (["iptables-legacy", "-V"], r"iptables (.+)"),
    "nft": (["nft", "-v"], r"nftables v(\S+)"),
    # ipvsadm 1.31 says nothing, not even its version, where the kernel has no IPVS; its package does
    "ipvsadm": (["dpkg-query", "--show", "ipvsadm"], r"ipvsadm\s+(\S+)"),
    "commit": (["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], r"(?m)^([0-9a-f]{7,})$"),
}
SETTINGS = {
    "wrk_connections": WRK_CONNECTIONS,
    "iperf3_streams": STREAMS,
    "small_datagram_bytes": SMALL_BYTES,
    "large_datagram_bytes": LARGE_BYTES,
    "tcp_congestion_control": CONGESTION,
}
SYSCTLS = (
    "net.core.bpf_jit_enable",
    "net.core.bpf_jit_harden",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_buckets",
    "kernel.unprivileged_bpf_disabled",
)
UNKNOWN = "unknown"


def _version(argv: Sequence[str], pattern: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    found = re.search(pattern, done.stdout + done.stderr)  # wrk -v prints its version and fails
    return found[1].strip() if found else UNKNOWN


def _of_file(path: str, pattern: str = r"\s*(.*\S)") -> str:
    """What a file of the kernel's or of the distribution's says; "unknown" where it says nothing."""
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return UNKNOWN
    return found[1] if found else UNKNOWN


def settings() -> Mapping[str, object]:
    """Of our tools, and of the machine where paths depend on them."""
    return {**SETTINGS, **{name: _of_file(f"/proc/sys/{name.replace('.', '/')}") for name in SYSCTLS}}


def environment() -> dict[str, object]:
    """What the figures depend on and cannot be changed by an argument."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "distribution": _of_file("/etc/os-release", r'(?m)^PRETTY_NAME="?([^"\n]*)'),
        "machine": platform.machine(),
        "cpu": _of_file("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _of_file("/proc/meminfo", r"MemTotal:\s*(.+)"),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(*how) for name, how in VERSIONS.items()},
        "settings": settings(),
    }
