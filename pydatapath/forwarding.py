"""Ports of the node that lead to a pod, as `docker run -p` makes them; pure.

To the kernel a forward is a service port with one backend, called where node ports answer. In the records it stands
beside services, in a namespace that no service has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

from pydatapath.errors import DatapathError
from pydatapath.fields import FieldError, unicast_of
from pydatapath.kernel.layout import Family
from pydatapath.model import Protocol
from pydatapath.plan import Frontend, PortPlan
from pydatapath.serving import Address, Here

if TYPE_CHECKING:
    from pydatapath.records import Records

__all__ = [
    "KIND",
    "NAMESPACE",
    "Forward",
    "canonical",
    "check",
    "check_target",
    "plan_forward",
    "recorded",
    "unreachable",
]

KIND: Final = "PortForward"
NAMESPACE: Final = ""
UNSPECIFIED: Final = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - how docker writes "all of the node's"
# RFC 1112's class E, which some clusters give to pods, and the address of all hosts of a link
RESERVED: Final = ip_network("240.0.0.0/4")


@dataclass(frozen=True, slots=True)
class Forward:
    """Calls of a port of the node's `address` ("": of all where node ports answer) go to `target`."""

    address: str
    port: int
    target: Address

    @property
    def protocol(self) -> Protocol:
        """The target's."""
        return self.target.protocol

    @property
    def family(self) -> Family:
        """The target's."""
        return self.target.family

    @property
    def name(self) -> str:
        """What tells it from others: `0.0.0.0:8080/tcp`."""
        return str(Address(self.address or UNSPECIFIED[self.family], self.port, self.protocol))

    @property
    def text(self) -> str:
        """For the records."""
        target = {"address": self.target.address, "port": self.target.port, "protocol": self.target.protocol}
        return json.dumps({"address": self.address, "port": self.port, "target": target}, sort_keys=True)

    @staticmethod
    def read(text: str) -> Forward:
        """Of the records."""
        found = json.loads(text)
        return Forward(found["address"], found["port"], Address(**found["target"]))

    def addresses(self, here: Here) -> list[str]:
        """Where it is called on a node."""
        own = [text for text in here.addresses if Family.of(text) is self.family]
        return [text for text in own if self.address in ("", text)]


def canonical(forward: Forward) -> Forward:
    """With both ends in their canonical form. Raises DatapathError for what is no host's address."""
    try:
        address = forward.address
        if address not in ("", *UNSPECIFIED.values()):
            address = unicast_of(address, f"port-forward {forward.name}", "no forward")
        target = unicast_of(forward.target.address, f"port-forward {forward.name}", "no pod")
    except FieldError as wrong:
        raise DatapathError(str(wrong), hint="such as `port-forward add 192.0.2.1:8080 10.244.1.11:80`") from None
    made = replace(forward, address=address, target=forward.target._replace(address=target))
    return replace(made, address="") if address == UNSPECIFIED[made.family] else made


def check_target(
    forward: Forward, own: Collection[str], service_networks: Iterable[str], pod_networks: Iterable[str]
) -> None:
    """Raises DatapathError where no pod could be. `own`: the addresses that the host has."""
    target = ip_address(forward.target.address)
    if target in RESERVED and not any(target in ip_network(one, strict=False) for one in pod_networks):
        problem, hint = f"{target} is a reserved address, which no pod can have", "such as 10.244.1.11:80"
    elif str(target) in own:
        problem, hint = f"{target} is the node's own address", "a pod's; the node's own ports need no forward"
    elif any(target in ip_network(one) for one in service_networks):
        problem, hint = f"{target} is in a service network", "a pod's address; `pydatapath backend list` has services'"
    else:
        return
    raise DatapathError(f"port-forward {forward.name}: {problem}", hint=hint)


def check(forward: Forward, here: Here, node_ports: tuple[int, int], holders: Iterable[str]) -> None:
    """Raises DatapathError where it cannot be. `holders`: who has the port at one of its addresses."""
    if forward.address and Family.of(forward.address) is not forward.family:
        raise DatapathError(
            f"port-forward {forward.name}: {forward.address} and {forward.target.address} are of two families",
            hint="a port leads to a pod's address of its own family",
        )
    if not forward.addresses(here):
        places = [text for text in here.addresses if Family.of(text) is forward.family]
        raise DatapathError(
            f"port-forward {forward.name}: the node has no such address"
            if forward.address
            else f"port-forward {forward.name}: the node has no IPv{int(forward.family)} address",
            hint=f"node ports answer at {', '.join(places) or 'none'}: --nodeport-addresses says where",
        )
    if node_ports[0] <= forward.port <= node_ports[1]:
        raise DatapathError(
            f"port-forward {forward.name}: {forward.port} is in the range of services' node ports",
            hint=f"another than {node_ports[0]}-{node_ports[1]}; --nodeport-range says where those are",
        )
    for holder in holders:
        raise DatapathError(
            f"port-forward {forward.name}: {holder} has the port", hint="another port, or delete what has it"
        )


def plan_forward(forward: Forward, here: Here) -> list[PortPlan]:
    """What it needs in the kernel of a node."""
    addresses = forward.addresses(here)
    if forward.family not in here.families or not addresses:
        return []
    frontends = [Frontend(Address(at, forward.port, forward.protocol), "node-port", owned=False) for at in addresses]
    return [
        PortPlan(
            NAMESPACE,
            forward.name,
            "",
            forward.protocol,
            frontends=tuple(frontends),
            cluster=(forward.target,),
            family=forward.family,
        )
    ]


def recorded(records: Records) -> list[Forward]:
    """All of them, by name."""
    return [Forward.read(one.manifest) for one in records.objects(KIND)]


def unreachable(forwards: Iterable[Forward], here: Here) -> list[str]:
    """A sentence about each that is called nowhere: where node ports answer, or what is loaded, has changed since."""
    return [
        f"port-forward {one.name}: nobody can call it, for {_missing(one, here)}"
        for one in forwards
        if one.family not in here.families or not one.addresses(here)
    ]


def _missing(forward: Forward, here: Here) -> str:
    family = f"IPv{int(forward.family)}"
    if forward.family not in here.families:
        return f"{family} is not loaded"
    if forward.address:
        return f"node ports do not answer at {forward.address}"
    return f"node ports answer at no {family} address"
