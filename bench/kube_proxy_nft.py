"""The table that kube-proxy 1.36 lays in nftables mode, for any ClusterIP services: the same maps, chains and order.

Modelled on a recording of the real one (its IPv4 table). Chain names begin with its hash (`servicePortChainNameBase` in
pkg/proxy/nftables/proxier.go); tried against the recording: default/dns/udp/dns gives Z3XHB2ZZ.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from bench.kube_proxy import ServicePort

__all__ = ["count_rules", "nft_input", "one_changed"]

TABLE = "table ip kube-proxy"
BEFORE = """\
    map no-endpoint-services {
        type ipv4_addr . inet_proto . inet_service : verdict
    }
    map no-endpoint-nodeports {
        type inet_proto . inet_service : verdict
    }
    map firewall-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
    }
    map service-nodeports {
        type inet_proto . inet_service : verdict
    }
    chain reject-chain {
        reject
    }
"""
AFTER = """\
    chain filter-prerouting-pre-dnat {
        type filter hook prerouting priority dstnat - 10; policy accept;
        ct state new jump firewall-check
    }
    chain filter-output-pre-dnat {
        type filter hook output priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-input {
        type filter hook input priority filter; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }
    chain filter-forward {
        type filter hook forward priority filter; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain filter-output {
        type filter hook output priority filter; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100; policy accept;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        jump masquerading
    }
    chain nodeport-endpoints-check {
        ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }
    chain service-endpoints-check {
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain firewall-check {
        ip daddr . meta l4proto . th dport vmap @firewall-ips
    }
    chain masquerading {
        meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random
        ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
    }
"""


def _chain(service: ServicePort) -> str:
    """`service-<hash>-namespace/name/protocol/port`."""
    name, _, port = service.name.partition(":")
    text = f"{name}/{service.protocol}/{port}"
    return f"service-{base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:8]}-{text}"


def _balance(service: ServicePort) -> str:
    """The one rule of a service's chain."""
    places = ", ".join(f"{number} : {address} . {port}" for number, (address, port) in enumerate(service.backends))
    many = len(service.backends)
    return f"meta l4proto {service.protocol} dnat ip to numgen random mod {many} map {{ {places} }}"


def _elements(texts: Iterable[str]) -> str:
    """nft takes no empty list of elements."""
    found = list(dict.fromkeys(texts))
    return f"        elements = {{ {', '.join(found)} }}\n" if found else ""


def nft_input(services: Sequence[ServicePort], cluster_cidr: str, service_cidr: str, node_ips: Sequence[str]) -> str:
    """What `nft -f -` reads to lay the table for services that all have endpoints.

    `node_ips`: those at which node ports would answer, and whose pods' hairpin connections are masqueraded.
    """
    hairpins = (
        f"{address} . {address} . {one.protocol} . {port}" for one in services for address, port in one.backends
    )
    calls = (f"{one.cluster_ip} . {one.protocol} . {one.port} : goto {_chain(one)}" for one in services)
    chains = "".join(f"    chain {_chain(one)} {{\n        {_balance(one)}\n    }}\n" for one in services)
    return f"""\
{TABLE} {{
    set hairpin-connections {{
        type ipv4_addr . ipv4_addr . inet_proto . inet_service
{_elements(hairpins)}    }}
    set cluster-ips {{
        type ipv4_addr
{_elements(one.cluster_ip for one in services)}    }}
    set nodeport-ips {{
        type ipv4_addr
{_elements(node_ips)}    }}
{BEFORE}{chains}    map service-ips {{
        type ipv4_addr . inet_proto . inet_service : verdict
{_elements(calls)}    }}
    chain services {{
        ip daddr @cluster-ips ip saddr != {cluster_cidr} meta mark set meta mark | 0x00004000
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain cluster-ips-check {{
        ip daddr @cluster-ips reject
        ip daddr {service_cidr} drop
    }}
{AFTER}}}
"""


def one_changed(service: ServicePort) -> str:
    """What `nft -f -` reads when one service's endpoints have changed, as kube-proxy writes it: its chain anew."""
    chain = f"{TABLE.removeprefix('table ')} {_chain(service)}"
    return f"flush chain {chain}\nadd rule {chain} {_balance(service)}\n"


def count_rules(listed: str) -> int:
    """The rules of a ruleset as `nft list ruleset` prints it."""
    lines = [line.strip() for line in listed.splitlines()]
    inside, found = False, 0
    for line in lines:
        if line.startswith("chain "):
            inside = True
        elif line == "}":
            inside = False
        elif inside and line and not line.startswith(("type ", "comment ")):
            found += 1
    return found
