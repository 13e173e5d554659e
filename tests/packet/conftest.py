"""The programs are compiled once for all packet tests; every test finds the maps empty but for pods and services."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pydatapath.kernel import bpffs, compile, links, netns
from pydatapath.kernel.layout import Family, NatType

# Test folders are no packages (import mode importlib): what the tests share is found beside them
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("frames", "packetbed")

from packetbed import FEW_PORTS, OTHER_TIMEOUTS, Bed  # noqa: E402
from places import DEVICES, MAC, NODE, UPLINK, UPLINK_MAC, V4, V6, Places, at  # noqa: E402
from programs import EMULATED, NAME, PINS, PROGRAM, masquerading_bed, own_bed, own_program  # noqa: E402


def _services(where: Places) -> dict[str, list[str]]:
    backend, remote = where.BACKEND, where.REMOTE
    return {
        where.called("80/TCP"): [at(backend, 8080)],
        where.called("53/UDP"): [at(backend, 5353)],
        where.called("443/TCP"): [at(backend, 443)],
        where.called("81/TCP"): [at(remote, 8080)],
        where.called("54/UDP"): [at(remote, 5353)],
        where.called("9/TCP"): [],
        where.called("9/UDP"): [],
        where.called("80/TCP", where.VIP_TWO): [at(backend, 8080)],
        where.called("53/UDP", where.VIP_TWO): [at(backend, 5353)],
    }


SERVICES = _services(V4) | _services(V6)


@pytest.fixture(scope="session")
def namespace(keep: Callable[[], AbstractContextManager[None]]) -> Iterator[dict[str, int]]:
    """A namespace with the node's bridge, the pods' veths and an uplink with routes; yields its interfaces' indexes."""
    with keep():
        links.create_namespace(NAME)
    try:
        forwarding = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding")
        links.write_sysctls(NAME, dict.fromkeys(forwarding, "1"))
        with links.Links(NAME) as node:
            node.bridge("br0", MAC[NODE])
            node.address("br0", f"{NODE}/24")
            node.address("br0", f"{V6.NODE}/64")
            for address in (V4.CLIENT, V4.BACKEND, V4.SECOND):
                node.veth(DEVICES[address], f"in{DEVICES[address]}", NAME, peer_mac=MAC[address], bridge="br0")
            node.veth("far", "uplink", NAME, peer_mac=UPLINK_MAC)
            node.up("uplink")
            node.address("uplink", f"{UPLINK}/24")
            node.address("uplink", f"{V6.UPLINK}/64")
            for network in ("10.2.0.0/24", "198.51.100.0/24"):
                node.route(network, via=V4.NEXT_HOP)
            for network in ("fd00:10:2::/64", "2001:db8:51::/64"):
                node.route(network, via=V6.NEXT_HOP)
            for where in (V4, V6):
                node.neighbour("uplink", where.NEXT_HOP, "02:00:00:00:02:02")
            yield {name: node.index(name) for name in ("lo", "br0", "uplink", *DEVICES.values())}
    finally:
        links.delete_namespace(NAME)


