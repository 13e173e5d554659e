"""Who talks with whom, by bytes: `python examples/who_talks.py NETNS`"""

from __future__ import annotations

import sys

from pydatapath import Datapath


def main(netns: str) -> None:
    """A line for each flow, the largest first. Raises NotLoaded."""
    with Datapath.open(netns=netns) as datapath:
        for flow in sorted(datapath.flows(), key=lambda one: -sum(one.bytes)):
            print(
                f"{sum(flow.bytes):12,}  {flow.original.src} -> {flow.service or flow.original.dst} ({flow.reply.src})"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
