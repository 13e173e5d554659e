"""The facade: one object through which Python steers a datapath, and the command line, too.

from pydatapath import Datapath
with Datapath.open() as datapath:
    for service in datapath.services:
        print(service.service.key, len(service.backends))
"""

from __future__ import annotations

import difflib
import errno
import socket
from collections import Counter as Tally
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Final, Self

from pydatapath import applying, editing, egress, forwarding, instance, plan
from pydatapath.applying import Outcome
from pydatapath.errors import Conflict, DatapathError, ManifestError, NotFound, Refused
from pydatapath.instance import Instance
from pydatapath.interrupts import deferred
from pydatapath.kernel import flowtable, libbpf, nattable, netns, tables, tc
from pydatapath.kernel.layout import MAPS, Family, Hook, MapType
from pydatapath.kernel.maps import Maps
from pydatapath.model import Backend, BackendState, Endpoint, EndpointSlice, Service
from pydatapath.node import Node, Options
from pydatapath.records import HostChange, Records, Stored
from pydatapath.views import (
    End,
    Flow,
    InterfaceStatus,
    MapStatus,
    NatMapping,
    NatStats,
    PortForward,
    ServiceStatus,
    Status,
)

__all__ = ["Datapath", "FlowFilter", "split_key"]

NAT_DROPS: Final = ("drop_ports_taken", "drop_unasked", "drop_untranslated")
# Where a backend of one service port listens: namespace, service, port name, protocol, address
Listener = tuple[str, str, str, str, plan.Address]


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows are meant: those for which all holds that is said. Addresses are in their canonical form.

    `service`: `namespace/name` or `name`; `src`: who called; `dst`: the called address, or the backend's; `state`: new,
    established or closing.
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