class RememberingCompiler(compile.Compiler):
    """Keeps what the child said, so that tests of the contract need no compilation of their own."""

    answer: dict[str, Any] | None = None

    def ask(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As the compiler, and remembers."""
        self.answer = super().ask(parts)
        return self.answer


@pytest.fixture(scope="session")
def pinned(keep: Callable[[], AbstractContextManager[None]]) -> Iterator[dict[str, Any] | None]:
    """The one compilation: pins the programs and maps, and yields what the compiling child said of the structs.

    It is kept for an emulator on this machine, where a compilation takes minutes: there nobody need say anything.
    """
    try:
        with keep(), pytest.MonkeyPatch.context() as patch:
            if not EMULATED:
                patch.setenv("PYDATAPATH_NO_CACHE", "compiled, whatever an earlier load has kept")
            PROGRAM.program_directory.mkdir(parents=True)
            with RememberingCompiler() as compiler:
                compile.compile_programs(compiler, PROGRAM)
        yield compiler.answer
    finally:
        bpffs.remove_tree(PINS)


@pytest.fixture(scope="session")
def compiler_answer(pinned: dict[str, Any] | None) -> dict[str, Any]:
    """What the compiler said of the structs, which does not depend on the kernel."""
    if pinned is None:
        pytest.skip("the programs were compiled before")
    return pinned


@pytest.fixture(scope="session")
def loaded(pinned: object, namespace: dict[str, int]) -> Iterator[Bed]:
    """The programs, whatever the maps hold."""
    made = Bed(PINS, namespace)
    yield made
    made.close()


@pytest.fixture
def bed(loaded: Bed) -> Iterator[Bed]:
    """The programs, with nothing in the maps but the pods and SERVICES, run inside the namespace."""
    with netns.entered(netns.path_of(NAME)):
        loaded.reset()
        loaded.serve(SERVICES)
        yield loaded


@pytest.fixture(scope="session")
def loaded_masquerading(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs with masquerading, of the default type, whatever the maps hold."""
    with masquerading_bed(namespace, keep, "masq", compile.Masquerade()) as made:
        yield made


@pytest.fixture
def masquerading(loaded_masquerading: Bed) -> Iterator[Bed]:
    """As `bed`, and what pods send out of the cluster by `uplink` is masqueraded."""
    with netns.entered(netns.path_of(NAME)):
        loaded_masquerading.reset()
        loaded_masquerading.serve(SERVICES)
        yield loaded_masquerading


@pytest.fixture(scope="session")
def loaded_timed(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs with masquerading, FEW_PORTS, OTHER_TIMEOUTS and the pods' fast path, whatever the maps hold."""
    how = compile.Masquerade(ports=FEW_PORTS)
    with masquerading_bed(namespace, keep, "timed", how, timeouts=OTHER_TIMEOUTS, pod_fast_path=True) as made:
        yield made


@pytest.fixture
def timed(loaded_timed: Bed) -> Iterator[Bed]:
    """As `masquerading`, with FEW_PORTS, OTHER_TIMEOUTS and the pods' fast path."""
    with netns.entered(netns.path_of(NAME)):
        loaded_timed.reset()
        loaded_timed.serve(SERVICES)
        yield loaded_timed


@pytest.fixture(scope="session")
def loaded_past(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs with the pods' fast path, whatever the maps hold."""
    with own_bed(namespace, keep, own_program("past", pod_fast_path=True)) as made:
        yield made


@pytest.fixture
def past(loaded_past: Bed) -> Iterator[Bed]:
    """As `bed`, and what pods send to each other goes past the bridge."""
    with netns.entered(netns.path_of(NAME)):
        loaded_past.reset()
        loaded_past.serve(SERVICES)
        yield loaded_past


@pytest.fixture(scope="session")
def loaded_limited(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs with masquerading where a pod may begin ten flows in a minute, whatever the maps hold."""
    with masquerading_bed(namespace, keep, "limited", compile.Masquerade(pod_flows=(10, 60))) as made:
        yield made


@pytest.fixture
def limited(loaded_limited: Bed) -> Iterator[Bed]:
    """As `masquerading`, and a pod may begin ten flows in a minute."""
    with netns.entered(netns.path_of(NAME)):
        loaded_limited.reset()
        loaded_limited.serve(SERVICES)
        yield loaded_limited


@pytest.fixture(scope="session")
def loaded_one_by_one(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs where `walk` tries a flow's own port, and `search` each other one, whatever the maps hold."""
    if EMULATED:
        pytest.skip("a compilation of its own: not in an emulator")
    as_they_are = compile.definitions

    def one_by_one(program: compile.Program, family: Family) -> dict[str, str]:
        return {**as_they_are(program, family), "CLAIM_TRIES": "1"}

    with contextlib.ExitStack() as stack:
        # Not longer: this lives as long as the tests do, and all others compile what there is
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compile, "definitions", one_by_one)
            made = stack.enter_context(own_bed(namespace, keep, own_program("searching")))
        yield made


@pytest.fixture
def one_by_one(loaded_one_by_one: Bed) -> Iterator[Bed]:
    """As `bed`, and whatever meets a port that is taken goes on in `search`."""
    with netns.entered(netns.path_of(NAME)):
        loaded_one_by_one.reset()
        loaded_one_by_one.serve(SERVICES)
        yield loaded_one_by_one


TYPES = [NatType.ENDPOINT_INDEPENDENT] if EMULATED else list(NatType)


@pytest.fixture(scope="session", params=TYPES, ids=[one.name for one in TYPES])
def loaded_typed(
    request: pytest.FixtureRequest, namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[NatType, Bed]]:
    """The programs with masquerading, of each type."""
    if EMULATED:
        yield request.param, request.getfixturevalue("loaded_masquerading")
        return
    with masquerading_bed(namespace, keep, f"type{request.param}x", compile.Masquerade(request.param)) as made:
        yield request.param, made


@pytest.fixture
def typed(loaded_typed: tuple[NatType, Bed]) -> Iterator[tuple[NatType, Bed]]:
    """As `masquerading`, for each type: that and the bed."""
    with netns.entered(netns.path_of(NAME)):
        loaded_typed[1].reset()
        yield loaded_typed
