"""Clusters made of network namespaces, to try, to test and to show a datapath with.

with Lab.up(LabSpec(name="t1", nodes=2, pods=2)) as lab:
    lab.pod(1, 2).exec(["ping", "-c1", lab.pod(2, 1).address])
"""

from __future__ import annotations

from pydatapath.lab.cluster import Lab, find_host, labs
from pydatapath.lab.hosts import Host, Node, Pod
from pydatapath.lab.topology import LabSpec

__all__ = ["Host", "Lab", "LabSpec", "Node", "Pod", "find_host", "labs"]
