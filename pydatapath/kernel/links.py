"""Change the network: namespaces, interfaces, addresses, routes, neighbours, sysctls, offloads.

Typed functions around pyroute2, for those who build networks. Nobody who only reads imports this module's work:
pyroute2 (150 ms) is imported when the first `Links` opens. Two habits of pyroute2 are kept in here: keyword arguments
that it does not know are dropped without a word, so all of them stand in this file and a test reads the results back;
and its errors name no object, so each becomes one sentence of ours with the object in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydatapath.errors import Conflict, DatapathError, KernelError, NotFound
from pydatapath.kernel import netns as namespaces

__all__ = ["Address6", "Links", "addresses6", "create_namespace", "delete_namespace", "set_offloads", "write_sysctls"]

CLONE_NEWNET = 0x40000000
IFA_F_NODAD = 0x02
IFA_F_TENTATIVE = 0x40
MNT_DETACH = 2
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_SHARED = 1 << 20
NUD_PERMANENT = 0x80
RTNH_F_ONLINK = 4
SIOCETHTOOL = 0x8946

# include/uapi/linux/ethtool.h, in an order that the kernel takes when they go off: segmentation needs scatter-gather,
# and that needs the checksum. GRO is left alone: off on a fresh veth, and a NAPI driver when on.
_OFFLOADS = {"tso": 0x1F, "gso": 0x24, "sg": 0x19, "tx": 0x17, "rx": 0x15}

_libc = ctypes.CDLL(None, use_errno=True)


def create_namespace(name: str) -> None:
    """Make a network namespace called `name`, as `ip netns add` does, with nothing in it but a `lo` that is down.

    Raises Conflict when one of that name is there, KernelError when the kernel refuses.
    """
    _share_run_netns()
    target = namespaces.RUN_NETNS / name
    try:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0))
    except FileExistsError:
        raise Conflict(f"network namespace {name!r} exists already", hint=f"`ip netns delete {name}`") from None
    except OSError as error:
        raise KernelError(f"cannot make {target}: {error.strerror}", errno=error.errno or 0) from error
    try:
        # The namespace of this thread is changed and changed back: a fork, as iproute2 does it, costs ten times more.
        with namespaces.entered(namespaces.current_path()):
            _call(f"create network namespace {name}", "unshare", CLONE_NEWNET)
            here = os.fsencode(namespaces.current_path())
            _call(f"name network namespace {name}", "mount", here, os.fsencode(target), b"none", MS_BIND, None)
    except BaseException:
        target.unlink()
        raise


def delete_namespace(name: str) -> None:
    """Take the name away; the namespace itself ends when no process and no open socket is left in it.

    Raises NotFound when there is none of that name.
    """
    target = namespaces.RUN_NETNS / name
    if not target.exists():
        raise NotFound(f"network namespace {name!r} does not exist", hint="`ip netns list` shows those that do")
    _libc.umount2(os.fsencode(target), MNT_DETACH)  # EINVAL where the name was never mounted: unlink is what counts
    try:
        target.unlink()
    except OSError as error:
        raise KernelError(f"cannot delete {target}: {error.strerror}", errno=error.errno or 0) from error


def write_sysctls(netns: str, values: Mapping[str, str], *, optional: bool = False) -> None:
    """Write sysctls (as `net/ipv4/ip_forward`: "1") inside the namespace called `netns`.

    Those that this kernel does not have are NotFound, or are left out when `optional`. Raises KernelError otherwise.
    """
    with namespaces.entered(namespaces.path_of(netns)):
        for name, value in values.items():
            try:
                Path("/proc/sys", name).write_text(value)
            except FileNotFoundError:
                if not optional:
                    raise NotFound(f"this kernel has no sysctl {name}") from None
            except OSError as error:
                message = f"cannot set sysctl {name}={value} in {netns}: {error.strerror}"
                raise KernelError(message, errno=error.errno or 0) from error


@dataclass(frozen=True)
class Address6:
    """An IPv6 address that a device has; `tentative`: the kernel still asks whether it is another's."""

    device: str
    address: IPv6Address
    tentative: bool


