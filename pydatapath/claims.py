"""Who may be called where: what services claim, and whose claim is refused; pure.

Two services may not claim one address and port. Where neither says when it was made, the second is refused, as the API
server would do it. Where one does (S70, C7), both are kept and the older is called there: an API server lets external
and balancer's addresses clash, so what it exports may hold such pairs. A health check's port is nobody else's (S80).

    claims_of(service)                what it claims
    refusals(candidates, standing)    which of some new or changed services must be refused, and why
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from pydatapath.errors import Conflict, DatapathError, ManifestError
from pydatapath.fields import show
from pydatapath.model import Protocol, Service

__all__ = ["Candidate", "Claim", "ClaimKind", "Claimant", "Holding", "claimant", "claims_of", "made_of", "refusals"]

ClaimKind = Literal["cluster-ip", "node-port", "external-ip", "load-balancer-ip", "health-check"]

_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[-+]\d\d:\d\d)", re.ASCII)
# What to do where an address is taken, by how it is called
_HINTS: Final[Mapping[ClaimKind, str]] = {
    "cluster-ip": "a cluster IP and port belong to one service: change spec.clusterIP or spec.ports",
    "node-port": "a node port belongs to one service: change spec.ports[].nodePort",
    "external-ip": "an external IP and port belong to one service: change spec.externalIPs or spec.ports",
    "load-balancer-ip": "a load balancer's IP and port belong to one service: change spec.ports, or ask for another IP",
    "health-check": "a health check's port belongs to one service: change spec.healthCheckNodePort",
}


class Claim(NamedTuple):
    """A place where a service is called: canonical address, "" for those of every node; port in host order."""

    address: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        text = f"{self.port}/{self.protocol.lower()}"
        if not self.address:
            return f"node port {text}"
        return f"[{self.address}]:{text}" if ":" in self.address else f"{self.address}:{text}"


class Holding(NamedTuple):
    """One claim of a service: its `namespace/name`, when it was made ("" where nobody says), how it is called there."""

    service: str
    made: str
    kind: ClaimKind


@dataclass(frozen=True, slots=True)
class Claimant:
    """A service and all that it claims."""

    service: str
    made: str
    claims: Mapping[Claim, ClaimKind]

    def holdings(self) -> Iterator[tuple[Claim, Holding]]:
        """Its claims, one by one."""
        for claim, kind in self.claims.items():
            yield claim, Holding(self.service, self.made, kind)


class Candidate(NamedTuple):
    """A service that is new or changes, and what it was before."""

    new: Claimant
    old: Claimant | None


def claimant(service: Service) -> Claimant:
    """What a service claims. Raises ManifestError where it cannot be made sense of."""
    checked = service.health_check_node_port
    if checked and checked in {one.node_port for one in service.ports if one.protocol == "TCP"}:
        raise _fault(service, f"spec.healthCheckNodePort: {checked} is a node port of its own")
    return Claimant(service.key, made_of(service), claims_of(service))


def made_of(service: Service) -> str:
    """When a service was made, as text that sorts by time; "" where nobody says. Raises ManifestError."""
    given = (service.manifest.get("metadata") or {}).get("creationTimestamp")
    if given is None:
        return ""
    if isinstance(given, str) and _RFC3339.fullmatch(given):
        with contextlib.suppress(ValueError, OverflowError):  # the 31st of February
            made = datetime.fromisoformat(given.upper()).astimezone(UTC)
            return made.isoformat(timespec="seconds").replace("+00:00", "Z")
    raise _fault(service, f"metadata.creationTimestamp: {show(given)} is not a time (such as 2025-01-31T12:00:00Z)")


def _fault(service: Service, problem: str) -> ManifestError:
    error = ManifestError(f"Service {service.key}: {problem}")
    error.key = ("Service", service.namespace, service.name)
    return error


def claims_of(service: Service) -> dict[Claim, ClaimKind]:
    """Every place where a service is called, on whatever node; those of a family only with a ClusterIP of it (S7)."""
    if not service.proxied:
        return {}
    families = {":" in address for address in service.cluster_ips}
    ways: tuple[tuple[ClaimKind, tuple[str, ...]], ...] = (
        ("cluster-ip", service.cluster_ips),
        ("load-balancer-ip", service.load_balancer_ips),
        ("external-ip", service.external_ips),
    )
    found: dict[Claim, ClaimKind] = {}
    for kind, addresses in ways:
        for address in addresses:
            if (":" in address) in families:
                for port in service.ports:
                    found.setdefault(Claim(address, port.port, port.protocol), kind)
    for port in service.ports:
        if port.node_port:
            found[Claim("", port.node_port, port.protocol)] = "node-port"
    if service.health_check_node_port:
        found[Claim("", service.health_check_node_port, "TCP")] = "health-check"
    return found


def refusals(candidates: Iterable[Candidate], standing: Mapping[Claim, Iterable[Holding]]) -> dict[str, DatapathError]:
    """The candidates that must stay as they were, each with the first address that it cannot have.

    `standing`: what the services claim that are no candidates. Of two candidates the one that had the address stays,
    else the first; who is refused goes on to claim what it claimed before.
    """
    return _Court(candidates, standing).refused


class _Court:
    """Looks at candidates one after the other. `refused` are in their order, but for those that it undid."""

    def __init__(self, candidates: Iterable[Candidate], standing: Mapping[Claim, Iterable[Holding]]) -> None:
        self.refused: dict[str, DatapathError] = {}
        self._accepted: dict[str, Candidate] = {}
        self._at = {claim: {one.service: one for one in holdings} for claim, holdings in standing.items()}
        candidates = list(candidates)
        for new, old in candidates:
            if old is not None:  # what a service keeps is not free in the meantime
                self._place((claim, one) for claim, one in new.holdings() if claim in old.claims)
        for one in candidates:
            if error := self._clash(one.new):
                self._refuse(one, error)
            else:
                self._place(one.new.holdings())
                self._accepted[one.new.service] = one

    def _place(self, holdings: Iterable[tuple[Claim, Holding]]) -> None:
        for claim, one in holdings:
            self._at.setdefault(claim, {})[one.service] = one

    def _clash(self, claimant: Claimant) -> Conflict | None:
        for claim, mine in claimant.holdings():
            for other in self._at.get(claim, {}).values():
                if _excludes(mine, other):
                    return _conflict(claim, mine, other)
        return None

    def _refuse(self, candidate: Candidate, error: DatapathError) -> None:
        """And with it those that were accepted where it wanted to leave."""
        queue = deque([(candidate, error)])
        while queue:
            (new, old), error = queue.popleft()
            self.refused.setdefault(new.service, error)
            for claim in new.claims:
                self._at.get(claim, {}).pop(new.service, None)
            if old is None:
                continue
            self._place(old.holdings())
            for claim, mine in old.holdings():
                for other in self._at[claim].values():
                    if other.service in self._accepted and _excludes(mine, other):
                        queue.append((self._accepted.pop(other.service), _conflict(claim, other, mine)))


def _excludes(one: Holding, other: Holding) -> bool:
    """Whether two claims of one place cannot both be kept."""
    if one.service == other.service:
        return False
    return "health-check" in (one.kind, other.kind) or not (one.made or other.made)


def _conflict(claim: Claim, mine: Holding, other: Holding) -> Conflict:
    return Conflict(f"Service {mine.service}: {claim} is taken by Service {other.service}", hint=_HINTS[mine.kind])
