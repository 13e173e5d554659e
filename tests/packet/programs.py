"""The programs as the packet tests compile them, without masquerading and with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from packetbed import (
    CLUSTER_NETWORKS,
    NODE,
    POD_NETWORKS,
    SERVICE_NETWORKS,
    SIZES,
    UPLINK,
    UPLINK_MAC,
    V6,
    V6_CLUSTER_NETWORKS,
    V6_POD_NETWORKS,
    V6_SERVICE_NETWORKS,
    Bed,
)

from pydatapath.kernel import bpffs, compile
from pydatapath.kernel.layout import TIMEOUTS

NAME = f"packet{os.getpid()}"
PINS = bpffs.BPFFS / "pydatapath" / NAME
IPV4 = compile.Scope(
    IPv4Address(NODE), POD_NETWORKS, SERVICE_NETWORKS, IPv4Address(UPLINK), CLUSTER_NETWORKS, POD_NETWORKS
)
IPV6 = compile.Scope(
    IPv6Address(V6.NODE),
    V6_POD_NETWORKS,
    V6_SERVICE_NETWORKS,
    IPv6Address(V6.UPLINK),
    V6_CLUSTER_NETWORKS,
    V6_POD_NETWORKS,
)
PROGRAM = compile.Program(
    PINS,
    PINS / "programs",
    IPV4,
    IPV6,
    sizes=SIZES,
    uplink_index=99,  # BPF_PROG_TEST_RUN tells nothing of where a redirect leads
    uplink_mac=UPLINK_MAC,
)
EMULATED = "PYDATAPATH_EMULATED" in os.environ


def masquerading_program(
    uplink: int, name: str, how: compile.Masquerade, timeouts: Mapping[str, int] = TIMEOUTS
) -> compile.Program:
    """As PROGRAM, and what leaves by the interface `uplink` is masqueraded; with pins of its own."""
    pins = bpffs.BPFFS / "pydatapath" / f"{name}{os.getpid()}"
    scopes = [
        replace(scope, egress=(compile.Egress(uplink, scope.uplink_address),))
        for scope in (IPV4, IPV6)
        if scope.uplink_address
    ]
    return replace(
        PROGRAM,
        map_directory=pins,
        program_directory=pins / "programs",
        ipv4=scopes[0],
        ipv6=scopes[1],
        masquerade=how,
        timeouts=timeouts,
    )


@contextlib.contextmanager
def masquerading_bed(
    namespace: Mapping[str, int],
    keep: Callable[[], AbstractContextManager[None]],
    name: str,
    how: compile.Masquerade,
    timeouts: Mapping[str, int] = TIMEOUTS,
) -> Iterator[Bed]:
    """The programs that masquerade, compiled and loaded. In an emulator, where that takes minutes, those called "masq"
    only: its verifier sees what masquerading is, not each of its options.
    """
    if EMULATED and name != "masq":
        pytest.skip("a compilation of its own: not in an emulator")
    program = masquerading_program(namespace["uplink"], name, how, timeouts)
    try:
        with keep():
            program.program_directory.mkdir(parents=True)
            with compile.Compiler() as compiler:
                compile.compile_programs(compiler, program)
        made = Bed(program.map_directory, namespace)
        yield made
        made.close()
    finally:
        bpffs.remove_tree(program.map_directory)
