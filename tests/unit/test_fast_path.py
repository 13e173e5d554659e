"""Whether what pods send to each other goes past the bridge: what was asked for, and what stands between them."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pydatapath.cli.node import load
from pydatapath.errors import DatapathError, KernelError
from pydatapath.fast_path import ASKED, FastPath, PodFastPath, decide
from pydatapath.kernel import between, sysctl
from pydatapath.kernel.between import Between, between_pods
from pydatapath.kernel.host import Host, Interface, Trait
from pydatapath.kernel.rtnetlink import Link
from pydatapath.node import Options, resolve
from pydatapath.wiring import facts_of

PAIRED = frozenset({Trait.PAIRED_OUTWARDS})
BR0 = Interface(3, "br0", "bridge", "02:00:00:00:00:03", 0, ())
POD1, POD2 = (Interface(n, f"veth{n}", "veth", f"02:00:00:00:00:0{n}", 3, (), PAIRED) for n in (4, 5))
HOST = Host((BR0, POD1, POD2), (), ())
IPTABLES = Between("iptables (net.bridge.bridge-nf-call-iptables is 1)")
QUEUE = Between("the qdisc tbf of veth4", "veth4")
ELSEWHERE = Between("the qdisc tbf of veth9", "veth9")


def decided(asked: PodFastPath, *stands: Between, bridge: Interface = BR0, pod: Interface = POD1) -> FastPath:
    return decide(asked, replace(HOST, between=stands), [bridge], [pod, POD2])


def test_by_default_the_bridge_sees_what_pods_send_to_each_other() -> None:
    """Nothing is asked of the host then."""
    assert Options().pod_fast_path == "never"
    path = decided("never", IPTABLES)
    assert (path.is_used, path.told, path.warning) == (False, "never", "")


def test_auto_is_used_where_nothing_stands_between_pods() -> None:
    """What stands at an interface that is no pod's is none of that."""
    path = decided("auto", ELSEWHERE)
    assert (path.is_used, path.told, path.warning) == (True, "auto: on", "")


BETWEEN = [
    ({}, [IPTABLES], IPTABLES.what),
    ({}, [QUEUE], QUEUE.what),
    ({"bridge": replace(BR0, traits=frozenset({Trait.VLAN_FILTERING}))}, [], "VLAN filtering of br0"),
    ({"bridge": replace(BR0, traits=frozenset({Trait.CALLS_NETFILTER}))}, [], "iptables, which br0 calls"),
    ({"pod": replace(POD1, traits=PAIRED | {Trait.ISOLATED})}, [], "the isolation of veth4"),
    ({"pod": replace(POD1, traits=PAIRED | {Trait.LOCKED})}, [], "the lock of veth4"),
]


@pytest.mark.parametrize(("more", "stands", "what"), BETWEEN, ids=[what for _, _, what in BETWEEN])
def test_auto_is_off_where_something_would_be_passed_by_and_says_what(
    more: dict[str, Any], stands: list[Between], what: str
) -> None:
    """And always passes it by, and says so, too."""
    path = decided("auto", *stands, **more)
    assert not path.is_used
    assert path.warning == f"--pod-fast-path auto is off: it would pass by {what}"
    assert path.told == f"auto: off, it would pass by {what}"
    path = decided("always", *stands, **more)
    assert path.is_used
    assert path.warning == f"--pod-fast-path always: what pods here send to each other passes by {what}"
    assert path.told == f"always: on, passing by {what}"


@pytest.mark.parametrize(
    ("count", "told"),
    [(2, "rule 0 and rule 1"), (3, "rule 0, rule 1 and rule 2"), (9, "rule 0, rule 1 and 7 more")],
)
def test_of_many_things_some_are_named(count: int, told: str) -> None:
    """Each once."""
    stands = [Between(f"rule {number}") for number in range(count)]
    assert decided("auto", *stands, *stands).warning.endswith(f"would pass by {told}")


def test_where_a_pod_has_no_other_end_elsewhere_it_cannot_be() -> None:
    """To a tap nothing can be handed over, nor to a pair within one namespace: auto is off, always is refused."""
    tap = replace(POD1, name="tap0", kind="tun", traits=frozenset())
    path = decided("auto", pod=tap)
    assert not path.is_used
    assert path.warning == (
        "--pod-fast-path auto is off: interface tap0 is no pair's end whose other one is in another namespace"
    )
    with pytest.raises(DatapathError) as refused:
        decided("always", pod=tap)
    assert "tap0" in str(refused.value)
    assert refused.value.hint == "say auto, or never"


@pytest.mark.parametrize("master", [0, 9], ids=["no bridge", "another bridge"])
def test_where_pods_are_not_at_one_bridge_it_must_not_be(master: int) -> None:
    """They would reach each other's MACs, which they cannot by themselves, past the node's rules for what it routes."""
    apart = replace(POD1, name="cali4", master=master)
    path = decide("auto", HOST, [BR0], [POD2, apart])
    assert not path.is_used
    assert path.warning == (
        "--pod-fast-path auto is off: interface cali4 is no port of the bridge that all others are at"
    )
    with pytest.raises(DatapathError, match="always cannot be: interface cali4 is no port"):
        decide("always", HOST, [BR0], [POD2, apart])


def test_the_three_words_are_those_of_the_command_line() -> None:
    """As Options takes them, and no others."""
    option = next(one for one in load.params if one.name == "pod_fast_path")
    assert tuple(option.type.choices) == ASKED == ("never", "auto", "always")  # type: ignore[attr-defined]
    with pytest.raises(DatapathError, match="'pod_fast_path' must be never or auto or always, not 'yes'"):
        Options.from_mapping({"pod_fast_path": "yes"})


