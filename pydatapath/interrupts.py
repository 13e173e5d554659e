"""Ctrl-C at the right moment: what is being built or taken down is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["deferred"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the block ends; they do then what they would have done.

    It gives a function that makes inner blocks in which they act at once: what would have killed the process raises
    SystemExit there, so that `finally` is reached:

        with deferred() as interruptible:
            build()
            try:
                with interruptible():
                    use()
            finally:
                take_down()

    Signals reach the main thread only, so in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield contextlib.nullcontext
        return
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)

    # What is ignored (nohup) stays ignored; a handler that is not Python's (None) could not be put back.
    numbers = [number for number in _NUMBERS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, note) for number in numbers}

    @contextlib.contextmanager
    def interruptible() -> Iterator[None]:
        try:
            for number, handler in before.items():
                signal.signal(number, _exit if handler == signal.SIG_DFL else handler)
            if caught:
                signal.raise_signal(caught.pop())
            yield
        finally:
            for number in numbers:
                signal.signal(number, note)

    try:
        yield interruptible
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _exit(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
