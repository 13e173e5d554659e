"""`load --timeout`: names, bounds, and what is said about them."""

from __future__ import annotations

import pytest

from pydatapath import timers
from pydatapath.errors import DatapathError
from pydatapath.kernel.layout import TIMEOUTS, FlowState, timeout


def test_C14_every_time_has_a_name() -> None:
    """One and no other; by default they are as they are."""
    set_by = [one for timer in timers.TIMERS.values() for one in timer.sets]
    assert sorted(set_by) == sorted(TIMEOUTS)
    assert timers.read(()) == TIMEOUTS


def test_C14_what_is_said_counts() -> None:
    """The others stay."""
    found = timers.read(["udp=180", " tcp-established = 86400 ", "icmp=61"])
    assert {name: seconds for name, seconds in found.items() if seconds != TIMEOUTS[name]} == {
        "UDP_ESTABLISHED": 180,
        "TCP_ESTABLISHED": 86_400,
        "ICMP_NEW": 61,
        "ICMP_ESTABLISHED": 61,
    }
    assert timeout("UDP", FlowState.CLOSING, found) == 180
    assert (timers.named(found)["udp"], timers.named(found)["icmp"], timers.named(found)["tcp-closing"]) == (
        180,
        61,
        240,
    )


def test_C14_N34_N36_N37_N40_less_than_an_RFC_asks_is_told() -> None:
    """And done: a host may know better. The defaults are what the RFCs ask."""
    assert timers.too_short(timers.read(())) == []
    least = [f"{name}={timer.least}" for name, timer in timers.TIMERS.items() if timer.least]
    assert timers.too_short(timers.read(least)) == []
    less = ["tcp-established=7439", "tcp-closing=239", "udp-unanswered=119", "udp=119", "icmp=59", "tcp-opening=1"]
    assert timers.too_short(timers.read(less)) == [
        "--timeout tcp-established=7439 is less than the 7440 s of RFC 5382 REQ-5",
        "--timeout tcp-closing=239 is less than the 240 s of RFC 5382 REQ-5",
        "--timeout udp-unanswered=119 is less than the 120 s of RFC 4787 REQ-5",
        "--timeout udp=119 is less than the 120 s of RFC 4787 REQ-5",
        "--timeout icmp=59 is less than the 60 s of RFC 5508 REQ-2",
    ]


@pytest.mark.parametrize(
    ("texts", "message", "hint"),
    [
        (["tcp=60"], "--timeout 'tcp=60' names no timer", "there are: tcp-opening, tcp-established, "),
        (["60"], "--timeout '60' names no timer", "there are: "),
        *(
            ([f"udp={seconds}"], f"--timeout 'udp={seconds}' is no time", "NAME=SECONDS, a whole number from 1 to ")
            for seconds in ("", "0", "-5", "1.5", "1728001", "5m", "²", "9" * 5000)
        ),
        (["udp=60", "icmp=60", "udp=61"], "--timeout names two times for udp: 60 and 61 s", ""),
    ],
    ids=str,
)
def test_C14_what_cannot_be_is_said_in_one_sentence(texts: list[str], message: str, hint: str) -> None:
    """With what would be right."""
    with pytest.raises(DatapathError) as caught:
        timers.read(texts)
    assert str(caught.value) == message
    assert caught.value.hint.startswith(hint)
