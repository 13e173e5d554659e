"""The programs are compiled once for all packet tests; every test finds the maps empty but for pods and services."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pydatapath.kernel import bpffs, cache, compile, links, netns

# Test folders are no packages (import mode importlib): what the tests share is found beside them
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("packetbed")

from packetbed import (  # noqa: E402
    BACKEND,
    CLUSTER_NETWORKS,
    DEVICES,
    MAC,
    NODE,
    POD_NETWORKS,
    REMOTE,
    SERVICE_NETWORKS,
    SIZES,
    UPLINK,
    UPLINK_MAC,
    VIP,
    VIP_TWO,
    Bed,
)

NAME = f"packet{os.getpid()}"
PINS = bpffs.BPFFS / "pydatapath" / NAME
PROGRAM = compile.Program(
    PINS,
    PINS / "programs",
    IPv4Address(NODE),
    POD_NETWORKS,
    SERVICE_NETWORKS,
    sizes=SIZES,
    uplink_address=IPv4Address(UPLINK),
    uplink_index=99,  # BPF_PROG_TEST_RUN tells nothing of where a redirect leads
    uplink_mac=UPLINK_MAC,
    cluster_networks=CLUSTER_NETWORKS,
)
PATIENCE = 500  # seconds for the compiler, which takes a minute or two in an emulator
SERVICES = {
    f"{VIP}:80/TCP": [f"{BACKEND}:8080"],
    f"{VIP}:53/UDP": [f"{BACKEND}:5353"],
    f"{VIP}:443/TCP": [f"{BACKEND}:443"],
    f"{VIP}:81/TCP": [f"{REMOTE}:8080"],
    f"{VIP}:54/UDP": [f"{REMOTE}:5353"],
    f"{VIP}:9/TCP": [],
    f"{VIP}:9/UDP": [],
    f"{VIP_TWO}:80/TCP": [f"{BACKEND}:8080"],
    f"{VIP_TWO}:53/UDP": [f"{BACKEND}:5353"],
}


@pytest.fixture(scope="session")
def namespace(keep: Callable[[], AbstractContextManager[None]]) -> Iterator[dict[str, int]]:
    """A namespace with the node's bridge, the pods' veths and an uplink with routes; yields its interfaces' indexes."""
    with keep():
        links.create_namespace(NAME)
    try:
        with links.Links(NAME) as node:
            node.bridge("br0", MAC[NODE])
            node.address("br0", f"{NODE}/24")
            for address, device in DEVICES.items():
                node.veth(device, f"in{device}", NAME, peer_mac=MAC[address], bridge="br0")
            node.veth("far", "uplink", NAME, peer_mac=UPLINK_MAC)
            node.up("uplink")
            node.address("uplink", f"{UPLINK}/24")
            node.route("10.2.0.0/24", via="192.168.9.2")
            node.route("198.51.100.0/24", via="192.168.9.2")
            node.neighbour("uplink", "192.168.9.2", "02:00:00:00:02:02")
            links.write_sysctls(NAME, {"net/ipv4/ip_forward": "1"})
            yield {name: node.index(name) for name in ("br0", "uplink", *DEVICES.values())}
    finally:
        links.delete_namespace(NAME)


class RememberingCompiler(compile.Compiler):
    """Keeps what the child said, so that tests of the contract need no compilation of their own."""

    answer: dict[str, Any]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As the compiler, and remembers."""
        self.answer = super().ask(request)
        return self.answer


@pytest.fixture(scope="session")
def compiler_answer(
    keep: Callable[[], AbstractContextManager[None]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The one compilation: pins the programs and maps, and yields what the compiling child said of the structs."""
    try:
        with keep(), pytest.MonkeyPatch.context() as patch:
            # Compiled, whatever an earlier load has kept; what is kept now is kept for these tests only
            patch.setattr(cache, "DIRECTORY", tmp_path_factory.mktemp("cache"))
            patch.setattr(compile, "COMPILE_SECONDS", PATIENCE)
            PROGRAM.program_directory.mkdir(parents=True)
            with RememberingCompiler() as compiler:
                compile.compile_programs(compiler, PROGRAM)
        yield compiler.answer
    finally:
        bpffs.remove_tree(PINS)


@pytest.fixture(scope="session")
def loaded(compiler_answer: dict[str, Any], namespace: dict[str, int]) -> Iterator[Bed]:
    """The programs, whatever the maps hold."""
    made = Bed(PINS, namespace)
    yield made
    made.close()


@pytest.fixture
def bed(loaded: Bed) -> Iterator[Bed]:
    """The programs, with nothing in the maps but the pods and SERVICES, run inside the namespace."""
    loaded.reset()
    loaded.serve(SERVICES)
    with netns.entered(netns.path_of(NAME)):
        yield loaded
