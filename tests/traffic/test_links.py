"""Our wrappers around pyroute2: what they are told arrives, and what they refuse names the object."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from pydatapath.errors import Conflict, KernelError, NotFound
from pydatapath.kernel import links


@pytest.fixture
def scratch() -> Iterator[str]:
    """An empty namespace."""
    name = f"l{os.getpid()}"
    links.create_namespace(name)
    yield name
    links.delete_namespace(name)


def ip(netns: str, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-n", netns, "-j", "-d", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_links_do_what_they_say(scratch: str):
    other = f"{scratch}2"
    links.create_namespace(other)
    try:
        with links.Links(scratch) as here:
            here.veth("a", "b", other, peer_mac="02:00:00:00:00:0b")
            here.bridge("br0", "02:00:00:00:00:01")
            here.enslave("a", "br0")
            here.address("br0", "10.0.0.1/24")
            here.address("br0", "fd00::1/64")
            here.neighbour("br0", "10.0.0.9", "02:00:00:00:00:09")
            here.route("10.9.0.0/16", via="10.0.0.9", device="br0")
            assert ip(scratch, "link", "show", "a")[0]["master"] == "br0"
            assert ip(other, "link", "show", "b")[0]["address"] == "02:00:00:00:00:0b"
            (neighbour,) = ip(scratch, "neigh", "show", "dev", "br0")
            assert (neighbour["lladdr"], neighbour["state"]) == ("02:00:00:00:00:09", ["PERMANENT"])
            (route,) = ip(scratch, "route", "show", "10.9.0.0/16")
            assert (route["gateway"], route["dev"]) == ("10.0.0.9", "br0")
            here.delete("a")
            assert [link["ifname"] for link in ip(other, "link")] == ["lo"]
    finally:
        links.delete_namespace(other)


def test_errors_name_the_object(scratch: str):
    with links.Links(scratch) as here:
        here.bridge("br0", "02:00:00:00:00:01")
        with pytest.raises(Conflict, match=f"cannot add bridge br0 in {scratch}: it exists already"):
            here.bridge("br0", "02:00:00:00:00:01")
        with pytest.raises(NotFound, match=f"there is no interface nic in {scratch}"):
            here.up("nic")
        with pytest.raises(KernelError, match=f"cannot add route to default via 1.2.3.4 in {scratch}: Network is"):
            here.route("default", via="1.2.3.4")
        with pytest.raises(NotFound, match="network namespace 'nowhere' does not exist"):
            here.veth("a", "b", "nowhere", peer_mac="02:00:00:00:00:0b")
    with pytest.raises(Conflict, match=f"network namespace '{scratch}' exists already"):
        links.create_namespace(scratch)
    with pytest.raises(NotFound, match="network namespace 'nowhere' does not exist"):
        links.delete_namespace("nowhere")
    with pytest.raises(NotFound, match="no sysctl net/ipv4/nonsense"):
        links.write_sysctls(scratch, {"net/ipv4/nonsense": "1"})
    with pytest.raises(KernelError, match="cannot set sysctl net/ipv4/ip_forward=x in"):
        links.write_sysctls(scratch, {"net/ipv4/ip_forward": "x"})


def test_offloads_are_switched(scratch: str):
    """Read with ethtool, as a user would."""
    if shutil.which("ethtool") is None:
        pytest.skip("ethtool is not installed")
    names = ("rx-checksumming", "tx-checksumming", "tx-tcp-segmentation", "generic-segmentation-offload")

    def states() -> set[str]:
        command = ["nsenter", f"--net=/run/netns/{scratch}", "ethtool", "-k", "a"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        pairs = (line.split(":") for line in done.stdout.splitlines()[1:])
        return {value.strip() for name, value in pairs if name.strip() in names}

    with links.Links(scratch) as here:
        here.veth("a", "b", scratch, peer_mac="02:00:00:00:00:0b")
    assert states() == {"on"}
    links.set_offloads(scratch, "a", on=False)
    assert states() == {"off"}
    links.set_offloads(scratch, "a", on=True)
    assert states() == {"on"}
    with pytest.raises(NotFound, match=f"cannot switch offload tso of nic in {scratch}: No such device"):
        links.set_offloads(scratch, "nic", on=False)
