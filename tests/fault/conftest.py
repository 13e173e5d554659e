"""The fault tests play on the scene of the traffic tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Test folders are no packages (import mode importlib): what the tests share is found beside them
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "traffic")]
pytest.register_assert_rewrite("calls", "moving", "scene", "spoiling", "streaming", "under_flood")

from figures import figure, pytest_terminal_summary  # noqa: E402
from moving import cluster, later, sockets  # noqa: E402
from spoiling import loaded, stand  # noqa: E402

__all__ = ["cluster", "figure", "later", "loaded", "pytest_terminal_summary", "sockets", "stand"]