def test_a_host_that_changes_is_a_fact_that_programs_were_made_for() -> None:
    """So `status` calls it drift, and `repair` mends it; where nobody has asked nothing is told of it."""
    from ipaddress import ip_interface

    bridge = replace(BR0, addresses=(ip_interface("10.244.1.1/24"),))
    host = Host((bridge, POD1), (), ())
    options = Options(pod_fast_path="auto")
    on, off = (facts_of(resolve(options, one, "worker")) for one in (host, replace(host, between=(IPTABLES,))))
    assert (on.pop("pod fast path"), off.pop("pod fast path")) == ("on", "off")
    assert on == off == facts_of(resolve(Options(), host, "worker"))


# What is found


def chain(family: int, hook: bytes, *, rules: int = 1, policy: int | None = 1) -> tuple[int, bytes]:
    def attribute(kind: int, data: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

    given = attribute(1, b"filter\0") + attribute(3, b"forward\0") + attribute(6, struct.pack("!I", rules))
    given += attribute(4 | 0x8000, hook) if hook else b""
    given += attribute(5, struct.pack("!I", policy)) if policy is not None else b""
    return between.NFNL_SUBSYS_NFTABLES << 8 | between.NFT_MSG_NEWCHAIN, struct.pack("=BBH", family, 0, 0) + given


HOOK = struct.pack("=HH", 8, 1) + struct.pack("!I", 2)
AT_VETH4 = HOOK + struct.pack("=HH", 10, 3) + b"veth4\0" + bytes(2)
AT_BOTH = (
    HOOK
    + struct.pack("=HH", 28, 4 | 0x8000)
    + b"".join(struct.pack("=HH", 10, 1) + n + bytes(2) for n in (b"veth4\0", b"veth5\0"))
)
FORWARD = "the chain forward of the nftables table {} filter"


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (chain(7, HOOK), [Between(FORWARD.format("bridge"))]),
        (chain(7, HOOK, rules=0, policy=0), [Between(FORWARD.format("bridge"))]),
        (chain(7, HOOK, rules=0), []),
        (chain(7, b"", policy=None), []),
        (chain(2, HOOK), []),
        (chain(1, HOOK), []),
        (chain(5, AT_VETH4), [Between(FORWARD.format("netdev"), "veth4")]),
        (chain(1, AT_VETH4), [Between(FORWARD.format("inet"), "veth4")]),
        (chain(5, AT_BOTH), [Between(FORWARD.format("netdev"), name) for name in ("veth4", "veth5")]),
    ],
    ids=[
        "a rule of a bridge's",
        "a bridge's that drops all",
        "a bridge's without a rule",
        "one that is only called by others",
        "one of IP",
        "one of both IP versions",
        "one at an interface",
        "one of both IP versions at an interface",
        "one at two interfaces",
    ],
)
def test_chains_of_nftables_that_meet_frames(
    monkeypatch: pytest.MonkeyPatch, message: tuple[int, bytes], found: list[Between]
) -> None:
    """Those with a rule, or that let nothing pass."""
    monkeypatch.setattr(between, "dump", lambda *_, **__: iter([message]))
    assert list(between._nftables()) == found


@pytest.mark.parametrize("error", [OSError(93, "Protocol not supported"), KernelError("refused", errno=22)])
def test_a_kernel_without_nftables_has_none(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whichever way it says so."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(between, "dump", refuse)
    assert list(between._nftables()) == []


def test_bridge_netfilter_and_ebtables_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the sysctls, where there are any, and by the modules that are loaded."""
    monkeypatch.setattr(between, "MODULES", tmp_path / "module")
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    monkeypatch.setattr(between, "_nftables", lambda: iter(()))
    monkeypatch.setattr(between, "_queues", lambda: iter(()))
    assert between_pods() == ()
    (tmp_path / "net/bridge").mkdir(parents=True)
    for name, value in (("iptables", "1\n"), ("ip6tables", "0\n"), ("arptables", "1\n")):
        (tmp_path / "net/bridge" / f"bridge-nf-call-{name}").write_text(value)
    (tmp_path / "module/ebtable_nat").mkdir(parents=True)
    assert between_pods() == (IPTABLES, Between("ebtables (ebtable_nat is loaded)"))


@pytest.mark.parametrize(
    ("link", "traits"),
    [
        (Link(4, "veth4", "veth", "", 3, leads_out=True), PAIRED),
        (Link(4, "nk4", "netkit", "", 3, leads_out=True), PAIRED),
        (Link(4, "veth4", "veth", "", 3), frozenset()),
        (Link(4, "tap0", "tun", "", 3, leads_out=True), frozenset()),
        (Link(3, "br0", "bridge", "", 0, options={7: b"\1", 36: b"\0"}), frozenset({Trait.VLAN_FILTERING})),
        (Link(3, "br0", "bridge", "", 0, options={7: b"\0", 37: b"\1"}), frozenset({Trait.CALLS_NETFILTER})),
        (Link(3, "vx", "vxlan", "", 0, options={7: b"\1"}), frozenset()),
        (Link(4, "v", "veth", "", 3, leads_out=True, port_options={33: b"\1", 39: b"\0"}), PAIRED | {Trait.ISOLATED}),
        (Link(4, "v", "veth", "", 3, leads_out=True, port_options={33: b"\0", 39: b"\1"}), PAIRED | {Trait.LOCKED}),
    ],
)
def test_traits_of_interfaces(link: Link, traits: frozenset[Trait]) -> None:
    """By the numbers of include/uapi/linux/if_link.h."""
    from pydatapath.kernel.host import _traits

    assert _traits(link) == traits
