"""SNAT by pydatapath, from a pod to a server outside: beside plain routing, and MASQUERADE by iptables and nftables.

Run as root: `.venv/bin/python -m bench snat`. bench/README.md explains it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench.measures import MEASURES
from bench.options import Comparison, make_parser
from bench.paths import Case, lacks_pydatapath, loaded, nothing
from bench.processes import run
from bench.rounds import main as compare
from bench.topology import POD_NETWORK, Node, Where

MASQUERADE = f"""\
*nat
-A POSTROUTING -s {POD_NETWORK} ! -d {POD_NETWORK} -j MASQUERADE --random-fully
COMMIT
"""
MASQUERADE_NFT = f"""\
table ip nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {POD_NETWORK} ip daddr != {POD_NETWORK} masquerade fully-random
    }}
}}
"""


@contextlib.contextmanager
def _iptables(this: Node, _folder: Path) -> Iterator[None]:
    """The rule of flannel and of the CNI plugins; it ends with the node's namespace."""
    run(["iptables-restore", "--noflush"], netns=this.netns, stdin=MASQUERADE)
    yield


@contextlib.contextmanager
def _nftables(this: Node, _folder: Path) -> Iterator[None]:
    run(["nft", "-f", "-"], netns=this.netns, stdin=MASQUERADE_NFT)
    yield


@contextlib.contextmanager
def _pydatapath(this: Node, _folder: Path) -> Iterator[None]:
    with loaded(this, "--cluster-cidr", POD_NETWORK, "--masquerade"):
        yield


def _netfilter(name: str, text: str, prepare: Callable[[Node, Path], AbstractContextManager[None]]) -> Case:
    return Case(name, text, prepare, where=Where.OUTSIDE, tracked=True, beside=["outside"])


CASES = {
    case.name: case
    for case in (
        Case("outside", "pod to a server outside, without NAT, nothing loaded", nothing, where=Where.ROUTED),
        Case(
            "snat-pydatapath",
            "the same, masqueraded by pydatapath",
            _pydatapath,
            where=Where.OUTSIDE,
            beside=["outside", "snat-iptables"],
            lack=lacks_pydatapath,
        ),
        _netfilter("snat-iptables", "the same, by iptables' MASQUERADE", _iptables),
        _netfilter("snat-nftables", "the same, by nftables' masquerade", _nftables),
    )
}
COMPARISON = Comparison("snat", (__doc__ or "").split("\n")[0], CASES, MEASURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code, or 2 for wrong usage."""
    parser = make_parser(COMPARISON)
    parser.set_defaults(backends=1)
    return compare(COMPARISON, parser.parse_args(argv))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