class Datapath:
    """A loaded datapath. A context manager; make one with `open` or `load`."""

    def __init__(self, which: Instance) -> None:
        self.instance = which
        self.node: Node | None = None  # known after `load`
        self._maps = Maps(which.map_pins)

    @classmethod
    def open(cls, name: str = instance.DEFAULT, netns: str = "") -> Self:
        """The loaded datapath of this name, in this namespace (a name, path or pid; "": the current one).

        Raises NotLoaded.
        """
        return cls(instance.find(name, netns))

    @classmethod
    def load(cls, options: Options | None = None, name: str = instance.DEFAULT, netns: str = "") -> Self:
        """Loads a datapath, or exchanges the one that is loaded. Raises DatapathError; then all is as it was."""
        from pydatapath import loading

        which = instance.here(name, netns)
        node = loading.load(which, options or Options())
        made = cls(which)
        made.node = node
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the maps. What is loaded stays loaded."""
        self._maps.close()

    def unload(self) -> None:
        """Takes the datapath out of the kernel and leaves the host as it was."""
        from pydatapath import loading

        self.close()
        loading.unload(self.instance)

    # Objects

    def apply(
        self,
        objects: Iterable[Service | EndpointSlice],
        *,
        prune: bool = False,
        dry_run: bool = False,
        keep_going: bool = False,
        faults: Sequence[ManifestError] = (),
    ) -> list[Outcome]:
        """Makes these objects, all or none; with `prune` deletes all others. Says what became of each.

        `faults` are those that could not be read, as `manifests.read(..., keep_going=True)` gives them. Raises Refused,
        with an error for each of these and for each object that claims what another one has. With `keep_going` nothing
        is raised for them: all others are made, and what is refused, or could not be read, stays as it was. Raises
        KernelError where a map is full.
        """
        with self.instance.locked(), Records(self.instance.records) as records:
            outcomes = applying.apply(
                records,
                self._maps,
                objects,
                prune=prune,
                dry_run=dry_run,
                keep_going=keep_going,
                faults=faults,
            )
            if dry_run:
                records.rollback()
            return outcomes

    def delete(self, keys: Iterable[tuple[str, str, str]]) -> list[Outcome]:
        """Deletes objects by kind, namespace and name. Raises NotFound, and then deletes none."""
        with self.instance.locked(), Records(self.instance.records) as records:
            keys = list(keys)
            for kind, namespace, name in keys:
                if records.object(kind, namespace, name) is None:
                    raise self._no_such(records, kind, namespace, name)
            return applying.apply(records, self._maps, (), delete=keys)

    def add_service(
        self,
        key: str,
        ports: Sequence[editing.PortSpec],
        cluster_ips: Sequence[str] = (),
        backends: Iterable[tuple[str, int | None]] = (),
        *,
        families: Collection[Family] = (),
    ) -> list[Outcome]:
        """Adds a service made by hand, with backends (address, port or None for the target port).

        Without `cluster_ips` it gets a free one of the service networks, or one of each of these families. Raises
        Conflict where it exists, or its address is taken.
        """
        namespace, name = split_key(key)
        with self.instance.locked(), Records(self.instance.records) as records:
            if records.object("Service", namespace, name) is not None:
                raise Conflict(f"Service {namespace}/{name} exists already", hint="`pydatapath service delete` first")
            networks = records.get("service_networks", [])
            addresses = editing.cluster_ips_of(cluster_ips, families, networks, records.used_addresses())
            service = editing.new_service(namespace, name, addresses, ports)
            self._check_loaded(records, service)
            slices = editing.add_backends(service, [], [(*one, self._node_of(records, one[0])) for one in backends])
            try:
                return applying.apply(records, self._maps, [service, *slices])
            except Refused as refused:  # one service, one error
                raise refused.errors[0] from None

    @staticmethod
    def _check_loaded(records: Records, service: Service) -> None:
        """Raises DatapathError where nobody could call a service: none of its families is loaded."""
        if not {Family.of(address) for address in service.cluster_ips} & set(applying.here(records).families):
            raise DatapathError(
                f"Service {service.key} has an IPv6 address only, and IPv6 is not loaded here",
                hint="`pydatapath load` takes IPv6 where the bridge has an address of it, or an option names one",
            )

    @staticmethod
    def _node_of(records: Records, address: str) -> str:
        """This node's name where the address is one of its pod networks', else "": not known."""
        own = any(ip_address(address) in ip_network(network) for network in records.get("pod_networks", []))
        return str(records.get("node_name", "")) if own else ""

    def delete_service(self, key: str) -> list[Outcome]:
        """Deletes a service and its slices. Raises NotFound."""
        namespace, name = split_key(key)
        with self.instance.locked(), Records(self.instance.records) as records:
            self._stored_service(records, key)
            keys = [("Service", namespace, name), *(one.key for one in records.slices(namespace, name))]
            return applying.apply(records, self._maps, (), delete=keys)

    def add_backend(
        self, key: str, address: str, port: int | None = None, *, node: str = "", weight: int = 1
    ) -> list[Outcome]:
        """Adds one backend to a service, or one that drains again. Raises NotFound, or Conflict where it serves."""
        with self.instance.locked(), Records(self.instance.records) as records:
            service, slices = self._service_and_slices(records, key)
            where = node or self._node_of(records, address)
            changed = editing.add_backends(service, slices, [(address, port, where)], weight=weight)
            return applying.apply(records, self._maps, changed)

    def remove_backend(self, key: str, address: str, port: int | None = None) -> list[Outcome]:
        """Takes one backend from a service. Raises NotFound."""
        with self.instance.locked(), Records(self.instance.records) as records:
            return self._remove_backend(records, key, address, port)[0]

    def reset_backend(self, key: str, address: str, port: int | None = None) -> tuple[list[Outcome], int]:
        """Takes one backend from a service and ends its flows: its open connections are cut (C8). Says how many.

        Raises NotFound.
        """
        with self.instance.locked(), deferred(), Records(self.instance.records) as records:
            outcomes, listened = self._remove_backend(records, key, address, port)
            over = self._backends_over(records, key, editing.canonical(address), listened)
            return outcomes, flowtable.end_flows_of(self._maps, over)

    def _remove_backend(
        self, records: Records, key: str, address: str, port: int | None
    ) -> tuple[list[Outcome], set[int | None]]:
        """What became of the objects, and the ports where it listened."""
        service, slices = self._service_and_slices(records, key)
        changed, emptied = editing.remove_backend(service, slices, address, port)
        keys = [("EndpointSlice", one.namespace, one.name) for one in emptied]
        listened = {each.port for one in (*changed, *emptied) for each in one.ports}
        return applying.apply(records, self._maps, changed, delete=keys), listened

    def _backends_over(
        self, records: Records, key: str, address: str, ports: Collection[int | None]
    ) -> set[flowtable.BackendKey]:
        """The backends of a service at an address that have flows and serve it no more."""
        numbers = set(records.numbers_of(*split_key(key)).values())
        serving = tables.read_live(self._maps, numbers).backends
        used = flowtable.backends_in_use(self._maps)
        known = tables.read_backends(self._maps, (number for number, _ in used))
        return {
            (number, generation)
            for number, generation in used
            if number not in serving
            and (one := known.get(number))
            and (one.generation, one.service in numbers) == (generation, True)
            and one.address.address == address
            and one.address.port in ports
        }

    def drain_backend(self, key: str, address: str, port: int | None = None) -> list[Outcome]:
        """Lets one backend of a service finish its open flows and gives it no new ones. Raises NotFound."""
        with self.instance.locked(), Records(self.instance.records) as records:
            service, slices = self._service_and_slices(records, key)
            return applying.apply(records, self._maps, editing.drain_backend(service, slices, address, port))

    def objects(self) -> list[Stored]:
        """Every object as it was applied."""
        with Records(self.instance.records) as records:
            return [one for one in records.objects() if one.kind != forwarding.KIND]

    # Ports of the node that lead to a pod

    @property
    def port_forwards(self) -> list[PortForward]:
        """All of them, by name."""
        with Records(self.instance.records) as records:
            here, tally = applying.here(records), self._flows_by_listener(records)
            return [
                PortForward(
                    protocol=one.protocol.lower(),
                    addresses=tuple(one.addresses(here)),
                    port=one.port,
                    target=End(one.target.address, one.target.port),
                    flows=tally[(forwarding.NAMESPACE, one.name, "", one.protocol, one.target)],
                )
                for one in _forwards(records)
            ]

    def add_port_forward(self, forward: forwarding.Forward) -> None:
        """Lets a port of the node lead to a pod. Raises DatapathError where the port is another's, Conflict where it is
        a program's on the node.
        """
        with self.instance.locked(), Records(self.instance.records) as records:
            here, options = applying.here(records), Options.from_mapping(records.get("options", {}))
            places = [plan.Address(at, forward.port, forward.protocol) for at in forward.addresses(here)]
            node_ports = egress.port_range(options.nodeport_range, "--nodeport-range")
            forwarding.check(forward, here, node_ports, records.holders(places))
            with netns.entered(self.instance.netns_path):
                for at in places:
                    _refuse_used(forward, at)
            applying.change_forwards(records, self._maps, add=[forward])

    def delete_port_forward(self, port: int, protocol: str, address: str = "") -> list[str]:
        """Lets a port be the node's own again; open connections go on. Without an address: of those for all addresses.
        Raises NotFound.
        """
        with self.instance.locked(), Records(self.instance.records) as records:
            wanted = "" if address in forwarding.UNSPECIFIED.values() else address
            found = [
                one
                for one in _forwards(records)
                if (one.port, one.protocol, one.address) == (port, protocol.upper(), wanted)
                and (wanted == address or forwarding.UNSPECIFIED[one.family] == address)
            ]
            if not found:
                raise NotFound(
                    f"port-forward {f'{address}:' if address else ''}{port}/{protocol.lower()} does not exist",
                    hint="`pydatapath port-forward list` shows those that do",
                )
            applying.change_forwards(records, self._maps, delete=found)
            return [one.name for one in found]

    def service(self, key: str) -> ServiceStatus:
        """One service by `namespace/name` or `name`. Raises NotFound, with the names that come near."""
        with Records(self.instance.records) as records:
            return self._service_statuses(records, [self._stored_service(records, key)])[0]

    @property
    def services(self) -> list[ServiceStatus]:
        """Every service with its backends, by namespace and name."""
        with Records(self.instance.records) as records:
            return self._service_statuses(records, records.objects("Service"))

    def _stored_service(self, records: Records, key: str) -> Stored:
        namespace, name = split_key(key)
        stored = records.object("Service", namespace, name)
        if stored is None:
            raise self._no_such(records, "Service", namespace, name)
        return stored

    def _service_and_slices(self, records: Records, key: str) -> tuple[Service, list[EndpointSlice]]:
        stored = self._stored_service(records, key)
        slices = [applying.load_object(one) for one in records.slices(stored.namespace, stored.name)]
        service = applying.load_object(stored)
        assert isinstance(service, Service)
        return service, [one for one in slices if isinstance(one, EndpointSlice)]

    @property
    def options(self) -> Options:
        """What it was loaded with."""
        with Records(self.instance.records) as records:
            return Options.from_mapping(records.get("options", {}))

    def _service_statuses(self, records: Records, stored: list[Stored]) -> list[ServiceStatus]:
        here = applying.here(records)
        tally = self._flows_by_listener(records)
        found = []
        for one in stored:
            service = applying.load_object(one)
            assert isinstance(service, Service)
            slices = [applying.load_object(part) for part in records.slices(one.namespace, one.name)]
            found.append(ServiceStatus(service, tuple(_backends(service, slices, here, tally))))
        return found

    def _flows_by_listener(self, records: Records) -> Tally[Listener]:
        """How many flows each backend of each service port has."""
        tally: Tally[Listener] = Tally()
        pairs = flowtable.flows_by_backend(self._maps)
        ports = records.ports() if pairs else {}
        backends = tables.read_backends(self._maps, (number for number, _ in pairs))
        for (number, generation), count in pairs.items():
            backend = backends.get(number)
            if backend is not None and backend.generation == generation and backend.service in ports:
                port = ports[backend.service]
                tally[(port.namespace, port.service, port.port, port.protocol, backend.address)] += count
        return tally

    @staticmethod
    def _no_such(records: Records, kind: str, namespace: str, name: str) -> NotFound:
        names = [f"{one.namespace}/{one.name}" for one in records.objects(kind)]
        near = difflib.get_close_matches(f"{namespace}/{name}", names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"`pydatapath {kind.lower()} list` shows those that do"
        return NotFound(f"{kind} {namespace}/{name} does not exist", hint=hint)

    # Flows and state

    def flows(self, wanted: FlowFilter | None = None) -> list[Flow]:
        """Every live flow, or those that are wanted, oldest silence first."""
        found = [one.flow for one in self._tracked(wanted)]
        return sorted(found, key=lambda flow: (-flow.idle, str(flow.original)))

    def flush_flows(self, wanted: FlowFilter | None = None) -> int:
        """Ends all flows, or those that are wanted. Returns how many. Raises NotFound where their service is none."""
        with self.instance.locked():
            if wanted is not None and wanted.service is not None:
                with Records(self.instance.records) as records:
                    self._stored_service(records, wanted.service)
            found = self._tracked(wanted)
            # With all flows go those that are over, too, and what is left of others
            everything = wanted in (None, FlowFilter())
            ends = flowtable.all_ends(self._maps) if everything else {one.ends for one in found}
            flowtable.end_flows(self._maps, ends)
            return len(found)

    def _tracked(self, wanted: FlowFilter | None) -> list[flowtable.TrackedFlow]:
        """The live flows that are wanted, each with its service."""
        with Records(self.instance.records) as records:
            ports = records.ports()
        rows = list(flowtable.read_flows(self._maps))
        backends = tables.read_backends(self._maps, (number for _, (number, _), _ in rows if number))
        found = []
        for flow, (number, generation), ends in rows:
            backend = backends.get(number)
            known = backend is not None and backend.generation == generation and backend.service in ports
            named = replace(flow, service=str(ports[backend.service])) if backend and known else flow
            if wanted is None or wanted.takes(named):
                found.append(flowtable.TrackedFlow(named, (number, generation), ends))
        return found

    def nat_mappings(self) -> list[NatMapping]:
        """Everything that leaves behind the node's address now, by family, protocol and inside end."""
        return nattable.read_mappings(self._maps)

    def nat_stats(self) -> NatStats:
        """How full the outside addresses are, what was dropped, and who has the most flows."""
        with Records(self.instance.records) as records:
            options = Options.from_mapping(records.get("options", {}))
            addresses, families = records.get("egress_addresses", ()), records.get("masqueraded", ())
        found, counted = self.nat_mappings(), tables.counters(self._maps)
        ports = egress.port_range(options.snat_ports, "--snat-ports")
        node_ports = egress.port_range(options.nodeport_range, "--nodeport-range")
        return NatStats(
            tuple(families),
            options.nat_type,
            options.snat_ports,
            tuple(nattable.ports_used(found, addresses, ports, node_ports)),
            {name.removeprefix("drop_"): counted[name] for name in NAT_DROPS},
            tuple(nattable.top_sources(found)),
        )

    def status(self) -> Status:
        """All of it: where it hangs, what the maps hold, and what is not as load left it (drift)."""
        with Records(self.instance.records) as records:
            interfaces, drift = self._interfaces(records)
            maps, lost = self._map_statuses(records)
            if records.get(applying.UNFINISHED):
                lost.append("a change was interrupted before it reached the maps: `pydatapath load` finishes it")
            return Status(
                instance=self.instance.name,
                netns=self.instance.netns,
                loaded=True,
                version=records.get("version", ""),
                since=records.get("since", ""),
                node_name=records.get("node_name", ""),
                node_ips=tuple(records.get("node_ips", ())),
                interfaces=tuple(interfaces),
                maps=tuple(maps),
                services=records.count("Service"),
                backends=tables.count_backends(self._maps),
                flows=flowtable.count_flows(self._maps),
                counters=tables.counters(self._maps),
                drift=tuple(dict.fromkeys(drift + lost)),
                conflicts=tuple(str(one) for one in records.shadows()),
            )

    def _interfaces(self, records: Records) -> tuple[list[InterfaceStatus], list[str]]:
        found: dict[str, InterfaceStatus] = {}
        drift = []
        with netns.entered(self.instance.netns_path):
            for subject in records.host_changes(HostChange.FILTER):
                name, hook_name = subject.split()
                hook = Hook[hook_name]
                try:
                    filters = tc.filters(socket.if_nametoindex(name))
                except OSError:
                    drift.append(f"interface {name} is gone")
                    continue
                wanted = (tc.filter_name(self.instance.name, hook), hook.direction)
                programs = tuple(
                    {"hook": one.direction, "name": hook.program, "id": one.id, "tag": one.tag}
                    for one in filters
                    if (one.name, one.direction) == wanted
                )
                if not programs:
                    drift.append(f"interface {name} has lost its {hook.program} filter: `pydatapath load` mends it")
                known = found.get(name, InterfaceStatus(name, hook.role, ()))
                found[name] = replace(known, programs=known.programs + programs)
        return list(found.values()), drift

    def _map_statuses(self, records: Records) -> tuple[list[MapStatus], list[str]]:
        found, drift = [], []
        families, masqueraded = applying.here(records).families, records.get("masqueraded", ())
        for name, contract in MAPS.items():
            if not nattable.is_there(contract, families, masqueraded):
                continue
            if not (self.instance.map_pins / name).exists():
                drift.append(f"the map {name} is no longer pinned: `pydatapath load` makes a new one")
                continue
            table = self._maps[name]
            counted = contract.type in (MapType.HASH, MapType.LRU_HASH, MapType.DEVMAP_HASH)
            found.append(
                MapStatus(
                    name,
                    contract.type.name.lower(),
                    len(table) if counted else table.info.max_entries,
                    table.info.max_entries,
                    libbpf.map_memory(table.descriptor),
                )
            )
        return found, drift


