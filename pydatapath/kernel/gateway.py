"""The next hop of the node's own way to its services: nobody has these addresses."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pydatapath.kernel.layout import Family

__all__ = ["ROUTE_PROTOCOL", "SERVICE_GATEWAYS", "SERVICE_GATEWAY_MAC"]

# The next hop of the node's routes to services: link-local (RFC 3927) and, where link-local would need a zone, unique
# local (RFC 4193; "pydatap" is its prefix), asked for by nobody, answered by to_bridge. Where the node calls a service
# that it serves itself, its server sees this address.
SERVICE_GATEWAYS: Final[Mapping[Family, IPv4Address | IPv6Address]] = {
    Family.IPV4: IPv4Address("169.254.218.122"),
    Family.IPV6: IPv6Address("fd70:7964:6174:6170::1"),
}
# Where the node's own packets to services are addressed: a locally administered MAC that no interface has
SERVICE_GATEWAY_MAC: Final = "02:da:7a:00:00:01"
ROUTE_PROTOCOL: Final = 218  # marks our routes in `ip route` (include/uapi/linux/rtnetlink.h leaves it free)
