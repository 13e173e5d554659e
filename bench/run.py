"""Speed: a service's VIP by pydatapath, beside a bare veth pair, a bridge, routing, and kube-proxy's rules; and SNAT.

Run as root: `.venv/bin/python -m bench run`. bench/README.md explains it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from bench import snat, vip
from bench.measures import MEASURES
from bench.options import Comparison, Preset, between, make_parser
from bench.rounds import main as compare

MAX_BACKENDS = 100
QUICK = ("conn", "requests", "throughput", "tcp-latency", "udp-packets")
PRESETS = {
    "quick": Preset(f"some minutes: three rounds of one second of {', '.join(QUICK)}", 3, 1, QUICK),
    "full": Preset("what is published: fourteen rounds of one second of everything", 14, 1),
}
COMPARISON = Comparison(
    "run",
    (__doc__ or "").split("\n")[0],
    {**vip.CASES, **snat.CASES},
    MEASURES,
    PRESETS,
)


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
