"""The facade: one object through which Python steers a datapath, and the command line, too.

from pydatapath import Datapath
with Datapath.open() as datapath:
    for service in datapath.services:
        print(service.service.key, len(service.backends))
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Self

from pydatapath import applying, forwarding, instance, leftovers, plan
from pydatapath.applying import Outcome
from pydatapath.errors import Conflict, DatapathError, ManifestError, NotFound, Refused
from pydatapath.instance import Instance
from pydatapath.interrupts import deferred
from pydatapath.kernel import netns
from pydatapath.kernel.layout import Family
from pydatapath.kernel.maps import Maps
from pydatapath.kinds import split_key
from pydatapath.model import EndpointSlice, Manifested, Service
from pydatapath.model import Node as NodeObject
from pydatapath.records import Key, Records, Stored

# What `apply` does not need is imported where it is used: a command has 0.15 s
if TYPE_CHECKING:
    from pydatapath import editing
    from pydatapath.node import Node, Options
    from pydatapath.tracking import FlowFilter
    from pydatapath.views import Difference, Flow, NatMapping, NatStats, PortForward, ServiceStatus, Status

__all__ = ["Datapath"]


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
    def load(
        cls,
        options: Options | None = None,
        name: str = instance.DEFAULT,
        netns: str = "",
        *,
        break_flows: bool = False,
    ) -> Self:
        """Loads a datapath, or exchanges the one that is loaded. Raises DatapathError; then all is as it was.

        Raises LayoutError where open connections would break: `break_flows` lets them.
        """
        from pydatapath import loading
        from pydatapath.node import Options

        which = instance.here(name, netns)
        node = loading.load(which, options or Options(), break_flows=break_flows)
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

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Records]:
        """The instance's lock, and its records. What is written in the maps then is in effect, also after a load that
        was killed when it had put them aside.
        """
        with self.instance.locked():
            if leftovers.folders(self.instance):
                from pydatapath import carrying

                with netns.entered(self.instance.netns_path):
                    carrying.restore(self.instance)
            with Records(self.instance.records) as records:
                applying.complete(records)
                yield records

    def unload(self) -> None:
        """Takes the datapath out of the kernel and leaves the host as it was."""
        from pydatapath import loading

        self.close()
        loading.unload(self.instance)

    # Objects

    def apply(
        self,
        objects: Iterable[Manifested],
        *,
        prune: bool = False,
        dry_run: bool = False,
        keep_going: bool = False,
        faults: Sequence[ManifestError] = (),
    ) -> list[Outcome]:
        """Makes these objects, all or none; with `prune` deletes all others. Says what became of each. They are what
        `manifests.read(paths).objects` finds in files, or `manifests.parse(document, source)` in a dict.

        `faults` are those that could not be read, as `manifests.read(..., keep_going=True)` gives them. Raises Refused,
        with an error for each of these and for each object that claims what another one has. With `keep_going` nothing
        is raised for them: all others are made, and what is refused, or could not be read, stays as it was. Raises
        KernelError where a map is full.
        """
        with self._changing() as records:
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

    def diff(
        self, objects: Iterable[Manifested], *, prune: bool = False, faults: Sequence[ManifestError] = ()
    ) -> tuple[list[Difference], list[str]]:
        """What `apply` would change, and the sentences that it would warn with; nothing is done. Raises as `apply`."""
        from pydatapath import comparing

        with self._changing() as records:
            return comparing.differences(records, self._maps, objects, prune=prune, faults=faults)

    def delete(self, keys: Iterable[tuple[str, str, str]], *, keep_going: bool = False) -> list[Outcome]:
        """Deletes objects by kind, namespace and name. Raises NotFound, and then deletes none; with `keep_going` all
        others are deleted, and each that does not exist has an outcome with that error.
        """
        with self._changing() as records:
            wanted = dict.fromkeys(keys)
            absent = [
                Outcome(*one, "refused", self._no_such(records, *one)) for one in wanted if not records.object(*one)
            ]
            if absent and not keep_going and (error := absent[0].error):
                raise error
            there = wanted.keys() - {one.key for one in absent}
            return [*applying.apply(records, self._maps, (), delete=there | self._by_hand(records, there)), *absent]

    @staticmethod
    def _by_hand(records: Records, keys: Collection[Key]) -> set[Key]:
        """The slices that `backend add` has made for these services: nobody else would delete them."""
        from pydatapath import editing

        services = [(namespace, name) for kind, namespace, name in keys if kind == "Service"]
        slices = applying.load_slices(records, services).values()
        made = [one for each in slices for one in each if editing.is_by_hand(one)]
        return {("EndpointSlice", one.namespace, one.name) for one in made}

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
        from pydatapath import editing

        namespace, name = split_key(key)
        with self._changing() as records:
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
        try:
            place = ip_address(address)
        except ValueError:
            return ""  # making the object refuses it
        own = any(place in ip_network(network) for network in records.get("pod_networks", []))
        return str(records.get("node_name", "")) if own else ""

    def delete_service(self, key: str) -> list[Outcome]:
        """Deletes a service and its slices. Raises NotFound."""
        with self._changing() as records:
            service = self._stored_service(records, key)
            (slices,) = records.slices([service.key[1:]]).values()
            return applying.apply(records, self._maps, (), delete=[service.key, *slices])

    def add_backend(
        self, key: str, address: str, port: int | None = None, *, node: str = "", weight: int = 1
    ) -> list[Outcome]:
        """Adds one backend to a service, or one that drains again. Raises NotFound, or Conflict where it serves."""
        from pydatapath import editing

        with self._changing() as records:
            service, slices = self._service_and_slices(records, key)
            where = node or self._node_of(records, address)
            changed = editing.add_backends(service, slices, [(address, port, where)], weight=weight)
            return applying.apply(records, self._maps, changed)

    def remove_backend(self, key: str, address: str, port: int | None = None) -> list[Outcome]:
        """Takes one backend from a service. Raises NotFound."""
        with self._changing() as records:
            return self._remove_backend(records, key, address, port)[0]

    def reset_backend(self, key: str, address: str, port: int | None = None) -> tuple[list[Outcome], int]:
        """Takes one backend from a service and ends its flows: its open connections are cut (C8). Says how many.

        Raises NotFound.
        """
        from pydatapath import editing, tracking

        with self._changing() as records, deferred():
            outcomes, listened = self._remove_backend(records, key, address, port)
            at = editing.canonical(address)
            return outcomes, tracking.end_flows_of(records, self._maps, split_key(key), at, listened)

    def _remove_backend(
        self, records: Records, key: str, address: str, port: int | None
    ) -> tuple[list[Outcome], set[int | None]]:
        """What became of the objects, and the ports where it listened."""
        from pydatapath import editing

        service, slices = self._service_and_slices(records, key)
        changed, emptied = editing.remove_backend(service, slices, address, port)
        keys = [("EndpointSlice", one.namespace, one.name) for one in emptied]
        listened = {each.port for one in (*changed, *emptied) for each in one.ports}
        return applying.apply(records, self._maps, changed, delete=keys), listened

    def drain_backend(self, key: str, address: str, port: int | None = None) -> list[Outcome]:
        """Lets one backend of a service finish its open flows and gives it no new ones. Raises NotFound."""
        from pydatapath import editing

        with self._changing() as records:
            service, slices = self._service_and_slices(records, key)
            return applying.apply(records, self._maps, editing.drain_backend(service, slices, address, port))

    def objects(self) -> list[Stored]:
        """Every object as it was applied."""
        with Records(self.instance.records) as records:
            return [one for one in records.objects() if one.kind != forwarding.KIND]

    def manifests(self) -> list[dict[str, Any]]:
        """Every object as a manifest that `apply` takes back: nodes, then each service and its slices."""
        from pydatapath import exporting

        with Records(self.instance.records) as records:
            return exporting.manifests_of(one for one in records.objects() if one.kind != forwarding.KIND)

    # Ports of the node that lead to a pod

    @property
    def port_forwards(self) -> list[PortForward]:
        """All of them, by name."""
        from pydatapath import listing

        with Records(self.instance.records) as records:
            return listing.port_forwards(records, self._maps)

    def unreachable_port_forwards(self) -> list[str]:
        """A sentence about each of them that nobody can call, as its address is no place of node ports any more."""
        with Records(self.instance.records) as records:
            return forwarding.unreachable(forwarding.recorded(records), applying.here(records))

    def add_port_forward(self, forward: forwarding.Forward) -> None:
        """Lets a port of the node lead to a pod. Raises DatapathError where the port is another's, or the target can be
        no pod's, Conflict where the port is a program's on the node.
        """
        from pydatapath import egress
        from pydatapath.kernel import host
        from pydatapath.node import options_of

        forward = forwarding.canonical(forward)
        with self._changing() as records:
            here, options = applying.here(records), options_of(records)
            places = [plan.Address(at, forward.port, forward.protocol) for at in forward.addresses(here)]
            node_ports = egress.port_range(options.nodeport_range, "--nodeport-range")
            forwarding.check(forward, here, node_ports, records.holders(places))
            with netns.entered(self.instance.netns_path):
                own = [str(one) for one in host.survey().addresses]
                pods = (*records.get("pod_networks", []), *options.cluster_cidr)
                forwarding.check_target(forward, own, records.get("service_networks", []), pods)
                for at in places:
                    _refuse_used(forward, at)
            applying.change_forwards(records, self._maps, add=[forward])

    def delete_port_forward(self, port: int, protocol: str, address: str = "") -> list[str]:
        """Lets a port be the node's own again; open connections go on. Without an address: of those for all addresses.
        Raises NotFound.
        """
        with self._changing() as records:
            wanted = "" if address in forwarding.UNSPECIFIED.values() else address
            found = [
                one
                for one in forwarding.recorded(records)
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
        from pydatapath import listing

        with Records(self.instance.records) as records:
            return listing.services(records, self._maps, [self._stored_service(records, key)])[0]

    @property
    def services(self) -> list[ServiceStatus]:
        """Every service with its backends, by namespace and name."""
        from pydatapath import listing

        with Records(self.instance.records) as records:
            return listing.services(records, self._maps, records.objects("Service"))

    def _stored_service(self, records: Records, key: str) -> Stored:
        namespace, name = split_key(key)
        stored = records.object("Service", namespace, name)
        if stored is None:
            raise self._no_such(records, "Service", namespace, name)
        return stored

    def _service_and_slices(self, records: Records, key: str) -> tuple[Service, list[EndpointSlice]]:
        stored = self._stored_service(records, key)
        (slices,) = applying.load_slices(records, [stored.key[1:]]).values()
        service = applying.load_object(stored)
        assert isinstance(service, Service)
        return service, slices

    @property
    def nodes(self) -> list[NodeObject]:
        """Every Node object, by name."""
        with Records(self.instance.records) as records:
            found = [applying.load_object(one) for one in records.objects("Node")]
        return [one for one in found if isinstance(one, NodeObject)]

    @property
    def options(self) -> Options:
        """What it was loaded with."""
        from pydatapath.node import options_of

        with Records(self.instance.records) as records:
            return options_of(records)

    @property
    def mended(self) -> str:
        """What the last `load` had to mend of the records, as a sentence; "" for nothing."""
        with Records(self.instance.records) as records:
            return str(records.get("mended", ""))

    @staticmethod
    def _no_such(records: Records, kind: str, namespace: str, name: str) -> NotFound:
        import difflib

        names = ["/".join(filter(None, one.key[1:])) for one in records.objects(kind)]
        meant = "/".join(filter(None, (namespace, name)))
        near = difflib.get_close_matches(meant, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"`pydatapath {kind.lower()} list` shows those that do"
        return NotFound(f"{kind} {meant} does not exist", hint=hint)

    # Flows and state

    def flows(self, wanted: FlowFilter | None = None) -> list[Flow]:
        """Every live flow, or those that are wanted, oldest silence first."""
        from pydatapath import tracking

        with Records(self.instance.records) as records:
            found = [one.flow for one in tracking.flows(records, self._maps, wanted)]
        return sorted(found, key=lambda flow: (-flow.idle, str(flow.original)))

    def flush_flows(self, wanted: FlowFilter | None = None) -> int:
        """Ends all flows, or those that are wanted. Returns how many. Raises NotFound where their service is none."""
        from pydatapath import tracking

        with self._changing() as records:
            if wanted is not None and wanted.service is not None:
                self._stored_service(records, wanted.service)
            return tracking.flush(records, self._maps, wanted)

    def nat_mappings(self) -> list[NatMapping]:
        """Everything that leaves behind the node's address now, by family, protocol and inside end."""
        from pydatapath import tracking

        with Records(self.instance.records) as records:
            return tracking.mappings(records, self._maps)

    def nat_stats(self) -> NatStats:
        """How full the outside addresses are, what was dropped, and who has the most flows."""
        from pydatapath import tracking

        with Records(self.instance.records) as records:
            return tracking.nat_stats(records, self._maps)

    def status(self, *, check: bool | None = None) -> Status:
        """All of it: where it hangs, what the maps hold, and what is not as it was left (drift). `check`: whether the
        maps are compared with all objects, which takes a second for 10,000 services; None: where these are few.
        """
        from pydatapath import reporting

        return reporting.status(self.instance, self._maps, check=check)

    def repair(self) -> list[str]:
        """Mends what `status` calls drift, and says what that was. Raises KernelError where something is left."""
        from pydatapath import repairing

        self._maps.close()  # pins may be exchanged
        return repairing.repair(self.instance)

    def translated_elsewhere(self) -> list[str]:
        """A sentence about each of netfilter's chains that translates what pods send, where we do (N89)."""
        from pydatapath import reporting

        with Records(self.instance.records) as records:
            return reporting.translated_elsewhere(self.instance, records)


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
