"""What may stand between pods on a bridge, or at their interfaces: iptables, ebtables, nftables' rules, queues.

Everything here looks at the namespace that the calling thread is in. What cannot be asked for is not there.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pydatapath.errors import KernelError
from pydatapath.kernel import sysctl, tc
from pydatapath.kernel.rtnetlink import attributes, dump

__all__ = ["Between", "between_pods"]

# include/uapi/linux/netfilter: nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN = 10, 3, 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_USE = 1, 3, 4, 5, 6
NFTA_HOOK_DEV, NFTA_HOOK_DEVS, NFTA_DEVICE_NAME = 3, 4, 1
NFPROTO_INET, NFPROTO_NETDEV, NFPROTO_BRIDGE = 1, 5, 7
NF_DROP, NF_ACCEPT = 0, 1

SYSCTLS: Final[Mapping[str, str]] = {
    "net/bridge/bridge-nf-call-iptables": "iptables",
    "net/bridge/bridge-nf-call-ip6tables": "ip6tables",
}
# Whether they have rules nobody but ebtables itself can ask, which would load them
EBTABLES: Final = ("ebtable_filter", "ebtable_nat", "ebtable_broute")
MODULES: Final = Path("/sys/module")
_FAMILIES: Final = {NFPROTO_INET: "inet", NFPROTO_NETDEV: "netdev", NFPROTO_BRIDGE: "bridge"}
_NFGENMSG = struct.Struct("=BBH")


class Between(NamedTuple):
    """One thing that may stop, change or delay what pods send to each other, in words. `interface`: its name where it
    concerns that one alone, else "".
    """

    what: str
    interface: str = ""


def between_pods() -> tuple[Between, ...]:
    """All that there is."""
    return (*_bridge_netfilter(), *_ebtables(), *_nftables(), *_queues())


def _bridge_netfilter() -> Iterator[Between]:
    for name, who in SYSCTLS.items():
        if sysctl.read(name) not in (None, "0"):
            yield Between(f"{who} ({name.replace('/', '.')} is 1)")


def _ebtables() -> Iterator[Between]:
    for name in EBTABLES:
        if (MODULES / name).is_dir():
            yield Between(f"ebtables ({name} is loaded)")


def _nftables() -> Iterator[Between]:
    """The base chains that meet frames and have a rule, or drop what meets none; ebtables may be nftables', too."""
    try:
        chains = list(
            dump(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, _NFGENMSG.pack(0, 0, 0), protocol=NETLINK_NETFILTER)
        )
    except (OSError, KernelError):
        return
    for kind, body in chains:
        if kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN:
            continue
        family, given = body[0], dict(attributes(body[_NFGENMSG.size :]))
        policy, used = _number(given, NFTA_CHAIN_POLICY, NF_ACCEPT), _number(given, NFTA_CHAIN_USE, 0)
        if family not in _FAMILIES or NFTA_CHAIN_HOOK not in given or not (used or policy == NF_DROP):
            continue
        table, chain = (_text(given.get(name, b"")) for name in (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME))
        what = f"the chain {chain} of the nftables table {_FAMILIES[family]} {table}"
        devices = _devices(given[NFTA_CHAIN_HOOK])
        if family == NFPROTO_BRIDGE:
            yield Between(what)
        yield from (Between(what, one) for one in devices)


def _devices(hook: bytes) -> list[str]:
    """Those that a chain is hooked up at; of most there are none."""
    given = dict(attributes(hook))
    several = [_text(value) for kind, value in attributes(given.get(NFTA_HOOK_DEVS, b"")) if kind == NFTA_DEVICE_NAME]
    return several or [_text(given[NFTA_HOOK_DEV])] if NFTA_HOOK_DEV in given or several else []


def _queues() -> Iterator[Between]:
    """What an interface's owner has put in its way out; a veth has none by itself."""
    names = dict(socket.if_nameindex())
    for index, kind in tc.queues():
        if index in names and kind != "noqueue":
            yield Between(f"the qdisc {kind} of {names[index]}", names[index])


def _number(given: Mapping[int, bytes], name: int, otherwise: int) -> int:
    return int.from_bytes(given[name], "big") if name in given else otherwise


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.rstrip(b"\0"))