def addresses6(netns: str) -> list[Address6]:
    """The IPv6 addresses in the namespace called `netns`, without pyroute2; none where the kernel has no IPv6.

    Raises NotFound where there is no such namespace, KernelError for who may not enter it.
    """
    with namespaces.entered(namespaces.path_of(netns)):
        try:
            text = Path("/proc/thread-self/net/if_inet6").read_text()
        except FileNotFoundError:
            return []
    # Each line: the address's 32 digits, and in hex the index, the prefix length, the scope and the flags; the device.
    rows = [line.split() for line in text.splitlines()]
    return [Address6(row[5], IPv6Address(int(row[0], 16)), bool(int(row[4], 16) & IFA_F_TENTATIVE)) for row in rows]


def set_offloads(netns: str, device: str, *, on: bool) -> None:
    """Switch checksum, scatter-gather and segmentation offloads of `device`, as `ethtool -K` does.

    Raises NotFound when there is no such device, KernelError when it refuses.
    """
    commands = list(_OFFLOADS.items())
    with (
        namespaces.entered(namespaces.path_of(netns)),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket,
    ):
        for name, command in reversed(commands) if on else commands:
            value = ctypes.create_string_buffer(struct.pack("=II", command, on), 8)  # struct ethtool_value
            request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))  # struct ifreq
            try:
                fcntl.ioctl(any_socket, SIOCETHTOOL, request)
            except OSError as error:
                raise _translated(error.errno or 0, f"switch offload {name} of {device} in {netns}") from error


class Links:
    """The interfaces of one network namespace, over one netlink socket: `with Links("lab-node1") as node: ...`.

    Every method raises Conflict when the thing is there already, NotFound when what it builds on is missing, and
    KernelError when the kernel refuses for another reason; the message names the object and the namespace.
    """

    def __init__(self, netns: str) -> None:
        """Open the namespace called `netns` (a name, a path or a process id)."""
        from pyroute2 import IPRoute

        self.netns = netns
        self._indexes: dict[str, int] = {}
        # The socket belongs to the namespace that it was made in; IPRoute(netns=) would take 44 ms for a fork.
        with namespaces.entered(namespaces.path_of(netns)), self._attempt("open a netlink socket"):
            self._ipr: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket."""
        self._ipr.close()

    def index(self, device: str) -> int:
        """The interface index of `device`."""
        if device not in self._indexes:
            with self._attempt(f"find {device}"):
                found = self._ipr.link_lookup(ifname=device)
            if not found:
                raise NotFound(f"there is no interface {device} in {self.netns}", hint="`ip -n NETNS link` lists them")
            self._indexes[device] = int(found[0])
        return self._indexes[device]

    def bridge(self, device: str, mac: str) -> None:
        """Add a bridge, up, with the address `mac`: one that is set stays, else it follows the lowest of its ports."""
        with self._attempt(f"add bridge {device}"):
            self._ipr.link("add", kind="bridge", ifname=device, address=mac, state="up")

    def veth(self, device: str, peer: str, peer_netns: str, *, peer_mac: str, bridge: str = "") -> None:
        """Add a veth pair: `device` in here, up, a port of `bridge` if given; `peer`, down, in `peer_netns`.

        Both ends are born where they belong, so that neither is ever seen elsewhere.
        """
        master = {"master": self.index(bridge)} if bridge else {}
        there = {"ifname": peer, "address": peer_mac, "net_ns_fd": namespaces.path_of(peer_netns)}
        with self._attempt(f"add veth {device} with {peer} of {peer_netns}"):
            self._ipr.link("add", kind="veth", ifname=device, state="up", peer=there, **master)

    def up(self, device: str) -> None:
        """Set `device` up."""
        index = self.index(device)
        with self._attempt(f"set {device} up"):
            self._ipr.link("set", index=index, state="up")

    def mtu(self, device: str, size: int) -> None:
        """Let `device` carry packets of up to `size` bytes of layer 3."""
        index = self.index(device)
        with self._attempt(f"set the MTU of {device} to {size}"):
            self._ipr.link("set", index=index, mtu=size)

    def enslave(self, device: str, bridge: str) -> None:
        """Make `device` a port of `bridge`."""
        index, master = self.index(device), self.index(bridge)
        with self._attempt(f"make {device} a port of {bridge}"):
            self._ipr.link("set", index=index, master=master)

    def delete(self, device: str) -> None:
        """Delete `device`; of a veth pair both ends go."""
        index = self.index(device)
        with self._attempt(f"delete {device}"):
            self._ipr.link("del", index=index)
        del self._indexes[device]

    def address(self, device: str, address: str) -> None:
        """Add `address` (with its prefix length: `10.244.1.1/24`, `fd00::1/64`) to `device`.

        One of IPv6 is there to be used at once: nobody is asked whether it is another's.
        """
        host, _, length = address.partition("/")
        flags = {"flags": IFA_F_NODAD} if ":" in host else {}
        index = self.index(device)
        with self._attempt(f"add address {address} to {device}"):
            self._ipr.addr("add", index=index, address=host, prefixlen=int(length), **flags)

    def route(self, destination: str, *, via: str = "", device: str = "", onlink: bool = False) -> None:
        """Add a route to `destination` (a network or `default`) by way of `via`, `device` or both.

        `default` is IPv6's where `via` is such an address. `onlink`: `via` is behind `device`, whatever routes say.
        """
        family = socket.AF_INET6 if ":" in destination + via else socket.AF_INET
        how = ({"gateway": via} if via else {}) | ({"oif": self.index(device)} if device else {})
        flags = {"flags": RTNH_F_ONLINK} if onlink else {}
        with self._attempt(f"add route to {destination} via {via or device}"):
            self._ipr.route("add", family=family, dst=destination, **how, **flags)

    def neighbour(self, device: str, address: str, mac: str) -> None:
        """Add a permanent neighbour entry, so that nobody asks for `address` by ARP or ND."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        index = self.index(device)
        with self._attempt(f"add neighbour {address} at {mac} on {device}"):
            self._ipr.neigh("add", family=family, ifindex=index, dst=address, lladdr=mac, state=NUD_PERMANENT)

    @contextlib.contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """Turn pyroute2's errors into ours; `what` is the verb and the object."""
        from pyroute2 import NetlinkError

        try:
            yield
        except NetlinkError as error:
            raise _translated(error.code, f"{what} in {self.netns}") from error
        except OSError as error:
            raise _translated(error.errno or 0, f"{what} in {self.netns}") from error


