"""pydatapath: service load balancing and NAT in the kernel, by eBPF programs that bcc compiles and Python steers.

from pydatapath import Datapath
with Datapath.open("default") as datapath:
    for one in datapath.services:
        print(one.service.key, [backend.address for backend in one.backends])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydatapath.version import __version__

if TYPE_CHECKING:
    from pydatapath.datapath import Datapath
    from pydatapath.errors import DatapathError, PydatapathError
    from pydatapath.model import Backend, EndpointSlice, Service
    from pydatapath.node import Options

__all__ = [
    "Backend",
    "Datapath",
    "DatapathError",
    "EndpointSlice",
    "Options",
    "PydatapathError",
    "Service",
    "__version__",
]

_PLACES = {
    "Backend": "model",
    "Datapath": "datapath",
    "DatapathError": "errors",
    "EndpointSlice": "model",
    "Options": "node",
    "PydatapathError": "errors",
    "Service": "model",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562): `pydatapath --help` needs none of them."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pydatapath.{_PLACES[name]}"), name)
