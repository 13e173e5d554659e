"""Traffic that keeps account of itself, as processes of their own: what they count no other work of the test delays.

    python -I -S streams.py receive NAME PORT               numbered datagrams: which came, when, from where
    python -I -S streams.py send ID ADDRESS PORT RATE [N]   sends them, so many a second, and N at least
    python -I -S streams.py talk ADDRESS PORT COUNT         COUNT connections to echo_server.py that go on talking, and
                                                            new calls of both protocols beside them

Each prints `ready`, works until its standard input ends, and then tells its figures as one line of JSON.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import select
import selectors
import socket
import struct
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any

# A stream's id, the datagram's number, and when it was sent (ns, CLOCK_REALTIME, as the kernel stamps what comes)
DATAGRAM = struct.Struct("!IQQ")
ANSWERED = 100  # every so many datagrams one is sent back
BUFFER = 64 << 20  # bytes, more than a run sends while its receiver does not run
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35  # include/uapi/asm-generic/socket.h
TIMESPEC = struct.Struct("@qq")
SEGMENTS = struct.Struct("@136xII")  # of struct tcp_info: sent, received (include/uapi/linux/tcp.h)
MOST_TOLD = 20  # numbers of datagrams that did not come
MOST_AT_ONCE = 50  # datagrams that a sender which was held up sends in a burst
AFTERMATH = 0.5  # seconds for what is under way at the end
PATIENCE = 20.0  # seconds without an answer after which a connection counts as broken: the machine may be busy
Place = tuple[str, int] | tuple[str, int, int, int]  # of IPv6 with a flow label and a scope
PAUSE = 0.2  # seconds between an answer and the next line
NEW_CALLS = 0.02  # seconds between new calls


def family_of(address: str) -> socket.AddressFamily:
    """IPv6 where the address has a colon."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def told_to_end() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def end_of(place: Place) -> str:
    """Address and port; an IPv4 address is told as such by a socket of both families, too."""
    return f"{place[0].removeprefix('::ffff:')}:{place[1]}"