def _translated(code: int, what: str) -> DatapathError:
    """The error of ours for the kernel's `code`; `what` is what was tried."""
    if code == errno.EEXIST:
        return Conflict(f"cannot {what}: it exists already")
    if code in (errno.ENODEV, errno.ENOENT, errno.ESRCH):
        return NotFound(f"cannot {what}: {os.strerror(code)}")
    hint = "this needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN" if code in (errno.EPERM, errno.EACCES) else ""
    return KernelError(f"cannot {what}: {os.strerror(code)}", errno=code, hint=hint)


def _share_run_netns() -> None:
    """Make /run/netns a shared mount, as `ip netns add` does: a name made or deleted is so in all mount namespaces."""
    directory = os.fsencode(namespaces.RUN_NETNS)
    try:
        namespaces.RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"cannot make {namespaces.RUN_NETNS}: {error.strerror}", errno=error.errno or 0) from error
    if _libc.mount(b"", directory, b"none", MS_SHARED | MS_REC, None) == 0:
        return
    # EINVAL: it is a plain directory so far, no mount point.
    _call(f"mount {namespaces.RUN_NETNS}", "mount", directory, directory, b"none", MS_BIND | MS_REC, None)
    _call(f"share {namespaces.RUN_NETNS}", "mount", b"", directory, b"none", MS_SHARED | MS_REC, None)


def _call(what: str, function: str, *args: object) -> None:
    """Call libc's `function`, which gives 0 when it went well; raises our error otherwise."""
    if getattr(_libc, function)(*args) != 0:
        raise _translated(ctypes.get_errno(), what)
