"""Clusters for the traffic tests, and the figures that they report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test folders are no packages (import mode importlib): what the tests share is found beside them
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("calls", "scene")

from figures import figure, pytest_terminal_summary  # noqa: E402
from scene import Cluster, cluster_up  # noqa: E402

__all__ = ["both_loaded", "cluster", "figure", "pytest_terminal_summary"]


def _name(request: pytest.FixtureRequest) -> str:
    return f"{request.path.stem.removeprefix('test_')[:8].strip('_').replace('_', '-')}-{os.getpid()}"


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes of three pods each, the first one loaded; all pods but the first of each node serve."""
    with cluster_up(_name(request)) as made:
        made.serve(*(pod for pod in made.lab.pods if pod.number > 1))
        yield made


@pytest.fixture(scope="module")
def both_loaded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """As `cluster`, with a datapath on each node, both under the default name."""
    with cluster_up(f"{_name(request)}b", loaded=(1, 2)) as made:
        made.serve(*(pod for pod in made.lab.pods if pod.number > 1))
        yield made