class Arrivals:
    """The datagrams of one stream at one receiver."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.came = self.twice = self.late = 0
        self.highest = -1
        self.last = self.silence = self.way = 0
        self.sources: Tally[str] = Tally()

    def take(self, number: int, sent: int, arrived: int, source: Place) -> None:
        """Counts one; times in ns."""
        if number >= len(self.seen):
            self.seen.extend(bytes(number + 65_536 - len(self.seen)))
        self.came += 1
        self.twice += self.seen[number]
        self.seen[number] = 1
        self.late += number < self.highest
        self.highest = max(self.highest, number)
        self.silence = max(self.silence, arrived - self.last) if self.last else 0
        self.last = arrived
        self.way = max(self.way, arrived - sent)
        self.sources[end_of(source)] += 1

    def missing(self) -> list[int]:
        """The first numbers that did not come, MOST_TOLD at most, and the one after the last that did."""
        missed = (place for place in range(self.highest) if not self.seen[place])
        return [*itertools.islice(missed, MOST_TOLD), self.highest + 1]

    def figures(self) -> dict[str, Any]:
        """What the test reads; times in ms."""
        return {
            "came": self.came,
            "missing": self.missing(),
            "twice": self.twice,
            "late": self.late,
            "distinct": self.seen.count(1),
            "silence": self.silence / 1e6,
            "way": self.way / 1e6,
            "sources": dict(self.sources),
        }


def receive(name: str, port: int) -> dict[str, Any]:
    """Takes datagrams at a port."""
    streams: dict[int, Arrivals] = {}
    strange = 0
    # Of both families where there is IPv6
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, socket.SOCK_DGRAM) as own:
        if own.family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        own.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        own.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        own.bind(("", port))
        own.settimeout(0.1)
        for arrived, data, source in _arrivals(own):
            if len(data) != DATAGRAM.size:
                strange += 1
                continue
            stream, number, sent = DATAGRAM.unpack(data)
            streams.setdefault(stream, Arrivals()).take(number, sent, arrived, source)
            if number % ANSWERED == 0:
                with contextlib.suppress(OSError):  # no way to a stray's sender
                    own.sendto(data, source)
    return {"name": name, "strange": strange, "streams": {key: one.figures() for key, one in streams.items()}}


def _arrivals(own: socket.socket) -> Iterator[tuple[int, bytes, Place]]:
    print("ready", flush=True)  # noqa: T201 - a script of its own
    looked = time.monotonic()
    while True:
        try:
            data, ancillary, _, source = own.recvmsg(2048, 64)
        except TimeoutError:
            if told_to_end():
                return
            continue
        seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2][: TIMESPEC.size])
        yield seconds * 1_000_000_000 + nanoseconds, data, source
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            if told_to_end():
                own.settimeout(AFTERMATH)


def send(stream: int, address: str, port: int, rate: int, at_least: int = 0) -> dict[str, Any]:
    """Sends numbered datagrams at an even pace from one socket, until told to end and so many are sent."""
    sent, answers, refused = 0, 0, Tally[str]()
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as own:
        own.connect((address, port))
        own.setblocking(False)
        print("ready", flush=True)  # noqa: T201
        began = time.monotonic()
        while sent < at_least or not told_to_end():
            due = int((time.monotonic() - began) * rate) - sent
            if due > MOST_AT_ONCE:
                began += (due - MOST_AT_ONCE) / rate
            for _ in range(min(due, MOST_AT_ONCE)):
                try:
                    own.send(DATAGRAM.pack(stream, sent, time.time_ns()))
                    sent += 1
                except OSError as error:  # an ICMP error about one before: this one was not sent
                    refused[type(error).__name__] += 1
            answers += _answers(own, refused)
            time.sleep(0.001)
        time.sleep(AFTERMATH)
        answers += _answers(own, refused)
        own_end = end_of(own.getsockname())
    return {"sent": sent, "answers": answers, "refused": dict(refused), "own": own_end}


def _answers(own: socket.socket, refused: Tally[str]) -> int:
    count = 0
    while True:
        try:
            own.recv(2048)
            count += 1
        except BlockingIOError:
            return count
        except OSError as error:
            refused[type(error).__name__] += 1


class Talk:
    """One connection that asks and asks, or a call that asks once."""

    def __init__(self, label: str, target: tuple[str, int], kind: socket.SocketKind, *, once: bool) -> None:
        self.label, self.kind, self.once = label, kind, once
        self.lines = 0
        self.name = self.rest = self.message = ""
        self.asked = time.monotonic()
        self.socket = socket.socket(family_of(target[0]), kind)
        self.socket.setblocking(False)
        if kind == socket.SOCK_STREAM:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(target)

    def ask(self) -> None:
        """Raises OSError where the connection is over."""
        self.message = f"{self.label} {self.lines}"
        self.asked = time.monotonic()
        self.socket.send(self.message.encode() + (b"\n" if self.kind == socket.SOCK_STREAM else b""))

    def hear(self) -> bool:
        """Whether the whole answer is there. Raises OSError, or ValueError where it is wrong."""
        data = self.socket.recv(2048).decode()
        if not data:
            raise ConnectionError("the server has ended it")
        self.rest += data
        if self.kind == socket.SOCK_STREAM and not self.rest.endswith("\n"):
            return False
        name, _, _, said = self.rest.rstrip("\n").split(" ", 3)
        if said != self.message or self.name not in ("", name):
            raise ValueError(f"asked {self.message!r} of {self.name or 'anyone'}, {name} answered {said!r}")
        self.rest, self.name = "", name
        self.lines += 1
        return True

    def standing(self) -> str:
        """Where it stands: its port, and of TCP its state (include/net/tcp_states.h: 1 is open, 2 has sent a SYN), how
        often the last segment was sent again, and how many it has sent and received.
        """
        if self.kind == socket.SOCK_DGRAM:
            return f"(UDP from port {self.socket.getsockname()[1]})"
        state, _, again = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)
        _, port, sent, received = self.end()
        return f"(TCP from port {port}: state {state}, again {again}, {sent} sent, {received} received)"

    def end(self) -> tuple[str, int, int, int]:
        """Its own address and port, and how many segments it has sent and received, the SYN included."""
        told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS.size)
        return (*self.socket.getsockname()[:2], *SEGMENTS.unpack(told))


class Talking:
    """All of them, in one loop."""

    def __init__(self, target: tuple[str, int], count: int) -> None:
        self.target = target
        self.selector = selectors.EpollSelector()
        self.talks = [Talk(f"talk {number}", target, socket.SOCK_STREAM, once=False) for number in range(count)]
        self.due: list[tuple[float, int, Talk]] = []  # when who asks next
        self.broken: list[str] = []
        self.failed: list[str] = []
        self.longest = 0.0
        self.calls = 0
        self.names: Tally[str] = Tally()

    def run(self) -> dict[str, Any]:
        """Until told to end."""
        for one in self.talks:
            self.selector.register(one.socket, selectors.EVENT_WRITE, one)
        next_call = looked = 0.0
        ready = ending = False
        while not ending or any(key.data.once for key in self.selector.get_map().values()):
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                self._guarded(heapq.heappop(self.due)[2], self._ask)
            if now >= next_call and ready and not ending:
                next_call = max(next_call + NEW_CALLS, now - 1)
                self._call()
            for key, events in self.selector.select(0.005):
                self._guarded(key.data, self._ask if events & selectors.EVENT_WRITE else self._hear)
            if not ready and all(one.lines for one in self.talks):
                print("ready", flush=True)  # noqa: T201
                ready, next_call = True, now
            if now - looked > 0.2:
                looked = now
                self._look_for_silence(now)
                ending = ending or told_to_end()
        return self._figures()

    def _call(self) -> None:
        kind = (socket.SOCK_STREAM, socket.SOCK_DGRAM)[self.calls % 2]
        one = Talk(f"call {self.calls}", self.target, kind, once=True)
        self.calls += 1
        self.selector.register(one.socket, selectors.EVENT_WRITE, one)

    def _guarded(self, one: Talk, step: Callable[[Talk], None]) -> None:
        try:
            step(one)
        except (OSError, ValueError) as error:
            self._end(one, str(error) or type(error).__name__)

    def _ask(self, one: Talk) -> None:
        one.ask()
        self.selector.modify(one.socket, selectors.EVENT_READ, one)

    def _hear(self, one: Talk) -> None:
        if not one.hear():
            return
        self.longest = max(self.longest, time.monotonic() - one.asked)
        if one.once:
            self.names[one.name] += 1
            self._end(one)
        else:
            heapq.heappush(self.due, (time.monotonic() + PAUSE, id(one), one))

    def _look_for_silence(self, now: float) -> None:
        waiting = {id(one) for _, _, one in self.due}
        for key in list(self.selector.get_map().values()):
            if id(key.data) not in waiting and now - key.data.asked > PATIENCE:
                self._end(key.data, f"no answer in {PATIENCE} s {key.data.standing()}")

    def _end(self, one: Talk, why: str = "") -> None:
        self.selector.unregister(one.socket)
        one.socket.close()
        if why:
            (self.failed if one.once else self.broken).append(f"{one.label} after {one.lines} lines: {why}")

    def _figures(self) -> dict[str, Any]:
        return {
            "lines": sum(one.lines for one in self.talks),
            "broken": self.broken,
            "calls": self.calls,
            "failed": self.failed,
            "longest": self.longest * 1000,
            "names": dict(self.names),
            "ends": [one.end() for one in self.talks if one.socket.fileno() >= 0],
        }


def main() -> None:
    """As the words on the command line say."""
    what, *words = sys.argv[1:]
    if what == "receive":
        found = receive(words[0], int(words[1]))
    elif what == "send":
        found = send(int(words[0]), words[1], *map(int, words[2:]))
    else:
        found = Talking((words[0], int(words[1])), int(words[2])).run()
    print(json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
