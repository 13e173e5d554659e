"""The examples in Python do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import KINDS, ask, ask_many, dial
from scene import PATIENCE, PORT, Cluster, cluster_up

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One loaded node; two of its pods serve."""
    with cluster_up(f"examples-{os.getpid()}", nodes=1, pods=3) as made:
        made.serve(*made.lab.pods[1:])
        yield made


def example(name: str, *arguments: str) -> str:
    """What one prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def test_all_are_run_here():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names == ["apply", "replace_backend", "serve", "who_talks"]


def test_manifests_are_applied(cluster: Cluster):
    """What differs is shown first; once applied nothing does."""
    node, file = cluster.lab.node(1).netns, str(EXAMPLES / "web.yaml")
    first, second = example("apply.py", node, file), example("apply.py", node, file)
    assert "+    port: 80" in first
    assert first.endswith("service/default/web created\nendpointslice/default/web-1 created\n")
    assert second.splitlines()[1:] == ["service/default/web unchanged", "endpointslice/default/web-1 unchanged"]


def test_a_service_is_made_shown_and_moved(cluster: Cluster):
    """Its open connection stays with the backend that gives way, which goes when that ends."""
    node, (caller, old, new) = cluster.lab.node(1).netns, cluster.lab.pods
    vip = example("serve.py", node, "shop", f"{old.address}:{PORT}").strip()
    calling = dial(caller, (vip, 80), KINDS["TCP"])
    try:
        assert ask(calling).name == "node1-pod2"
        assert f"{caller.address} -> default/shop" in example("who_talks.py", node)
        moving = threading.Timer(1, calling.close)
        moving.start()
        said = example("replace_backend.py", node, "shop", f"{old.address}:{PORT}", f"{new.address}:{PORT}")
        moving.join()
        assert "configured" in said
        assert set(ask_many(caller, KINDS["TCP"], (vip, 80), 10).names) == {"node1-pod3"}
    finally:
        calling.close()
