"""What kube-proxy 1.36 lays in IPVS mode, for any ClusterIP services: virtual servers, and the rules that masquerade.

Written after its documentation (pkg/proxy/ipvs/README.md), not after a recording. Where it asks an ipset
(KUBE-CLUSTER-IP, KUBE-LOOP-BACK), there are rules that name the addresses here, so for many services these rules say
nothing about its speed; the virtual servers do.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.kube_proxy import ServicePort

__all__ = ["SYSCTLS", "ipvs_input", "masquerade_input"]

# conntrack lets MASQUERADE work behind IPVS; the other two make connections to a backend that is gone end at once
SYSCTLS = {
    "net.ipv4.vs.conntrack": "1",
    "net.ipv4.vs.expire_nodest_conn": "1",
    "net.ipv4.vs.expire_quiescent_template": "1",
}


def ipvs_input(services: Sequence[ServicePort]) -> str:
    """What `ipvsadm --restore` reads: round robin, and `-m`, which is NAT."""
    lines = []
    for service in services:
        virtual = f"-{service.protocol[0]} {service.cluster_ip}:{service.port}"
        lines.append(f"-A {virtual} -s rr")
        lines += (f"-a {virtual} -r {address}:{port} -m -w 1" for address, port in service.backends)
    return "\n".join(lines) + "\n"


def masquerade_input(services: Sequence[ServicePort], cluster_cidr: str) -> str:
    """What `iptables-restore --noflush` reads: masquerades outsiders' calls and a pod's to itself."""
    hairpins = {
        f"-A KUBE-POSTROUTING -s {address}/32 -d {address}/32 -p {one.protocol} --dport {port} -j MASQUERADE"
        for one in services
        for address, port in one.backends
    }
    calls = {
        f"-A KUBE-SERVICES ! -s {cluster_cidr} -d {one.cluster_ip}/32 -p {one.protocol} --dport {one.port} "
        "-j KUBE-MARK-MASQ"
        for one in services
    }
    return "\n".join(
        (
            "*nat",
            *(f":{chain} - [0:0]" for chain in ("KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")),
            "-A PREROUTING -j KUBE-SERVICES",
            "-A OUTPUT -j KUBE-SERVICES",
            "-A POSTROUTING -j KUBE-POSTROUTING",
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            *sorted(calls),
            *sorted(hairpins),
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
            "COMMIT\n",
        )
    )
