"""How far a run is, and how long it may still take."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "duration"]


def duration(seconds: float) -> str:
    """As people say it: "40 s", "12 min"."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


class Progress:
    """A run of `expected` seconds: one line that is written over at a terminal, elsewhere a line where asked for."""

    def __init__(
        self, expected: float, output: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected, self._clock, self._output = expected, clock, output or sys.stderr
        self._since, self._done, self._written = clock(), 0.0, ""

    def step(self, seconds: float) -> None:
        """What was expected to take so long is done."""
        self._done += seconds

    @property
    def left_s(self) -> float:
        """Seconds that the rest takes, if it goes on as slower or faster than expected as so far."""
        pace = (self._clock() - self._since) / self._done if self._done else 1.0
        return (self._expected - self._done) * pace

    def __str__(self) -> str:
        share = self._done / self._expected if self._expected else 1.0
        return f"{share:4.0%}, about {duration(self.left_s)} left"

    def show(self, what: str, *, line: bool) -> None:
        """Tell what is going on. `line`: also where each showing is a line of its own."""
        text = f"{self}: {what}"
        if self._output.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            self._output.write(f"\r{text:<{len(self._written)}}")
            self._written = text
        elif line:
            self._output.write(f"{text}\n")
        self._output.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        self._output.write(f"{text}\n")
        self._output.flush()

    def close(self) -> None:
        """Leave the line; what comes next begins another."""
        if self._written:
            self._output.write(f"\r{'':<{len(self._written)}}\r")
            self._written = ""
