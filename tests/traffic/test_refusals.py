"""What cannot be done is refused in one sentence, and what was applied before still works."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

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


BAD = {
    "port": SERVICE.replace("other", "zero").replace("port: 80", "port: 0"),
    "more": SERVICE.replace("other", "more").replace("port: 80", "port: 70000"),
    "taken": SERVICE.replace("other", "taken").replace("10.96.0.81", VIP[0]),
    "range": SERVICE.replace("other", "range").replace("{cluster", "{loadBalancerSourceRanges: [x], cluster"),
    "endpoint": """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [127.0.0.1]}]
""",
}
TWICE = SERVICE.replace("{clusterIP: 10.96.0.81", "{type: NodePort, clusterIP: IP").replace(
    "80}]", "80, nodePort: 30099}]"
)
SENTENCES = {
    "zero": "Service default/zero: spec.ports[0].port: 0 is not a port",
    "more": "Service default/more: spec.ports[0].port: 70000 is not a port",
    "taken": f"Service default/taken: {VIP[0]}:80/tcp is taken by Service default/web",
    "range": "Service default/range: spec.loadBalancerSourceRanges[0]: 'x' is not a network",
    "bad-1": "EndpointSlice default/bad-1: endpoints[0].addresses[0]: '127.0.0.1' is a loopback address",
    "twice": "Service default/twice: node port 30099/tcp is taken by Service default/once",
}
ALL = "---".join(
    [
        *BAD.values(),
        TWICE.replace("other", "once").replace(" IP,", " 10.96.0.82,"),
        TWICE.replace("other", "twice").replace(" IP,", " 10.96.0.83,"),
        SERVICE,
    ]
)


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("Error: ")]


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["all or none", "dry run"])
def test_every_bad_object_is_named_at_once(cluster: Cluster, how: list[str]):
    """An error each, so that all are mended at once; and not even the good one is made."""
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", *how, "-f", "-", stdin=ALL)
    assert (done.returncode, done.stdout) == (1, "")
    errors = errors_of(done)
    assert len(errors) == len(SENTENCES)
    for sentence in SENTENCES.values():
        assert [sentence in error for error in errors].count(True) == 1, done.stderr


def test_with_keep_going_the_good_ones_are_made(cluster: Cluster):
    """And each bad one is named; the exit code says that something is amiss. A dry run says the same beforehand."""
    node = cluster.lab.node(1).netns
    dry = pydatapath("--netns", node, "apply", "--keep-going", "--dry-run", "-f", "-", stdin=ALL)
    done = pydatapath("--netns", node, "apply", "--keep-going", "-f", "-", stdin=ALL)
    made = pydatapath("--netns", node, "delete", "service", "once", "other")
    assert made.returncode == 0, made.stderr
    assert done.stdout.splitlines() == ["service/default/once created", "service/default/other created"]
    assert dry.stdout.splitlines() == [f"{line} (dry run)" for line in done.stdout.splitlines()]
    for one in (dry, done):
        assert (one.returncode, len(errors_of(one))) == (1, len(SENTENCES))
        assert all(sentence in one.stderr for sentence in SENTENCES.values()), one.stderr


def test_with_keep_going_a_broken_file_does_not_hold_up_the_others(cluster: Cluster, tmp_path: Path):
    """Its own good beginning is made, too. Nothing is pruned, as nobody knows what else stood in it."""
    (tmp_path / "1.yaml").write_text(f"{SERVICE.replace('other', 'first')}---\nkind: [Service\n---\n{SERVICE}")
    (tmp_path / "2.yaml").write_text(SERVICE.replace("other", "second").replace("10.96.0.81", "10.96.0.82"))
    node = cluster.lab.node(1).netns
    done = pydatapath("--netns", node, "apply", "--keep-going", "--prune", "-f", str(tmp_path))
    assert pydatapath("--netns", node, "delete", "service", "first", "second").returncode == 0
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["service/default/first created", "service/default/second created"]
    broken, pruned = sorted(errors_of(done))
    assert broken.startswith(f"Error: {tmp_path}/1.yaml:")
    assert pruned == "Error: nothing is pruned, because not all objects could be read"


def test_with_keep_going_an_object_that_is_bad_now_stays_as_it_was(cluster: Cluster):
    """Also where all others are pruned: the service of this module still answers."""
    text = SERVICE.replace("other", "web").replace("port: 80", "port: 0")
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", "--keep-going", "-f", "-", stdin=text)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_service_by_hand_at_an_address_that_is_taken(cluster: Cluster):
    """One service, one error, as of a manifest."""
    words = ["service", "add", "other", "--port", "80", "--cluster-ip", VIP[0]]
    done = pydatapath("--netns", cluster.lab.node(1).netns, *words)
    refused(done, f"Service default/other: {VIP[0]}:80/tcp is taken by Service default/web", "Hint: ")


def test_kinds_that_are_not_ours_are_named_and_skipped(cluster: Cluster):
    """A Deployment beside a Service is no mistake, a kind that nobody knows is none of ours either."""
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", "-f", "-", stdin=text)
    assert done.returncode == 0
    assert "Deployment" in done.stdout
    assert "skipped" in done.stdout


@pytest.mark.parametrize("command", ["apply", "diff"])
def test_prune_by_the_wrong_file_is_refused(cluster: Cluster, command: str):
    """Without an object of ours all would be deleted, which a list without items says, too."""
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
    words = ["--netns", cluster.lab.node(1).netns, command, "--prune", "-f", "-"]
    done = pydatapath(*words, stdin=text)
    assert done.returncode == {"apply": 1, "diff": 2}[command]
    assert "no Service, EndpointSlice or Node is in the manifests (Deployment default/web" in done.stderr
    dry = [*words, "--dry-run"] if command == "apply" else words
    assert "web" in pydatapath(*dry, stdin="apiVersion: v1\nkind: List\nitems: []\n").stdout


def test_S1_a_service_without_an_address_is_told_to_be_served_by_nobody(cluster: Cluster):
    """An API server would hand one out. A headless one wants none; --dry-run is written in kubectl's ways, too."""
    words = ["--netns", cluster.lab.node(1).netns, "apply", "-f", "-"]
    said = "Warning: Service default/other: it has no spec.clusterIP, and is not served: name an address of a service"
    text = re.sub(r"clusterIP: [^,}]+, ", "", SERVICE)
    assert text != SERVICE
    for way in ("--dry-run", "--dry-run=client", "--dry-run=server"):
        done = pydatapath(*words, way, stdin=text)
        assert (done.returncode, done.stdout) == (0, "service/default/other created (dry run)\n")
        assert done.stderr.startswith(said)
    headless = text.replace("spec: {", "spec: {clusterIP: None, ")
    assert pydatapath(*words, "--dry-run", stdin=headless).stderr == ""


