"""A backend gives way to another, and nobody's connection is cut: `examples/replace_backend.py NETNS NAME OLD NEW`

OLD and NEW: address:port. New connections go to NEW at once; OLD goes when its last one has ended, or after a minute.
"""

from __future__ import annotations

import sys
import time

from pydatapath import Datapath


def main(netns: str, name: str, old: str, new: str, *, seconds: float = 60) -> None:
    """Raises NotFound where there is no such service or backend."""
    (gone, gone_port), (comes, port) = (one.rsplit(":", 1) for one in (old, new))
    with Datapath.open(netns=netns) as datapath:
        datapath.add_backend(name, comes, int(port))
        datapath.drain_backend(name, gone, int(gone_port))
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(
            flow.reply.src == gone and flow.state != "closing" for flow in datapath.flows()
        ):
            time.sleep(0.2)
        print(*datapath.remove_backend(name, gone, int(gone_port)), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:5])
