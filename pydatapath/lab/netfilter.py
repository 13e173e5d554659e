"""What netfilter, the kernel's old way of load balancing (iptables, nftables, conntrack), knows in a namespace."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydatapath.lab.hosts import Host

__all__ = ["Traces", "traces"]

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")
_TABLES = ("ip_tables_names", "ip6_tables_names", "arp_tables_names")
_IGNORED = {"entries", "chainlength", "search_restart"}  # not counters of packets


@dataclass(frozen=True)
class Traces:
    """What was found in one namespace.

    `rules` is the text of the nftables ruleset, None when nobody could ask (nft is not installed, or the kernel has no
    nftables); `tables` are those of iptables; `connections` are those that conntrack tracks now, None when the kernel
    has no conntrack, and `handled` the packets that it ever looked at.
    """

    rules: str | None
    tables: tuple[str, ...]
    connections: int | None
    handled: int

    @property
    def none(self) -> bool:
        """Whether netfilter took no part here."""
        return not (self.rules or self.tables or self.connections or self.handled)


def traces(host: Host) -> Traces:
    """What netfilter knows in a host's namespace. Raises OSError where its files cannot be read."""
    rules = None
    if shutil.which("nft"):
        done = host.exec(["nft", "list", "ruleset"])
        rules = done.stdout.strip() if done.returncode == 0 else None
    with host.entered():
        return Traces(rules, _tables(), _number(_COUNT), _handled())


def _tables() -> tuple[str, ...]:
    found: list[str] = []
    for name in _TABLES:
        with contextlib.suppress(FileNotFoundError):  # this kernel has none of that family
            found += Path("/proc/thread-self/net", name).read_text().split()
    return tuple(found)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None


def _handled() -> int:
    """All counters of conntrack's work, of all CPUs, in hexadecimal below their names."""
    try:
        head, *lines = _STATISTICS.read_text().splitlines()
    except FileNotFoundError:
        return 0
    counted = [place for place, name in enumerate(head.split()) if name not in _IGNORED]
    return sum(int(line.split()[place], 16) for line in lines for place in counted)
