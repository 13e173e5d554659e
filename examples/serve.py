"""A service for pods that are there: `python examples/serve.py NETNS NAME ADDRESS:PORT...`

Prints where it is called. With a lab: `serve.py lab-node1 shop 10.244.1.12:8080`.
"""

from __future__ import annotations

import sys

from pydatapath import Datapath
from pydatapath.editing import PortSpec


def main(netns: str, name: str, *backends: str) -> None:
    """Adds the service; raises Conflict where there is one of this name, NotLoaded where nothing is loaded."""
    ends = [(address, int(port)) for address, _, port in (one.rpartition(":") for one in backends)]
    with Datapath.open(netns=netns) as datapath:
        datapath.add_service(name, [PortSpec("http", "TCP", 80, ends[0][1])], backends=ends)
        print(*datapath.service(name).service.cluster_ips)


if __name__ == "__main__":
    main(*sys.argv[1:])
