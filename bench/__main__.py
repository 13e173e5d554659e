"""`python -m bench NAME ...`: the benchmarks by their names."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence

NAMES = {
    "run": "paths and workloads: a virtual IP by us, beside plain ways and kube-proxy's; and SNAT",
    "snat": "what leaving the cluster costs, alone",
    "crowd": "speed beside many services, endpoints and flows",
    "scale": "what commands and programs cost beside many services",
    "programming": "from the command to the first packet that is served right",
    "packet_costs": "ns of a packet in our programs, beside one that only redirects",
    "parts": "ns of the single things that a packet's walk is made of",
    "compare": "two results: what has become better or worse",
    "plot": "results as pictures and Markdown",
    "goals": "what results say of our goals",
}


def usage() -> str:
    """The list of names."""
    return "usage: python -m bench NAME [OPTIONS]\n\n" + "\n".join(
        f"  {name:<14}{text}" for name, text in NAMES.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hand on to the benchmark of that name; the exit code."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if name in {"", "-h", "--help"}:
        print(usage())
        return 0
    if name not in NAMES:
        print(f"Error: there is no benchmark {name}: choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    sys.argv = [f"python -m bench {name}", *rest]  # as each of them reads it when it is run by itself
    return int(importlib.import_module(f"bench.{name}").main() or 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
