"""Whether what pods of a node send to each other goes past the bridge (`load --pod-fast-path`): pure.

It is handed over from one pod's interface to the other's. What stands between them at the bridge, or on the way out to
the receiver, never sees it then: so it is not done unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from pydatapath.errors import DatapathError
from pydatapath.kernel.host import Host, Interface, Trait

__all__ = ["ASKED", "FastPath", "PodFastPath", "decide"]

PodFastPath = Literal["never", "auto", "always"]
ASKED: Final[tuple[PodFastPath, ...]] = get_args(PodFastPath)
TOLD: Final = 3  # of what stands between pods; a longer list hides what is said of it
_BRIDGES: Final = {Trait.VLAN_FILTERING: "VLAN filtering of {}", Trait.CALLS_NETFILTER: "iptables, which {} calls"}
_PORTS: Final = {Trait.ISOLATED: "the isolation of {}", Trait.LOCKED: "the lock of {}"}


@dataclass(frozen=True)
class FastPath:
    """What was asked for, and what is done. `passes_by`: what stands between pods, in words; `hindrance`: why they
    cannot do without the bridge, a sentence's end.
    """

    asked: PodFastPath = "never"
    passes_by: tuple[str, ...] = ()
    hindrance: str = ""

    @property
    def is_used(self) -> bool:
        """Whether pods' packets go past the bridge."""
        return self.asked == "always" or (self.asked == "auto" and not self.passes_by and not self.hindrance)

    @property
    def told(self) -> str:
        """What is done, and why: for `status`."""
        if not self.is_used:
            return "never" if self.asked == "never" else f"auto: off, {self._reason}"
        return f"{self.asked}: on" + (f", passing by {_listed(self.passes_by)}" if self.passes_by else "")

    @property
    def warning(self) -> str:
        """What who has asked should know, a sentence; "" where all is as was asked for."""
        if self.asked == "auto" and not self.is_used:
            return f"--pod-fast-path auto is off: {self._reason}"
        if self.is_used and self.passes_by:
            return f"--pod-fast-path always: what pods here send to each other passes by {_listed(self.passes_by)}"
        return ""

    @property
    def _reason(self) -> str:
        return self.hindrance or f"it would pass by {_listed(self.passes_by)}"


def decide(asked: PodFastPath, host: Host, bridges: Sequence[Interface], pods: Sequence[Interface]) -> FastPath:
    """What is done on a host. Raises DatapathError where it must be, and cannot."""
    if asked == "never":
        return FastPath()
    hindrance = _hindrance(pods)
    if hindrance and asked == "always":
        raise DatapathError(f"--pod-fast-path always cannot be: {hindrance}", hint="say auto, or never")
    return FastPath(asked, tuple(dict.fromkeys(_between(host, bridges, pods))), hindrance)


def _hindrance(pods: Sequence[Interface]) -> str:
    """Why pods' packets cannot be handed over; or must not: who could not reach another one's MAC must not by us."""
    bridge = pods[0].master if pods else 0
    for one in pods:
        if Trait.PAIRED_OUTWARDS not in one.traits:
            return f"interface {one.name} is no pair's end whose other one is in another namespace"
        if not one.master or one.master != bridge:
            return f"interface {one.name} is no port of the bridge that all others are at"
    return ""


def _between(host: Host, bridges: Sequence[Interface], pods: Sequence[Interface]) -> Iterator[str]:
    names = {one.name for one in pods}
    yield from (one.what for one in host.between if not one.interface or one.interface in names)
    for interfaces, meant in ((bridges, _BRIDGES), (pods, _PORTS)):
        for one in interfaces:
            yield from (text.format(one.name) for trait, text in meant.items() if trait in one.traits)


def _listed(things: Sequence[str]) -> str:
    shown = [*things] if len(things) <= TOLD else [*things[: TOLD - 1], f"{len(things) - TOLD + 1} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
