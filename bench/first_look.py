#!/usr/bin/env python3
"""A first look at speed: a service's VIP by pydatapath, beside a plain bridge and beside kube-proxy's iptables rules.

Run as root: `.venv/bin/python -m bench.first_look`, or `python bench/first_look.py`. bench/README.md explains it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: sys.path begins with bench/, and the package's parent is what is wanted
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measures import MEASURES
from bench.paths import CASES
from bench.rounds import Comparison, between, make_parser
from bench.rounds import main as compare

MAX_BACKENDS = 100
COMPARISON = Comparison("first_look", (__doc__ or "").split("\n")[0], CASES, MEASURES, ["bridge"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code, or 2 for wrong usage."""
    parser = make_parser(COMPARISON)
    parser.add_argument(
        "--backends",
        type=between(1, MAX_BACKENDS),
        default=2,
        help="addresses of the server pod behind the VIP (default 2: with one, kube-proxy lays no statistic match)",
    )
    return compare(COMPARISON, parser.parse_args(argv))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
