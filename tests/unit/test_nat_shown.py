"""Masquerading as people read it, and forwards of ports, as far as no kernel is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pydatapath import egress
from pydatapath.applying import Edit, here, want
from pydatapath.egress import usable_ports
from pydatapath.errors import DatapathError
from pydatapath.forwarding import (
    KIND,
    NAMESPACE,
    UNSPECIFIED,
    Forward,
    canonical,
    check,
    check_target,
    plan_forward,
    unreachable,
)
from pydatapath.kernel.layout import Family
from pydatapath.kernel.nattable import ends_of, ports_used, top_sources
from pydatapath.plan import Address
from pydatapath.records import Records, Stored, titled
from pydatapath.reference import nat
from pydatapath.serving import Here
from pydatapath.views import End, Flow, NatMapping, PortsUsed, Tuple

POD, NODE, SERVER, VIP = ("10.244.1.11", 5000), ("192.0.2.11", 20001), ("203.0.113.7", 443), ("10.96.0.10", 80)
HERE = Here("node1", ("192.0.2.11", "2001:db8::11"), families=(Family.IPV4, Family.IPV6))
WEB = Forward("", 8080, Address("10.244.1.11", 80, "TCP"))
NODE_PORTS = (30_000, 32_767)
# Runs a command line, then prints every module that is there
PROBE = """
import sys
from pydatapath.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules)
"""


def flow(original: tuple[tuple[str, int], tuple[str, int]], reply: tuple[tuple[str, int], tuple[str, int]]) -> Flow:
    ends = (Tuple(*original[0], *original[1]), Tuple(*reply[0], *reply[1]))
    return Flow("TCP", *ends, state="new", packets=(1, 0), bytes=(60, 0), idle=0.0, expires=120.0)


def mapping(
    inside: tuple[str, int], outside: tuple[str, int], *remotes: tuple[str, int], kind: str = "tcp"
) -> NatMapping:
    ends = tuple(End(*one) for one in remotes)
    return NatMapping(6 if ":" in inside[0] else 4, kind, End(*inside), End(*outside), ends, 0.0, 1.0)


@pytest.mark.parametrize(
    ("original", "reply"),
    [
        pytest.param((POD, SERVER), (SERVER, NODE), id="outwards"),
        pytest.param((POD, VIP), (SERVER, NODE), id="outwards by a service"),
        pytest.param((SERVER, NODE), (POD, SERVER), id="from outside, in full-cone"),
        pytest.param((POD, ("192.0.2.11", 443)), (SERVER, NODE), id="to another pod, by its end outside"),
    ],
)
def test_whose_ends_a_flow_has(
    original: tuple[tuple[str, int], tuple[str, int]], reply: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    """The pod, its port outside, and whom it talks to, whoever came first."""
    assert ends_of(flow(original, reply)) == (End(*POD), End(*NODE), End(*SERVER))


def test_used_ports_are_counted_once() -> None:
    """A port of TCP may be there for many servers; an address where nothing is used is shown, too, IPv4 first."""
    ports = {*range(20_000, 20_100)}
    found = ports_used(
        [
            mapping(POD, NODE, SERVER),
            mapping(("10.244.1.12", 5000), NODE, ("203.0.113.8", 443)),
            mapping(POD, NODE, SERVER, kind="udp"),
            mapping(POD, ("192.0.2.11", 7), ("203.0.113.7", 0), kind="icmp"),
        ],
        ["2001:db8::11", "192.0.2.11"],
        lambda address, protocol: ports - {20_099} if (address, protocol) == ("192.0.2.11", "udp") else ports,
    )
    assert found == [
        PortsUsed("192.0.2.11", "icmp", 0, 100, 1),
        PortsUsed("192.0.2.11", "tcp", 1, 100),
        PortsUsed("192.0.2.11", "udp", 1, 99),
        PortsUsed("2001:db8::11", "tcp", 0, 100),
        PortsUsed("2001:db8::11", "udp", 0, 100),
    ]


def test_N19_no_more_ports_are_used_than_there_are() -> None:
    """A pod's own port that was kept, and is none of the range, or has become a service's, is counted beside it."""
    usable = usable_ports((29_998, 30_010), NODE_PORTS)
    assert usable == {29_998, 29_999}
    kept = (29_997, 29_998, 29_999, 30_000, 40_000)
    found = ports_used(
        [mapping(POD, ("192.0.2.11", port), SERVER) for port in kept],
        ["192.0.2.11"],
        lambda *_: usable - {29_999},
    )
    assert found[0] == PortsUsed("192.0.2.11", "tcp", 1, 1, 4)


def test_N19_what_is_reserved_is_what_the_model_reserves() -> None:
    """Tunnels' ports and DHCP's; of the range that is the default all others but node ports."""
    assert egress.RESERVED == nat.RESERVED
    assert len(usable_ports((1_024, 65_535), NODE_PORTS)) == 65_535 - 1_023 - 2_768 - 4


def test_the_sources_with_the_most_flows() -> None:
    """Ten at most; a mapping that talks to nobody counts for nothing."""
    many = [mapping((f"10.244.1.{pod}", 5000), NODE, *[SERVER] * (pod % 12)) for pod in range(12, 36)]
    found = top_sources(many)
    assert found[:2] == [("10.244.1.23", 11), ("10.244.1.35", 11)]
    assert len(found) == 10
    assert top_sources([mapping(POD, NODE)]) == []


def test_a_forward_is_a_service_port_with_one_backend() -> None:
    """At all addresses of its family where node ports answer, or at the one that is named."""
    (port,) = plan_forward(WEB, HERE)
    assert [(str(one.address), one.kind, one.owned) for one in port.frontends] == [
        ("192.0.2.11:8080/tcp", "node-port", False)
    ]
    assert port.cluster == (Address("10.244.1.11", 80, "TCP"),)
    six = Forward("2001:db8::11", 53, Address("fd00::b", 5353, "UDP"))
    assert [str(one.address) for one in plan_forward(six, HERE)[0].frontends] == ["[2001:db8::11]:53/udp"]
    assert plan_forward(six, Here("node1", HERE.addresses)) == []  # IPv6 is not loaded
    assert plan_forward(six, Here("node1", ("192.0.2.11",), families=HERE.families)) == []


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (WEB, "0.0.0.0:8080/tcp"),
        (Forward("192.0.2.11", 53, Address("10.244.1.11", 53, "UDP")), "192.0.2.11:53/udp"),
        (Forward("", 8080, Address("fd00::b", 80, "SCTP")), "[::]:8080/sctp"),
    ],
)
def test_a_forward_is_read_back(forward: Forward, name: str) -> None:
    """And named as docker does."""
    assert Forward.read(forward.text) == forward
    assert forward.name == name


@pytest.mark.parametrize(
    ("forward", "holders", "message"),
    [
        (WEB, ["Service default/web"], "0.0.0.0:8080/tcp: Service default/web has the port"),
        (
            Forward("", 30_080, WEB.target),
            [],
            "0.0.0.0:30080/tcp: 30080 is in the range of services' node ports",
        ),
        (Forward("192.0.2.12", 80, WEB.target), [], "192.0.2.12:80/tcp: the node has no such address"),
        (
            Forward("2001:db8::11", 80, WEB.target),
            [],
            "[2001:db8::11]:80/tcp: 2001:db8::11 and 10.244.1.11 are of two families",
        ),
    ],
)
def test_what_a_forward_cannot_be(forward: Forward, holders: list[str], message: str) -> None:
    """One sentence, and what to do."""
    with pytest.raises(DatapathError) as caught:
        check(forward, HERE, NODE_PORTS, holders)
    assert str(caught.value) == f"port-forward {message}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "target", "message"),
    [
        ("", "127.0.0.1", "0.0.0.0:80/tcp: '127.0.0.1' is a loopback address, which no pod can have"),
        ("", "fe80::1", "[::]:80/tcp: 'fe80::1' is a link-local address, which no pod can have"),
        ("", "fd00::b%eth0", "[::]:80/tcp: 'fd00::b%eth0' is not an IPv4 or IPv6 address (a zone has no place in it)"),
        (
            "",
            "::ffff:10.244.1.11",
            "[::]:80/tcp: '::ffff:10.244.1.11' is an IPv4 address in IPv6 notation (write 10.244.1.11)",
        ),
        ("", "web", "0.0.0.0:80/tcp: 'web' is not an IPv4 or IPv6 address"),
        ("127.0.0.1", "10.244.1.11", "127.0.0.1:80/tcp: '127.0.0.1' is a loopback address, which no forward can have"),
        ("", "255.255.255.255", "0.0.0.0:80/tcp: 255.255.255.255 is a reserved address, which no pod can have"),
        ("", "240.0.0.1", "0.0.0.0:80/tcp: 240.0.0.1 is a reserved address, which no pod can have"),
        ("", "10.244.1.1", "0.0.0.0:80/tcp: 10.244.1.1 is the node's own address"),
        ("", "2001:DB8::11", "[::]:80/tcp: 2001:db8::11 is the node's own address"),
        ("", "10.96.0.10", "0.0.0.0:80/tcp: 10.96.0.10 is in a service network"),
        ("", "fd00:10:96::a", "[::]:80/tcp: fd00:10:96::a is in a service network"),
    ],
)
def test_whom_a_forward_cannot_have(address: str, target: str, message: str) -> None:
    """One sentence, and what to do."""
    own = ["192.0.2.11", "10.244.1.1", "2001:db8::11"]

    def add() -> None:
        forward = canonical(Forward(address, 80, Address(target, 80, "TCP")))
        check_target(forward, own, ["10.96.0.0/12", "fd00:10:96::/112"], ["10.244.1.0/24", "240.1.2.3/16"])

    with pytest.raises(DatapathError) as caught:
        add()
    assert str(caught.value) == f"port-forward {message}"
    assert caught.value.hint


def test_a_forward_is_kept_as_other_addresses_are() -> None:
    """In their canonical form; whoever calls any address of the node says none."""
    made = canonical(Forward("2001:DB8::0011", 80, Address("FD00:0::B", 80, "TCP")))
    assert (made.address, made.target.address) == ("2001:db8::11", "fd00::b")
    for address in ("10.244.1.11", "240.1.0.1", "fd00::b"):
        target = Address(address, 80, "TCP")
        made = canonical(Forward(UNSPECIFIED[target.family], 80, target))
        check_target(made, ["192.0.2.11"], ["10.96.0.0/12"], ["10.244.1.0/24", "240.1.2.3/16"])
        assert made.address == ""


def test_a_forward_that_nobody_can_call_is_told() -> None:
    """Its address is no place of node ports any more, or its family is not loaded; one sentence each."""
    four = Forward("192.0.2.11", 53, Address("10.244.1.11", 53, "UDP"))
    six = Forward("", 8080, Address("fd00::b", 80, "TCP"))
    assert unreachable([WEB, four, six], HERE) == []
    said = f"port-forward {four.name}: nobody can call it, for node ports do not answer at 192.0.2.11"
    assert unreachable([WEB, four, six], Here("node1", ("192.0.2.12", "2001:db8::11"), families=HERE.families)) == [
        said
    ]
    said = f"port-forward {six.name}: nobody can call it, for node ports answer at no IPv6 address"
    assert unreachable([WEB, four, six], Here("node1", ("192.0.2.11",), families=HERE.families)) == [said]
    said = f"port-forward {six.name}: nobody can call it, for IPv6 is not loaded"
    assert unreachable([WEB, four, six], Here("node1", HERE.addresses)) == [said]


def test_a_forward_is_kept_beside_services(tmp_path: Path) -> None:
    """Whoever plans everything anew plans it, too; and who asks for its port hears of it."""
    with Records(tmp_path / "records", create=True) as records:
        records.put({"node_name": "node1", "node_port_addresses": ["192.0.2.11"], "families": [4]})
        records.store([Stored(KIND, NAMESPACE, WEB.name, None, WEB.text)])
        wanted = want(records, Edit(), whole=True)
        assert wanted.ports == plan_forward(WEB, here(records))
        assert records.holders([Address("192.0.2.11", 8080, "TCP")]) == ["port-forward 0.0.0.0:8080/tcp"]
        assert records.holders([Address("192.0.2.11", 8080, "UDP")]) == []
        assert records.ports_of_services(["192.0.2.11", "192.0.2.12"]) == {("192.0.2.11", "tcp"): {8080}}
        (port,) = records.ports().values()
        assert str(port) == "port-forward 0.0.0.0:8080/tcp"
        assert titled("default/web") == "Service default/web"
        records.forget([(KIND, NAMESPACE, WEB.name)])
        assert want(records, Edit(), whole=True).ports == []
        assert records.ports() == {}


@pytest.mark.parametrize("command", [["nat", "list"], ["nat", "stats"], ["port-forward", "list"]], ids=" ".join)
def test_reading_imports_neither_bcc_nor_pyroute2(command: list[str]) -> None:
    """As the other commands that read."""
    asked = [sys.executable, "-c", PROBE, "--instance", "no-such-instance-of-a-test", *command]
    modules = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert "pydatapath.datapath" in modules
    assert not {"bcc", "pyroute2", "yaml", "pydatapath.kernel.compile", "pydatapath.loading"} & {*modules}
