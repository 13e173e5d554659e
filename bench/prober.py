"""Ask services until each is served by the backend that it must: `python prober.py PORT SECONDS VIP=BACKEND [...]`.

Every question is a new flow (another source port), so that none stays with an old backend. Prints `asking` after the
first one, then when the question was sent by which all were answered right (CLOCK_MONOTONIC: all processes share it);
fails where that has not come about in so many seconds.
"""

from __future__ import annotations

import socket
import sys
import time

ANSWER_S = 0.002  # longer than any answer takes, unless both cores are busy: then it is asked again
PAUSE_S = 0.0002


def answer(vip: str, port: int) -> str:
    """Who answers; "" where nobody does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as this:
        this.settimeout(ANSWER_S)
        try:
            this.connect((vip, port))
            this.send(b"?")
            return this.recv(64).decode()
        except OSError:  # no answer in time, or an ICMP error that refuses
            return ""


def main() -> None:
    """Asks in turn those that are not right yet."""
    port, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
    left = dict(one.split("=") for one in sys.argv[3:])
    begun = False
    while left:
        for vip, wanted in [*left.items()]:
            asked = time.monotonic()
            found = answer(vip, port)
            if not begun:
                print("asking", flush=True)
                begun = True
            if found == wanted:
                del left[vip]
                if not left:
                    print(asked, flush=True)
                    return
        if time.monotonic() > deadline:
            sys.exit(f"not served right in time: {', '.join(left)}")
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
