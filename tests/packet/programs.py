"""The programs as the packet tests compile them, without masquerading and with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from packetbed import SIZES, Bed
from places import (
    CLUSTER_NETWORKS,
    NODE,
    POD_NETWORKS,
    SERVICE_NETWORKS,
    UPLINK,
    UPLINK_MAC,
    V6,
    V6_CLUSTER_NETWORKS,
    V6_POD_NETWORKS,
    V6_SERVICE_NETWORKS,
)

from pydatapath.kernel import bpffs, compile

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


def own_program(name: str, **more: Any) -> compile.Program:
    """As PROGRAM, with pins of its own, and other values for what stands there."""
    pins = bpffs.BPFFS / "pydatapath" / f"{name}{os.getpid()}"
    return replace(PROGRAM, map_directory=pins, program_directory=pins / "programs", **more)


def masquerading_program(uplink: int, name: str, how: compile.Masquerade, **more: Any) -> compile.Program:
    """As own_program, and what leaves by the interface `uplink` is masqueraded."""
    scopes = [
        replace(scope, egress=(compile.Egress(uplink, scope.uplink_address),))
        for scope in (IPV4, IPV6)
        if scope.uplink_address
    ]
    return own_program(name, ipv4=scopes[0], ipv6=scopes[1], masquerade=how, **more)


@contextlib.contextmanager
def masquerading_bed(
    namespace: Mapping[str, int],
    keep: Callable[[], AbstractContextManager[None]],
    name: str,
    how: compile.Masquerade,
    **more: Any,
) -> Iterator[Bed]:
    """The programs that masquerade, compiled and loaded. In an emulator, where that takes minutes, those called "masq"
    only: its verifier sees what masquerading is, not each of its options.
    """
    if EMULATED and name != "masq":
        pytest.skip("a compilation of its own: not in an emulator")
    with own_bed(namespace, keep, masquerading_program(namespace["uplink"], name, how, **more)) as made:
        yield made


@contextlib.contextmanager
def own_bed(
    namespace: Mapping[str, int], keep: Callable[[], AbstractContextManager[None]], program: compile.Program
) -> Iterator[Bed]:
    """A program, compiled and loaded."""
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
