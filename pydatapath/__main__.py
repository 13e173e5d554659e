"""The entry point, of `pydatapath` and of `python -m pydatapath`."""

from __future__ import annotations

import gc
import signal

__all__ = ["main"]


def main() -> None:
    """Until all is imported Ctrl-C ends the process without a traceback: nothing is done yet."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pydatapath import cli

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    try:
        cli.main()
    finally:
        # The process ends: a last search for cycles in all that was imported takes a tenth of a short command
        gc.freeze()


if __name__ == "__main__":
    main()
