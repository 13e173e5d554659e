"""The rules that kube-proxy 1.36 writes in iptables mode, for any services: the same chains, names, order and matches.

Modelled on a recording of the real one. Chain names are its hashes (`portProtoHash`, `servicePortEndpointChainName`
in pkg/proxy/iptables/proxier.go); tried against the recording: "default/dns:dns" UDP gives KUBE-SVC-2MBSHUE5GJKPO227.
Left out are the nfacct counters, as kube-proxy itself leaves them out on a kernel without nfacct.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ServicePort", "restore_input"]

MANGLE = """\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
"""

FILTER = """\
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" \
-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" \
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

NAT_CHAINS = """\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
"""

NAT_RULES = """\
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"""

NAT_LAST = """\
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" \
-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""


@dataclass(frozen=True)
class ServicePort:
    """One port of a ClusterIP service; ports in host order, `protocol` "tcp" or "udp"."""

    name: str
    cluster_ip: str
    protocol: str
    port: int
    backends: tuple[tuple[str, int], ...]


def _chain(kind: str, *parts: str) -> str:
    """KUBE-SVC-... or KUBE-SEP-...: the first 16 letters of the base32 of the SHA-256 of what it stands for."""
    digest = hashlib.sha256("".join(parts).encode()).digest()
    return f"KUBE-{kind}-{base64.b32encode(digest).decode()[:16]}"


def _service_rules(service: ServicePort, cluster_cidr: str) -> tuple[list[str], list[str]]:
    """The chains of one service port, and its rules."""
    svc = _chain("SVC", service.name, service.protocol)
    match = f"-d {service.cluster_ip}/32 -p {service.protocol} -m comment --comment"
    to_vip = f'{match} "{service.name} cluster IP" -m {service.protocol} --dport {service.port}'
    chains = [svc]
    rules = [f"-A KUBE-SERVICES {to_vip} -j {svc}", f"-A {svc} ! -s {cluster_cidr} {to_vip} -j KUBE-MARK-MASQ"]
    for index, (address, port) in enumerate(service.backends):
        endpoint = f"{address}:{port}"
        sep = _chain("SEP", service.name, service.protocol, endpoint)
        left = len(service.backends) - index  # the last endpoint takes what is left, without a match
        choice = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        own = f'-m comment --comment "{service.name}"'
        chains.append(sep)
        rules += [
            f'-A {svc} -m comment --comment "{service.name} -> {endpoint}" {choice}-j {sep}',
            f"-A {sep} -s {address}/32 {own} -j KUBE-MARK-MASQ",
            f"-A {sep} -p {service.protocol} {own} -m {service.protocol} -j DNAT --to-destination {endpoint}",
        ]
    return chains, rules


def restore_input(services: Sequence[ServicePort], cluster_cidr: str) -> str:
    """What `iptables-restore --noflush` reads to lay kube-proxy's rules for `services`."""
    chains: list[str] = []
    rules: list[str] = []
    for service in services:
        more_chains, more_rules = _service_rules(service, cluster_cidr)
        chains += (f":{chain} - [0:0]" for chain in more_chains)
        rules += more_rules
    nat = NAT_CHAINS + "".join(f"{line}\n" for line in chains) + NAT_RULES + "".join(f"{line}\n" for line in rules)
    return MANGLE + FILTER + nat + NAT_LAST
