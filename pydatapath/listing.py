"""What `list` and `show` tell of services and forwards of ports: what was applied, beside what the maps say of it."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection

from pydatapath import applying, forwarding, plan
from pydatapath.kernel.maps import Maps
from pydatapath.model import Backend, BackendState, Endpoint, EndpointSlice, Service
from pydatapath.records import Records, Stored
from pydatapath.tracking import Listener, by_listener
from pydatapath.views import End, PortForward, ServiceStatus

__all__ = ["port_forwards", "services"]


def services(records: Records, maps: Maps, stored: Collection[Stored]) -> list[ServiceStatus]:
    """These services, each with its backends."""
    here, tally = applying.here(records), by_listener(records, maps)
    slices = applying.load_slices(records, [one.key[1:] for one in stored])
    found = []
    for one in stored:
        service = applying.load_object(one)
        assert isinstance(service, Service)
        found.append(ServiceStatus(service, tuple(_backends(service, slices[one.key[1:]], here, tally))))
    return found


def port_forwards(records: Records, maps: Maps) -> list[PortForward]:
    """All ports of the node that lead to a pod, by name."""
    here, tally = applying.here(records), by_listener(records, maps)
    return [
        PortForward(
            protocol=one.protocol.lower(),
            addresses=tuple(one.addresses(here)),
            port=one.port,
            target=End(one.target.address, one.target.port),
            flows=tally[(forwarding.NAMESPACE, one.name, "", one.protocol, one.target)],
        )
        for one in forwarding.recorded(records)
    ]


def _backends(
    service: Service,
    slices: list[EndpointSlice],
    here: plan.Here,
    tally: Tally[Listener],
) -> list[Backend]:
    """The endpoints that serve each of a service's ports, anywhere or only here."""
    own = [one for one in slices if one.proxied]
    found = []
    for port in service.ports:
        for at, endpoint in plan.used_endpoints(service, port, own, here):
            found.append(
                Backend(
                    address=at.address,
                    port=at.port,
                    protocol=at.protocol,
                    node=endpoint.node_name,
                    name=endpoint.target_name,
                    local=endpoint.node_name == here.name,
                    state=_state(endpoint),
                    flows=tally[(service.namespace, service.name, port.name, port.protocol, at)],
                )
            )
    return found


def _state(endpoint: Endpoint) -> BackendState:
    """Of one that may be chosen, or drains."""
    if not endpoint.weight:
        return "draining"
    return "active" if endpoint.ready else "terminating"
