"""Programs at tc hooks and the node's routes to its services, by pyroute2: made, read back, and taken away again.

Filters sit at our own priority and handle; nobody else's filter, nor a clsact that we did not make, is touched.
Everything here works in the namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Self

from pydatapath.errors import Conflict, KernelError
from pydatapath.kernel import host, rtnetlink, tc
from pydatapath.kernel.gateway import ROUTE_PROTOCOL, SERVICE_GATEWAY_MAC, SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family, Hook
from pydatapath.kernel.tc import HANDLE, PRIORITY, filter_name

__all__ = ["Attacher", "Place"]

CLSACT_HANDLE: Final = 0xFFFF0000
RTNH_F_ONLINK: Final = 4
SOCKET_FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
NUD_PERMANENT: Final = 0x80
GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Place:
    """A hook of an interface, and the program (its descriptor) that is to hang there."""

    index: int
    name: str
    hook: Hook
    program: int

    @property
    def where(self) -> str:
        """For messages: "veth0 ingress"."""
        return f"{self.name} {self.hook.direction}"


class Attacher:
    """One netlink socket, for attaching and detaching. A context manager."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute

        self._ipr: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ipr.close()

    def add_clsact(self, index: int, name: str) -> bool:
        """Makes the clsact qdisc of an interface. False: there was one already."""
        if tc.has_clsact(index):
            return False
        with self._attempt(f"add clsact to {name}"):
            self._ipr.tc("add", "clsact", index)
        return True

    def delete_clsact(self, index: int, name: str) -> None:
        """Takes clsact away, unless somebody's filter hangs there now."""
        if not tc.filters(index):
            with self._attempt(f"delete clsact of {name}", ignore=GONE):
                self._ipr.tc("del", "clsact", index)

    def exchange(self, places: Sequence[Place], instance: str) -> dict[Place, KernelError]:
        """Puts programs at their hooks, in the place of ours where some hang there. What did not get there, and why.

        All go to the kernel in one message, so that a kill leaves either load's programs at all of them: where maps
        have other sizes, what one of the two enters the other does not know. Raises Conflict, before anything is
        exchanged, where a place is taken by somebody else.
        """
        for one in places:
            self.refuse_foreign(one.index, one.name, one.hook, instance)
        messages = [self._replacing(one, instance) for one in places]
        failed = {}
        for number, code in rtnetlink.change(messages).items():
            what = f"cannot attach {places[number].hook.program} to {places[number].where}"
            failed[places[number]] = KernelError(f"{what}: {os.strerror(code)}", errno=code)
        for one in places:
            if one not in failed and self.ours(one.index, one.hook, instance) is None:
                failed[one] = KernelError(f"attaching {one.hook.program} to {one.where} had no effect")
        return failed

    def _replacing(self, one: Place, instance: str) -> bytes:
        """The message that hangs a program up. Compiled as by pyroute2's IPBatch, which has a socket and an event loop
        of its own: too much where descriptors are few.
        """
        self._ipr.asyncore.batch = bytearray()
        try:
            self._ipr.tc(
                "replace-filter",
                "bpf",
                one.index,
                handle=HANDLE,
                prio=PRIORITY,
                fd=one.program,
                name=filter_name(instance, one.hook),
                parent=tc.PARENTS[one.hook.direction],
                direct_action=True,
            )
            return bytes(self._ipr.asyncore.batch)
        finally:
            self._ipr.asyncore.batch = None

    def attach(self, index: int, name: str, hook: Hook, program: int, instance: str) -> None:
        """As `exchange`, of one. Raises KernelError where it cannot be done."""
        for error in self.exchange([Place(index, name, hook, program)], instance).values():
            raise error

    def detach(self, index: int, name: str, hook: Hook, instance: str) -> bool:
        """Takes our program from a hook. False: it was not there."""
        if self.ours(index, hook, instance) is None:
            return False
        with self._attempt(f"detach {hook.program} from {name}", ignore=GONE):
            self._ipr.tc("del-filter", "bpf", index, handle=HANDLE, prio=PRIORITY, parent=tc.PARENTS[hook.direction])
        return True

    @staticmethod
    def ours(index: int, hook: Hook, instance: str) -> tc.Filter | None:
        """Our filter at a hook, None where there is none."""
        return next((one for one in tc.filters(index) if tc.is_at_its_place(one, instance, hook)), None)

    def remove(self, one: tc.Filter, name: str) -> None:
        """Takes one filter of ours away, wherever it hangs."""
        with self._attempt(f"detach {one.name} from {name}", ignore=GONE):
            self._ipr.tc(
                "del-filter",
                "bpf",
                one.interface,
                handle=one.handle,
                prio=one.priority,
                parent=tc.PARENTS[one.direction],
            )

    @staticmethod
    def refuse_foreign(index: int, name: str, hook: Hook, instance: str) -> None:
        """Raises Conflict where our place at an interface is taken by somebody else."""
        where = f"{name} {hook.direction}"
        for one in tc.filters(index):
            at_our_place = (one.direction, one.priority) == (hook.direction, PRIORITY)
            if at_our_place and one.name != filter_name(instance, hook):
                raise Conflict(
                    f"{where} already has a filter at priority {PRIORITY}: {one.name or one.kind}, not ours",
                    hint=f"`tc filter show dev {where}` shows it; unload what put it there",
                )

    def add_service_route(
        self, network: IPv4Network | IPv6Network, bridge: int, source: IPv4Address | IPv6Address
    ) -> None:
        """The node's own way to its services: over the bridge, by a next hop that nobody has to be asked for.

        Raises Conflict where a route to exactly this network exists.
        """
        gateway = SERVICE_GATEWAYS[Family(network.version)]
        self.set_service_gateway(gateway, bridge)
        route = {"dst": str(network), "gateway": str(gateway), "oif": bridge, "flags": RTNH_F_ONLINK}
        with self._attempt(f"add a route to the service network {network}", hint="--service-cidr names another one"):
            self._add_route(network, source, {**route, "proto": ROUTE_PROTOCOL})

    def set_service_gateway(self, gateway: IPv4Address | IPv6Address, bridge: int) -> None:
        """Makes or mends the next hop's neighbour entry."""
        with self._attempt(f"add the neighbour {gateway}"):
            self._ipr.neigh(
                "replace", dst=str(gateway), lladdr=SERVICE_GATEWAY_MAC, ifindex=bridge, state=NUD_PERMANENT
            )

    def _add_route(
        self, network: IPv4Network | IPv6Network, source: IPv4Address | IPv6Address, route: dict[str, Any]
    ) -> None:
        from pyroute2 import NetlinkError

        try:
            self._ipr.route("add", **route, prefsrc=str(source))
        except NetlinkError as error:
            if isinstance(network, IPv4Network) or error.code != errno.EINVAL:
                raise
            # An IPv6 address may be no source before the kernel has asked whether it is another's, which it does when
            # the bridge has a port that is up. With none named it takes the bridge's, too (RFC 6724 5, rule 5).
            self._ipr.route("add", **route)

    def delete_service_route(self, network: IPv4Network | IPv6Network, bridge: int) -> None:
        """Takes our route away; not there is well, too."""
        with self._attempt(f"delete the route to {network}", ignore=GONE):
            self._ipr.route("del", dst=str(network), oif=bridge, proto=ROUTE_PROTOCOL)

    def delete_all_service_routes(self) -> None:
        """Takes every route of ours away, and their next hops: for when nobody knows any more which they were."""
        for network, bridge in host.service_routes():
            self.delete_service_route(network, bridge)
            self.delete_service_gateway(SERVICE_GATEWAYS[Family(network.version)], bridge)

    def delete_service_gateway(self, gateway: IPv4Address | IPv6Address, bridge: int) -> None:
        """Takes the next hop's neighbour entry away."""
        with self._attempt(f"delete the neighbour {gateway}", ignore=GONE):
            self._ipr.neigh("del", dst=str(gateway), ifindex=bridge)

    @contextlib.contextmanager
    def _attempt(self, what: str, *, ignore: tuple[int, ...] = (), hint: str = "") -> Iterator[None]:
        """Turns pyroute2's errors, which name no object, into ours."""
        from pyroute2 import NetlinkError

        try:
            yield
        except NetlinkError as error:
            if error.code in ignore:
                return
            if error.code == errno.EEXIST:
                raise Conflict(f"cannot {what}: it exists already", hint=hint) from error
            raise KernelError(f"cannot {what}: {os.strerror(error.code)}", errno=error.code, hint=hint) from error
