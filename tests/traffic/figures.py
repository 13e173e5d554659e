"""Figures that tests report, shown at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["figure", "pytest_terminal_summary"]

_figures: list[str] = []


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Takes a line to be shown at the end of the run."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests reported, once, however many folders ask for it."""
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
        _figures.clear()