def _forwards(records: Records) -> list[forwarding.Forward]:
    return [forwarding.Forward.read(one.manifest) for one in records.objects(forwarding.KIND)]


def _refuse_used(forward: forwarding.Forward, at: plan.Address) -> None:
    """Raises Conflict where a program of the node's listens there: it would never hear of anybody again."""
    if at.protocol == "SCTP":
        return
    family = socket.AF_INET6 if at.family is Family.IPV6 else socket.AF_INET
    kind = socket.SOCK_STREAM if at.protocol == "TCP" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as probe:
        # What has ended lately does not matter
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        try:
            probe.bind((at.address, at.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"port-forward {forward.name}: a program on the node has {at}",
                    hint="another port, or end it: `ss -lntup` shows who it is",
                ) from None


def split_key(key: str) -> tuple[str, str]:
    """`namespace/name`, or `name` in the namespace `default`."""
    namespace, slash, name = key.rpartition("/")
    return (namespace if slash else "default"), name


def _backends(
    service: Service,
    slices: list[Service | EndpointSlice],
    here: plan.Here,
    tally: Tally[Listener],
) -> list[Backend]:
    """The endpoints that serve each of a service's ports, anywhere or only here."""
    own = [one for one in slices if isinstance(one, EndpointSlice) and one.proxied]
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
