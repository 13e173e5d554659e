"""What listens in the server's namespace, one process for each tool."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.measure import on_cpu
from bench.measures import HTTP_PORT, IPERF_PORT, MUTE_SINK_PORT, SINK_PORT, SOCKPERF_PORT

__all__ = ["server_commands"]

SINK = Path(__file__).with_name("sink.py")


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
    keepalive_requests 1000000000;
{temp}
    server {{
        listen {HTTP_PORT} backlog=4096;
        location / {{ return 200 "ok\\n"; }}
    }}
}}
"""


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
