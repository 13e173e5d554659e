"""Clusters for the traffic tests, and the figures that they report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Test folders are no packages (import mode importlib): what the tests share is found beside them
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("calls", "scene")

from scene import Cluster, cluster_up  # noqa: E402

_figures: list[str] = []


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


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Takes a line to be shown at the end of the run."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests reported."""
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
