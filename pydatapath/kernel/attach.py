"""Programs at tc hooks and the node's routes to its services, by pyroute2: made, read back, and taken away again.

Filters sit at our own priority and handle; nobody else's filter, nor a clsact that we did not make, is touched.
Everything here works in the namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Self

from pydatapath.errors import Conflict, KernelError
from pydatapath.kernel import host, libbpf, rtnetlink, tc
from pydatapath.kernel.gateway import ROUTE_PROTOCOL, SERVICE_GATEWAY_MAC, SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family, Hook
from pydatapath.kernel.tc import HANDLE, PRIORITY, filter_name

__all__ = ["Attacher", "Place"]

RTNH_F_ONLINK: Final = 4
NUD_PERMANENT: Final = 0x80
NLM_F_REQUEST, NLM_F_REPLACE, NLM_F_CREATE = 1, 0x100, 0x400
TCA_BPF_FLAG_ACT_DIRECT: Final = 1
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

    def as_filter(self, instance: str) -> tc.Filter:
        """What is to hang there."""
        name = filter_name(instance, self.hook)
        return tc.Filter(self.index, self.hook.direction, PRIORITY, HANDLE, "bpf", name, 0, "")


def _replacing(one: tc.Filter, program: int) -> bytes:
    """The message that hangs a program (its descriptor) up, in the place of what hangs there."""
    options = [("TCA_BPF_FD", program), ("TCA_BPF_NAME", one.name), ("TCA_BPF_FLAGS", TCA_BPF_FLAG_ACT_DIRECT)]
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
    return _message(tc.RTM_NEWTFILTER, flags, one, ("TCA_OPTIONS", {"attrs": options}))


def _deleting(one: tc.Filter) -> bytes:
    return _message(tc.RTM_DELTFILTER, NLM_F_REQUEST, one)


def _message(kind: int, flags: int, one: tc.Filter, *attributes: tuple[str, object]) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    made: Any = tcmsg()
    made["header"]["type"], made["header"]["flags"] = kind, flags
    made["index"], made["handle"], made["parent"] = one.interface, one.handle, tc.PARENTS[one.direction]
    made["info"] = one.priority << 16 | one.protocol
    made["attrs"] = [("TCA_KIND", one.kind), *attributes]
    made.encode()
    return bytes(made.data)


def _undetached(one: tc.Filter, code: int) -> KernelError:
    name = dict(socket.if_nameindex()).get(one.interface, f"interface {one.interface}")
    return KernelError(f"cannot detach {one.name} from {name}: {os.strerror(code)}", errno=code)


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

    def exchange(
        self,
        places: Sequence[Place],
        instance: str,
        over: Sequence[tc.Filter] = (),
        at_last: Callable[[], object] = lambda: None,
    ) -> dict[Place, KernelError]:
        """Puts programs at their hooks, in the place of ours where some hang there, and takes away filters that are
        over. What did not get there, and why. Raises KernelError where one that is over stays. `at_last`: what is done
        just before.

        All go to the kernel in one message, so that a kill leaves one load's programs: where maps have other sizes,
        what those of another enter they do not know.
        """
        messages = [_replacing(one.as_filter(instance), one.program) for one in places]
        messages += map(_deleting, over)
        at_last()
        refused = rtnetlink.change(messages)
        failed = {}
        for number, code in refused.items():
            if number < len(places):
                place = places[number]
                what = f"cannot attach {place.hook.program} to {place.where}"
                failed[place] = KernelError(f"{what}: {os.strerror(code)}", errno=code)
            elif code not in GONE:
                raise _undetached(over[number - len(places)], code)
        for place in places:
            if place not in failed and not self._runs(place, instance):
                failed[place] = KernelError(f"attaching {place.hook.program} to {place.where} had no effect")
        return failed

    def _runs(self, place: Place, instance: str) -> bool:
        there = self.ours(place.index, place.hook, instance)
        return there is not None and there.id == libbpf.program_info(place.program).id

    @contextlib.contextmanager
    def or_as_before(
        self,
        hanging: Sequence[tc.Filter],
        programs: Callable[[], contextlib.AbstractContextManager[Mapping[int, int]]],
        instance: str,
    ) -> Iterator[None]:
        """Where the block fails, these filters of ours hang where they did, with their programs (what opens them gives
        descriptors by ids), and no others do. By one message, as `exchange`, and before anything else is undone.
        """
        try:
            yield
        except BaseException:
            over = []
            with contextlib.suppress(KernelError, OSError):  # what cannot be listed cannot be over
                there = [one for at, _ in socket.if_nameindex() for one in tc.own_filters(at, instance, ())]
                kept = {one.place for one in hanging}
                over = [_deleting(one) for one in there if one.place not in kept]
            with contextlib.suppress(KernelError, OSError), programs() as opened:
                messages = [_replacing(one, opened[one.id]) for one in hanging if one.id in opened]
                rtnetlink.change([*messages, *over])
            raise

    def remove(self, over: Sequence[tc.Filter]) -> None:
        """Takes filters away, wherever they hang; not there is well, too. Raises KernelError."""
        for number, code in rtnetlink.change([*map(_deleting, over)]).items():
            if code not in GONE:
                raise _undetached(over[number], code)

    @staticmethod
    def ours(index: int, hook: Hook, instance: str) -> tc.Filter | None:
        """Our filter at a hook, None where there is none."""
        return next((one for one in tc.filters(index) if tc.is_at_its_place(one, instance, hook)), None)

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
