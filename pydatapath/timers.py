"""How long flows live without a packet (C14): what the times are called, and what the RFCs ask of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydatapath.errors import DatapathError
from pydatapath.kernel.layout import TIMEOUTS

if TYPE_CHECKING:
    from pydatapath.records import Records

__all__ = ["MOST", "TIMERS", "Timer", "named", "read", "recorded", "too_short"]

MOST: Final = 1_728_000  # 20 days: in jiffies of a millisecond, what an int of C holds


@dataclass(frozen=True)
class Timer:
    """Which of layout.TIMEOUTS it is, and the seconds that a rule asks at least (0: none does)."""

    sets: tuple[str, ...]
    least: int = 0
    rule: str = ""


TIMERS: Final[Mapping[str, Timer]] = {
    "tcp-opening": Timer(("TCP_NEW",)),
    "tcp-established": Timer(("TCP_ESTABLISHED",), 7440, "RFC 5382 REQ-5"),
    "tcp-closing": Timer(("TCP_CLOSING",), 240, "RFC 5382 REQ-5"),
    "udp-unanswered": Timer(("UDP_NEW",), 120, "RFC 4787 REQ-5"),
    "udp": Timer(("UDP_ESTABLISHED",), 120, "RFC 4787 REQ-5"),
    "icmp": Timer(("ICMP_NEW", "ICMP_ESTABLISHED"), 60, "RFC 5508 REQ-2"),
    "sctp-opening": Timer(("SCTP_NEW",)),
    "sctp-established": Timer(("SCTP_ESTABLISHED",)),
    "port-quarantine": Timer(("QUARANTINE",), 120, "RFC 6888 REQ-8"),
}


def read(texts: Iterable[str], option: str = "--timeout") -> dict[str, int]:
    """All of layout.TIMEOUTS, changed by texts `NAME=SECONDS`. Raises DatapathError."""
    said: dict[str, int] = {}
    for text in texts:
        name, _, seconds = (part.strip() for part in text.partition("="))
        if name not in TIMERS:
            raise DatapathError(f"{option} {text!r} names no timer", hint=f"there are: {', '.join(TIMERS)}")
        if not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 12 and 1 <= int(seconds) <= MOST):
            raise DatapathError(
                f"{option} {text!r} is no time", hint=f"NAME=SECONDS, a whole number from 1 to {MOST:,} (20 days)"
            )
        if name in said:
            raise DatapathError(f"{option} names two times for {name}: {said[name]} and {seconds} s")
        said[name] = int(seconds)
    return dict(TIMEOUTS) | {one: seconds for name, seconds in said.items() for one in TIMERS[name].sets}


def recorded(records: Records) -> dict[str, int]:
    """The times that the loaded programs were given."""
    return read(records.get("options", {}).get("timeout", ()))


def named(timeouts: Mapping[str, int]) -> dict[str, int]:
    """The timers by their names, with their seconds."""
    return {name: timeouts[timer.sets[0]] for name, timer in TIMERS.items()}


def too_short(timeouts: Mapping[str, int]) -> list[str]:
    """A sentence about each that is less than an RFC asks: a host may know better, so it is no error."""
    return [
        f"--timeout {name}={seconds} is less than the {timer.least} s of {timer.rule}"
        for name, seconds in named(timeouts).items()
        if seconds < (timer := TIMERS[name]).least
    ]
