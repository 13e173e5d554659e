"""`diff` says what `apply` would do, and does nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import tell
from scene import Cluster, cluster_up, objects, pydatapath

VIP = "10.96.0.71"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A loaded node with one service."""
    with cluster_up(f"di-{os.getpid()}", nodes=1, pods=2) as made:
        made.apply("web", VIP, [made.lab.pod(1, 2)])
        yield made


def documents(cluster: Cluster, *pods: int, vip: str = VIP, name: str = "web") -> str:
    """The manifests of a service with these pods."""
    made = objects(name, vip, [cluster.lab.pod(1, number) for number in pods])
    return yaml.safe_dump_all([dict(one.manifest) for one in made])


def diff(cluster: Cluster, text: str, *options: str) -> tuple[int, str, str]:
    done = pydatapath("--netns", cluster.lab.node(1).netns, "diff", "-f", "-", *options, stdin=text)
    return done.returncode, done.stdout, done.stderr


def everything(cluster: Cluster) -> dict[str, Any]:
    """The records, the maps, and when any file of the instance was written last; but for the lock, which says who was
    there, and what SQLite keeps beside a database that is open.
    """
    datapath = cluster.datapaths[1]
    which = datapath.instance
    files = [*which.directory.iterdir(), *which.pins.rglob("*")]
    return {
        "objects": datapath.objects(),
        "maps": {
            path.name: sorted(datapath._maps[path.name].items())
            for path in which.map_pins.iterdir()
            if path.name != "counters"
        },
        "times": {path: path.stat().st_mtime_ns for path in files if path.name not in ("lock", "state.db-shm")},
        "bytes": which.records.read_bytes(),
    }


def changes(cluster: Cluster, text: str, *options: str) -> list[tuple[str, str]]:
    """What would become of which objects, by JSON; what `apply --dry-run` says is the same."""
    code, out, _ = diff(cluster, text, "-o", "json", *options)
    found = [(one["name"], one["change"]) for one in json.loads(out)]
    assert code == bool(found)
    done = pydatapath("--netns", cluster.lab.node(1).netns, "apply", "--dry-run", "-f", "-", *options, stdin=text)
    told = [line.split()[:2] for line in done.stdout.splitlines() if "unchanged" not in line]
    assert [(name.rpartition("/")[2], change) for name, change in told] == found
    return found


def test_no_difference_is_exit_code_0_and_silence(cluster: Cluster):
    """Also where the manifest is written otherwise."""
    assert diff(cluster, documents(cluster, 2)) == (0, "", "")
    assert changes(cluster, documents(cluster, 2)) == []
    assert diff(cluster, documents(cluster, 2), "-o", "yaml") == (0, "[]\n", "")


def test_differences_are_shown_and_not_made(cluster: Cluster):
    """Created, configured and, with --prune, deleted; records, maps and files are as before."""
    before = everything(cluster)
    more = documents(cluster, 1, 2) + "---\n" + documents(cluster, 1, vip="10.96.0.72", name="new")
    code, out, err = diff(cluster, more)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("diff ")] == [
        f"diff -u -N LIVE/{name} MERGED/{name}"
        for name in (
            "discovery.k8s.io.v1.EndpointSlice.default.web-1",
            "v1.Service.default.new",
            "discovery.k8s.io.v1.EndpointSlice.default.new-1",
        )
    ]
    assert f"+  - {cluster.lab.pod(1, 1).address}" in lines
    assert "+  clusterIP: 10.96.0.72" in lines
    assert changes(cluster, more) == [("web-1", "configured"), ("new", "created"), ("new-1", "created")]
    other = documents(cluster, 1, vip="10.96.0.72", name="new")
    assert changes(cluster, other, "--prune")[2:] == [("web-1", "deleted"), ("web", "deleted")]
    assert f"-  clusterIP: {VIP}" in diff(cluster, other, "--prune")[1].splitlines()
    assert everything(cluster) == before


def test_what_apply_refuses_is_an_error(cluster: Cluster, tmp_path: Path):
    """Exit code 2, the refusal on stderr, no half of a diff; and nothing is done."""
    before = everything(cluster)
    taken = documents(cluster, 1, name="other")
    bad = documents(cluster, 2) + "---\nkind: Service\napiVersion: v1\nmetadata: {name: bad}\nspec: {clusterIP: x}\n"
    for text, part in ((taken, "Service default/other"), (bad, "Service default/bad"), ("", "holds no objects")):
        code, out, err = diff(cluster, text)
        assert (code, out) == (2, "")
        assert part in err
        assert err.startswith("Error: ")
    missing = pydatapath("--netns", cluster.lab.node(1).netns, "diff", "-f", str(tmp_path / "none.yaml"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert everything(cluster) == before


def test_other_kinds_are_named_beside_the_diff(cluster: Cluster):
    """What goes to `patch` or to a reader is the diff alone."""
    pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: one}\n"
    code, out, err = diff(cluster, documents(cluster, 2) + pod)
    assert (code, out) == (0, "")
    assert err == "Pod default/one skipped: pydatapath reads Services, EndpointSlices and Nodes\n"


def test_F26_a_terminal_is_given_nothing_to_obey(cluster: Cluster):
    """Annotations may hold any character."""
    made = [json.loads(json.dumps(dict(one.manifest))) for one in objects("web", VIP, [cluster.lab.pod(1, 2)])]
    made[0]["metadata"]["annotations"] = {"note": "\x1b[31m\x9b31m\u202e\x07"}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    outputs = [diff(cluster, text, "-o", form) for form in ("diff", "json", "yaml")]
    obeyed = [line for _, out, _ in outputs for line in out.split("\n") if not line.isprintable()]
    tell(repeats=len(outputs), wrong=len(obeyed), load="nobody")
    assert [code for code, *_ in outputs] == [1, 1, 1]
    assert obeyed == []
