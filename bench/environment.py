"""What figures depend on and no argument changes: machine, kernel, versions of the tools."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.paths import ROOT

__all__ = ["environment"]

VERSIONS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "wrk": (["wrk", "-v"], r"wrk (\S+)"),
    "iperf3": (["iperf3", "--version"], r"iperf (\S+)"),
    "sockperf": (["sockperf", "--version"], r"version (\S+)"),
    "iptables": (["iptables", "-V"], r"iptables (.+)"),
    "nft": (["nft", "-v"], r"nftables v(\S+)"),
    "commit": (["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], r"(?m)^([0-9a-f]{7,})$"),
}


def _version(argv: Sequence[str], pattern: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(pattern, done.stdout + done.stderr)  # wrk -v prints its version and fails
    return found[1] if found else "unknown"


def environment() -> dict[str, object]:
    """What the figures depend on and cannot be changed by an argument."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(*how) for name, how in VERSIONS.items()},
    }
