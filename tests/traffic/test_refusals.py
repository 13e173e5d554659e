"""What cannot be done is refused in one sentence, and what was applied before still works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from calls import KINDS, ask_many
from host_state import dump
from scene import VIP_PORT, Cluster, pydatapath

from pydatapath import instance
from pydatapath.kernel.layout import LAYOUT_VERSION
from pydatapath.lab import Lab, LabSpec

VIP = ("10.96.0.80", VIP_PORT)


@pytest.fixture(scope="module", autouse=True)
def service(cluster: Cluster) -> None:
    """Something that works, to begin with."""
    cluster.apply("web", VIP[0], [cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)])


@pytest.fixture(autouse=True)
def still_works(cluster: Cluster) -> Iterator[None]:
    """After each refusal: the same objects, no drift, and every call is answered."""
    yield
    datapath = cluster.datapaths[1]
    assert [one.service.key for one in datapath.services] == ["default/web"]
    assert datapath.status().drift == ()
    found = ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 50)
    assert (found.failures, len(found.names)) == ([], 2)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line `Error: ...` with these words, at most one line `Hint: ...`, exit code 1, nothing else."""
    error, *hint = done.stderr.splitlines()
    assert error.startswith("Error: "), done.stderr
    assert [line[:6] for line in hint] in ([], ["Hint: "]), done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    for word in words:
        assert word in done.stderr, done.stderr


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {clusterIP: 10.96.0.81, ports: [{port: 80}]}
"""

BAD_MANIFESTS = {
    "a wrong type": (SERVICE.replace("port: 80", "port: eighty"), ["Service", "other", "port"]),
    "a port out of range": (SERVICE.replace("port: 80", "port: 65536"), ["other", "65536"]),
    "a bad address": (SERVICE.replace("10.96.0.81", "10.96.0.256"), ["other", "10.96.0.256"]),
    "an address that is taken": (SERVICE.replace("10.96.0.81", VIP[0]).replace("[{", "[{protocol: TCP, "), [VIP[0]]),
    "an unknown version": (SERVICE.replace("v1", "v9"), ["v9"]),
    "YAML that is none": ("kind: [Service\n: {", ["YAML"]),
    "no object": ("just words", []),
    "a tag that would run code": ("!!python/object/apply:os.system ['touch /tmp/x']", []),
    "bytes that are no text": ("kind: \x00\x01", []),
    "a good one before a bad one": (
        f"{SERVICE}---\n{SERVICE.replace('other', 'worse').replace('80}', '-1}')}",
        ["worse"],
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_manifests_that_are_wrong(cluster: Cluster, text: str, words: list[str]):
    """All or nothing: of a file with one bad object none is made."""
    refused(pydatapath("--netns", cluster.lab.node(1).netns, "apply", "-f", "-", stdin=text), *words)


def test_kinds_that_are_not_ours_are_named_and_skipped(cluster: Cluster):
    """A Deployment beside a Service is no mistake, a kind that nobody knows is none of ours either."""
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", "-f", "-", stdin=text)
    assert done.returncode == 0
    assert "Deployment" in done.stdout
    assert "skipped" in done.stdout


def test_an_unknown_kind_of_our_group(cluster: Cluster):
    """`kind: Servce` is a mistake, and is told so."""
    text = SERVICE.replace("kind: Service", "kind: Servce")
    refused(pydatapath("--netns", cluster.lab.node(1).netns, "apply", "-f", "-", stdin=text), "Servce")


def test_a_file_that_is_not_there(cluster: Cluster):
    refused(pydatapath("--netns", cluster.lab.node(1).netns, "apply", "-f", "/nowhere/web.yaml"), "/nowhere/web.yaml")


BAD_LOADS = {
    "an interface that does not exist": (["--uplink", "eth9"], ["eth9", "there are: "]),
    "a bridge that does not exist": (["--bridge", "br9"], ["br9"]),
    "a bridge that is none": (["--bridge", "eth0"], ["eth0", "no bridge"]),
    "a glob that matches nothing": (["--pod-interface", "tap*"], ["tap*"]),
    "an address that is none": (["--node-ip", "1.2.3"], ["--node-ip", "1.2.3"]),
    "a network that is none": (["--service-cidr", "10.96.0.0/33"], ["--service-cidr", "10.96.0.0/33"]),
    "a configuration that is not there": (["--config", "/nowhere.toml"], ["/nowhere.toml"]),
    "other sizes than it has": (["--max-flows", "2048"], ["flows", "unload"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_LOADS.values(), ids=BAD_LOADS)
def test_loads_that_cannot_be(cluster: Cluster, arguments: list[str], words: list[str]):
    """On an instance that is loaded: what runs goes on."""
    node = cluster.lab.node(1).netns
    refused(pydatapath("--netns", node, "load", "--node-name", node, *arguments), *words)


@pytest.mark.parametrize(("arguments", "words"), list(BAD_LOADS.values())[:-1], ids=list(BAD_LOADS)[:-1])
def test_first_loads_that_cannot_be(cluster: Cluster, arguments: list[str], words: list[str]):
    """On a node that is not loaded: nothing is left behind."""
    node = cluster.lab.node(2)
    before = dump(cluster.lab, [node])
    refused(pydatapath("--netns", node.netns, "load", *arguments), *words)
    assert dump(cluster.lab, [node]) == before


def test_a_namespace_that_does_not_exist():
    for command in ("load", "unload", "status"):
        refused(pydatapath("--netns", "nowhere", command), "nowhere")


def test_what_is_not_loaded(cluster: Cluster):
    """Every command that needs a datapath says that there is none, and how to get one."""
    for command in (["apply", "-f", "-"], ["service", "list"], ["backend", "list"], ["flow", "list"], ["status"]):
        done = pydatapath("--netns", cluster.lab.node(2).netns, *command, stdin=SERVICE)
        refused(done, "not loaded", "pydatapath load")


@pytest.mark.parametrize("command", [["load"], ["unload"], ["apply", "-f", "-"], ["status"]], ids=" ".join)
def test_without_root(cluster: Cluster, command: list[str]):
    """On the node itself, where all is loaded, whoever may not is told so."""
    done = pydatapath(*command, as_nobody_in=cluster.lab.node(1).netns, stdin=SERVICE)
    refused(done, "sudo")
    assert "not loaded" not in done.stderr


def test_a_pin_of_a_foreign_layout():
    """A map of another size lies where ours belongs: it is left alone, and load says what to do."""
    with Lab.up(LabSpec(f"fl-{os.getpid()}", nodes=1, pods=1)) as lab:
        node = lab.node(1).netns
        pins = instance.here("default", node).pins / f"maps_v{LAYOUT_VERSION}"
        pins.mkdir(parents=True)
        pin = pins / "services"
        create = f"bpftool map create {pin} type hash key 4 value 4 entries 10 name foreign"
        subprocess.run(create.split(), check=True, timeout=10)
        try:
            refused(pydatapath("--netns", node, "load"), "services", "not our map", "unload")
            assert pin.exists(), "what is not ours stays"
        finally:
            pin.unlink(missing_ok=True)
            instance.here("default", node).remove()
