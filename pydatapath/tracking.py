"""The flows and mappings that the maps hold, each named by what the records know; and their end."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from pydatapath import egress, timers
from pydatapath.kernel import flowtable, nattable, tables
from pydatapath.kernel.maps import Maps
from pydatapath.kinds import split_key
from pydatapath.node import options_of
from pydatapath.plan import Address
from pydatapath.records import Records, ServiceKey
from pydatapath.views import Flow, NatMapping, NatStats

__all__ = ["FlowFilter", "Listener", "by_listener", "end_flows_of", "flows", "flush", "mappings", "nat_stats"]

NAT_DROPS: Final = ("drop_ports_taken", "drop_unasked", "drop_untranslated", "drop_pod_limit")
# Where a backend of one service port listens: namespace, service, port name, protocol, address
Listener: TypeAlias = tuple[str, str, str, str, Address]


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows are meant: those for which all holds that is said. Addresses are in their canonical form.

    `service`: `namespace/name` or `name`; `src`: who called; `dst`: the called address, or the backend's; `state`: new,
    answered, established or closing.
    """

    service: str | None = None
    src: str | None = None
    dst: str | None = None
    state: str | None = None

    def takes(self, flow: Flow) -> bool:
        """Whether a flow is meant."""
        return (
            (self.service is None or (flow.service or "").rpartition(":")[0] == "/".join(split_key(self.service)))
            and self.src in (None, flow.original.src)
            and self.dst in (None, flow.original.dst, flow.reply.src)
            and self.state in (None, flow.state)
        )


def flows(records: Records, maps: Maps, wanted: FlowFilter | None = None) -> list[flowtable.TrackedFlow]:
    """The live flows that are wanted, each with its service."""
    ports = records.ports()
    rows = list(flowtable.read_flows(maps, timers.recorded(records)))
    backends = tables.read_backends(maps, (number for _, (number, _), _ in rows if number))
    found = []
    for flow, (number, generation), ends in rows:
        backend = backends.get(number)
        known = backend is not None and backend.generation == generation and backend.service in ports
        named = replace(flow, service=str(ports[backend.service])) if backend and known else flow
        if wanted is None or wanted.takes(named):
            found.append(flowtable.TrackedFlow(named, (number, generation), ends))
    return found


def flush(records: Records, maps: Maps, wanted: FlowFilter | None) -> int:
    """Ends all flows, or those that are wanted. Returns how many."""
    found = flows(records, maps, wanted)
    # With all flows go those that are over, too, and what is left of others
    everything = wanted in (None, FlowFilter())
    flowtable.end_flows(maps, flowtable.all_ends(maps) if everything else {one.ends for one in found})
    return len(found)


def by_listener(records: Records, maps: Maps) -> Tally[Listener]:
    """How many flows each backend of each service port has."""
    tally: Tally[Listener] = Tally()
    pairs = flowtable.flows_by_backend(maps, timers.recorded(records))
    ports = records.ports() if pairs else {}
    backends = tables.read_backends(maps, (number for number, _ in pairs))
    for (number, generation), count in pairs.items():
        backend = backends.get(number)
        if backend is not None and backend.generation == generation and backend.service in ports:
            port = ports[backend.service]
            tally[(port.namespace, port.service, port.port, port.protocol, backend.address)] += count
    return tally


def end_flows_of(records: Records, maps: Maps, service: ServiceKey, address: str, ports: Collection[int | None]) -> int:
    """Ends the flows of a service's backends at an address that serve it no more. Returns how many."""
    numbers = set(records.numbers_of([service]).values())
    serving = tables.read_live(maps, numbers).backends
    used = flowtable.backends_in_use(maps)
    known = tables.read_backends(maps, (number for number, _ in used))
    over = {
        (number, generation)
        for number, generation in used
        if number not in serving
        and (one := known.get(number))
        and (one.generation, one.service in numbers) == (generation, True)
        and one.address.address == address
        and one.address.port in ports
    }
    return flowtable.end_flows_of(maps, timers.recorded(records), over)


def mappings(records: Records, maps: Maps) -> list[NatMapping]:
    """Everything that leaves behind the node's address now, by family, protocol and inside end."""
    return nattable.read_mappings(maps, timers.recorded(records))


def nat_stats(records: Records, maps: Maps) -> NatStats:
    """How full the outside addresses are, what was dropped, and who has the most flows."""
    options = options_of(records)
    addresses = records.get("egress_addresses", ())
    services = records.ports_of_services(addresses)
    found, counted = mappings(records, maps), tables.counters(maps)
    ports = egress.port_range(options.snat_ports, "--snat-ports")
    usable = egress.usable_ports(ports, egress.port_range(options.nodeport_range, "--nodeport-range"))
    asked = {*range(ports[0], ports[1] + 1)}

    def looked_for(address: str, protocol: str) -> set[int]:
        # Any identifier of an echo may be
        return asked if protocol.startswith("icmp") else usable - services.get((address, protocol), set())

    return NatStats(
        tuple(records.get("masqueraded", ())),
        options.nat_type,
        options.snat_ports,
        tuple(nattable.ports_used(found, addresses, looked_for)),
        {name.removeprefix("drop_"): counted[name] for name in NAT_DROPS},
        tuple(nattable.top_sources(found)),
    )
