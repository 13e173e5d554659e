"""The worlds in which the packet tests' node may be, as the model knows them; each goes with programs made alike."""

from __future__ import annotations

from dataclasses import replace

from packetbed import FEW_PORTS, OTHER_TIMEOUTS
from places import (
    CLUSTER_NETWORKS,
    DEVICES,
    MAC,
    NODE,
    POD_NETWORKS,
    SERVICE_NETWORKS,
    V4,
    V6,
    V6_CLUSTER_NETWORKS,
    V6_POD_NETWORKS,
    V6_SERVICE_NETWORKS,
)

from pydatapath.kernel.layout import FlowState, timeout
from pydatapath.reference import NODE as THE_NODE
from pydatapath.reference import TIMEOUTS, Egress, Masquerade, Own, Route, World

__all__ = ["HERE", "HIDDEN", "LIMITED", "MACS", "OTHERWISE_TIMED", "PAST"]

HERE = World(
    tuple(Own(who.NODE, who.UPLINK) for who in (V4, V6)),
    endpoints={**dict.fromkeys((V4.NODE, V4.UPLINK, V6.NODE, V6.UPLINK), THE_NODE), **DEVICES},
    interfaces=frozenset(DEVICES.values()),
    pod_networks=tuple(map(str, (*POD_NETWORKS, *V6_POD_NETWORKS))),
    exclusive_networks=tuple(map(str, (*POD_NETWORKS, *V6_POD_NETWORKS))),
    service_networks=tuple(map(str, (*SERVICE_NETWORKS, *V6_SERVICE_NETWORKS))),
    cluster_networks=tuple(map(str, (*CLUSTER_NETWORKS, *V6_CLUSTER_NETWORKS))),
    routes=(
        *(Route(f"{network}.0/24") for network in ("10.1.0", "10.2.0", "198.51.100", "192.168.9")),
        *(Route(f"{network}::/64") for network in ("fd00:10:1", "fd00:10:2", "2001:db8:51", "2001:db8:9")),
    ),
)
PAST = replace(HERE, pod_fast_path=True)  # what pods send to each other goes past the bridge
HIDDEN = replace(HERE, masquerade=Masquerade((Egress(V4.UPLINK), Egress(V6.UPLINK))))  # who leaves the cluster
LIMITED = replace(  # and a pod may begin ten flows in a minute, as by the fixture `limited`
    HIDDEN, masquerade=Masquerade((Egress(V4.UPLINK), Egress(V6.UPLINK)), pod_flows=(10, 60))
)
OTHERWISE_TIMED = replace(
    HIDDEN,
    masquerade=Masquerade((Egress(V4.UPLINK), Egress(V6.UPLINK)), ports=range(FEW_PORTS[0], FEW_PORTS[1] + 1)),
    timeouts={(one, state): timeout(one, FlowState[state.name], OTHER_TIMEOUTS) for one, state in TIMEOUTS},
    quarantine=OTHER_TIMEOUTS["QUARANTINE"],
    pod_fast_path=True,
)
MACS = {device: MAC[address] for address, device in DEVICES.items()} | {THE_NODE: MAC[NODE]}
