"""What stands around the services' ports: addresses that are a service's own, and source ranges; pure.

Both are sets of facts about addresses and service ports, so a change is the difference of two sets. What is new is
written before the services switch, what is over after it: no packet meets a range too few.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from pydatapath.kernel.layout import Family, VipKind

__all__ = ["Guard", "GuardChange", "Guards", "SourceRange", "guard_change", "ranges_of"]


@dataclass(frozen=True, slots=True, order=True)
class SourceRange:
    """A network (canonical text) from which the service port of this number may be called."""

    service: int
    network: str


@dataclass(frozen=True, slots=True)
class Guard:
    """What one service port brings: its own addresses, and the networks that may call it."""

    number: int
    vips: Mapping[str, VipKind]
    networks: tuple[str, ...] = ()


@dataclass(slots=True)
class Guards:
    """What the maps hold."""

    vips: Mapping[str, VipKind] = field(default_factory=dict)
    ranges: set[SourceRange] = field(default_factory=set)


@dataclass(slots=True)
class GuardChange:
    """What is to be written: new ones, then (after the services) what is over."""

    vips: dict[str, VipKind] = field(default_factory=dict)
    ranges: list[SourceRange] = field(default_factory=list)
    removed_vips: list[str] = field(default_factory=list)
    removed_ranges: list[SourceRange] = field(default_factory=list)


def guard_change(
    wanted: Collection[Guard],
    changing: Collection[int],
    had: Iterable[str],
    staying: Iterable[str],
    live: Guards,
    *,
    whole: bool,
    others: Collection[str] = (),
) -> GuardChange:
    """From what is live to what is wanted of the service ports that change.

    `changing`: their numbers, those that go included; `had`: the addresses that they had; `staying`: the addresses at
    which any service is called afterwards, so that one that two services share stays with the other; `others`: those of
    service ports that do not change; `whole`: all service ports change.
    """
    vips: dict[str, VipKind] = {}
    for address, kind in (one for guard in wanted for one in guard.vips.items()):
        # What is one service's cluster IP is so to all others, too, whichever is looked at last
        stays = not whole and address in others and live.vips.get(address) is VipKind.CLUSTER
        vips[address] = VipKind.CLUSTER if stays or vips.get(address) is VipKind.CLUSTER else kind
    ranges = {SourceRange(guard.number, network) for guard in wanted for network in guard.networks}
    kept = {*vips, *(() if whole else staying)}
    return GuardChange(
        vips={address: kind for address, kind in vips.items() if live.vips.get(address) != kind},
        ranges=sorted(ranges - live.ranges),
        removed_vips=sorted(address for address in {*had} - kept if address in live.vips),
        removed_ranges=sorted(one for one in live.ranges - ranges if whole or one.service in changing),
    )


def ranges_of(source_ranges: Iterable[str], family: Family) -> tuple[str, ...]:
    """Those of loadBalancerSourceRanges that are of a family, each once."""
    found = (ip_network(text, strict=False) for text in source_ranges if Family.of(text) is family)
    return tuple(sorted({str(one) for one in found}))