@pytest.mark.parametrize("where", ["node", "pod"])
def test_a_ClusterIP_that_is_somebodys_address_is_refused(cluster: Cluster, where: str):
    """This node's own, or one where its pods are: nobody could reach them by that port."""
    node = cluster.lab.node(1)
    address = {"node": node.address, "pod": cluster.lab.pod(1, 1).address}[where]
    text = re.sub(r"clusterIP: [^,}]+", f"clusterIP: {address}", SERVICE)
    done = pydatapath("--netns", node.netns, "apply", "-f", "-", stdin=text)
    refused(
        done, f"Service default/other: the ClusterIP {address} is", "an address of this" if where == "node" else "pod"
    )


def test_a_field_that_its_kind_has_not_is_told_and_does_nothing(cluster: Cluster):
    """With what may be meant; a later Kubernetes may have it, so it is no reason to refuse the object."""
    text = SERVICE.replace("clusterIP:", "sesionAffinity: ClientIP, clusterIP:")
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", "--dry-run", "-f", "-", stdin=text)
    said = "Warning: Service default/other: spec.sesionAffinity: is not known, and does nothing"
    assert (done.returncode, done.stdout) == (0, "service/default/other created (dry run)\n")
    assert done.stderr == f"{said} (did you mean sessionAffinity?)\n"


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


@pytest.mark.parametrize("how", ["named", "by the default route"])
def test_an_uplink_without_Ethernet(cluster: Cluster, how: str):
    """Of a tun's packets the programs would read the IP header as Ethernet's; with another uplink it may be there."""
    node = cluster.lab.node(2)
    node.exec(["ip", "tuntap", "add", "mode", "tun", "name", "tun0"], check=True)
    try:
        node.exec(["ip", "address", "add", "10.9.0.1/24", "dev", "tun0"], check=True)
        node.exec(["ip", "link", "set", "tun0", "up"], check=True)
        node.exec(["ip", "route", "add", "default", "dev", "tun0", "metric", "7"], check=True)
        arguments = ("--uplink", "eth0", "--uplink", "tun0") if how == "named" else ()
        sentence = "Error: uplink 'tun0' has no Ethernet, and its packets cannot be read\nHint: --uplink names others, "
        refused(pydatapath("--netns", node.netns, "load", *arguments), f"{sentence}such as eth0; what pods send")
        assert pydatapath("--netns", node.netns, "load", "--uplink", "eth0").returncode == 0
        assert pydatapath("--netns", node.netns, "unload").returncode == 0
    finally:
        node.exec(["ip", "link", "delete", "tun0"], check=True)


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
