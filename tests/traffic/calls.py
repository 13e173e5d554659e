"""Calls to echo_server.py: one, thousands, or long ones with numbered data. Nothing here waits for ever."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, AddressFamily, SocketKind

from pydatapath.lab import Host

__all__ = ["KINDS", "SECONDS", "Address", "Answer", "Answers", "ask", "ask_many", "dial", "family_of", "pump", "volley"]

Address = tuple[str, int]

SECONDS = 5.0  # an answer that takes longer is none
KINDS = {"TCP": SOCK_STREAM, "UDP": SOCK_DGRAM}


@dataclass(frozen=True)
class Answer:
    """Who answered (`name`), from where (`source`), whom it saw (`seen`), and who we are (`own`)."""

    name: str
    seen: Address
    own: Address
    source: Address


@dataclass
class Answers:
    """What came of many calls; `failures` says of each call without a right answer what was wrong."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def names(self) -> Tally[str]:
        """How many calls each pod answered."""
        return Tally(one.name for one in self.answers)


def family_of(target: Address) -> AddressFamily:
    """IPv6 where the address has a colon."""
    return AF_INET6 if ":" in target[0] else AF_INET


def _pair(place: tuple[str, int, *tuple[object, ...]]) -> Address:
    """Address and port; of IPv6, sockets have a flow label and a scope too."""
    return place[0], place[1]


def _ends(connected: socket.socket) -> tuple[Address, Address]:
    return _pair(connected.getsockname()), _pair(connected.getpeername())


def read(data: bytes, message: str, own: Address, source: Address) -> Answer:
    """The server's answer to `message`. Raises ValueError where it is the answer to anything else."""
    name, address, port, said = data.decode().split(" ", 3)
    if said.rstrip("\n") != message:
        raise ValueError(f"asked {message!r}, was answered {said!r}")
    return Answer(name, (address, int(port)), own, source)


def dial(host: Host, target: Address, kind: SocketKind = SOCK_STREAM, own: Address | None = None) -> socket.socket:
    """A socket in `host` that is connected to `target`, from `own` if given, also if another socket is there."""
    made = host.socket(family_of(target), kind)
    try:
        made.settimeout(SECONDS)
        if own:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(own)
        made.connect(target)
    except BaseException:
        made.close()
        raise
    return made


def ask(connected: socket.socket, message: str = "hello") -> Answer:
    """One question and its answer. Raises OSError where there is none, ValueError where it is wrong."""
    connected.send(message.encode() if connected.type == SOCK_DGRAM else f"{message}\n".encode())
    data = connected.recv(2048)
    while connected.type == SOCK_STREAM and not data.endswith(b"\n"):
        part = connected.recv(2048)
        if not part:
            raise ConnectionError("the connection ended before the answer did")
        data += part
    return read(data, message, *_ends(connected))


def ask_many(host: Host, kind: SocketKind, target: Address, count: int, at_once: int = 32) -> Answers:
    """`count` new connections (or UDP sockets) from `host`, each with one question, `at_once` at a time."""
    found = Answers()
    start = time.monotonic()
    with selectors.EpollSelector() as selector:
        begun, last = 0, time.monotonic()
        while begun < count or selector.get_map():
            with host.entered():
                while begun < count and len(selector.get_map()) < at_once:
                    _begin(selector, kind, target, f"question {begun} of {count}", found)
                    begun += 1
            for key, _ in selector.select(0.5):
                last = time.monotonic()
                _go_on(selector, key, target, found)
            if time.monotonic() - last > SECONDS:
                for key in list(selector.get_map().values()):
                    _end(selector, key.fileobj)
                    found.failures.append(f"{key.data}: no answer in {SECONDS} s")
    found.seconds = time.monotonic() - start
    return found


def _begin(selector: selectors.EpollSelector, kind: SocketKind, target: Address, message: str, found: Answers) -> None:
    calling = socket.socket(family_of(target), kind)
    try:
        calling.setblocking(False)
        if kind == SOCK_DGRAM:
            calling.sendto(message.encode(), target)
        else:
            calling.connect_ex(target)
        selector.register(calling, selectors.EVENT_READ if kind == SOCK_DGRAM else selectors.EVENT_WRITE, message)
    except OSError as error:
        calling.close()
        found.failures.append(f"{message}: {error}")


def _go_on(selector: selectors.EpollSelector, key: selectors.SelectorKey, target: Address, found: Answers) -> None:
    calling: socket.socket = key.fileobj
    try:
        if key.events == selectors.EVENT_WRITE:
            calling.send(f"{key.data}\n".encode())  # raises what connecting came to
            selector.modify(calling, selectors.EVENT_READ, key.data)
            return
        data, source = calling.recvfrom(2048)
        source = _pair(source or calling.getpeername())
        answer = read(data, key.data, _pair(calling.getsockname()), source)
        if source != target:
            found.failures.append(f"{key.data}: asked {target}, answered by {source}")
        else:
            found.answers.append(answer)
    except (OSError, ValueError) as error:
        found.failures.append(f"{key.data}: {error}")
    _end(selector, calling)


def _end(selector: selectors.EpollSelector, calling: socket.socket) -> None:
    selector.unregister(calling)
    calling.close()


def volley(sockets: Mapping[str, socket.socket], rounds: int = 300) -> None:
    """Numbered questions on all connected UDP sockets in turn; each must get the answer to its own."""
    for number in range(rounds):
        for label, one in sockets.items():
            one.send(f"{label} {number}".encode())
        for label, one in sockets.items():
            read(one.recv(2048), f"{label} {number}", *_ends(one))


class _Stream:
    """One connection on its way through `pump`."""

    def __init__(self, label: str, connected: socket.socket, lines: int, size: int) -> None:
        self.messages = [f"{label} {number:07} ".ljust(size, "x") for number in range(lines)]
        self.to_send = memoryview("".join(f"{one}\n" for one in self.messages).encode())
        self.rest = b""
        self.came = 0
        self.socket = connected
        self.ends = _ends(connected)

    def send(self) -> bool:
        """False: all is sent."""
        self.to_send = self.to_send[self.socket.send(self.to_send[: 1 << 17]) :]
        return bool(self.to_send)

    def receive(self) -> bool:
        """False: all has come back."""
        data = self.socket.recv(1 << 17)
        if not data:
            raise ConnectionError(f"ended after line {self.came} of {len(self.messages)}")
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            read(line, self.messages[self.came], *self.ends)
            self.came += 1
        return self.came < len(self.messages)


def pump(sockets: Mapping[str, socket.socket], lines: int = 2000, size: int = 1000) -> None:
    """Numbered lines through all connections at once, both ways; every line must come back on its own, in order.

    Raises TimeoutError, OSError or ValueError where one does not.
    """
    with selectors.EpollSelector() as selector:
        for label, connected in sockets.items():
            connected.setblocking(False)
            stream = _Stream(label, connected, lines, size)
            selector.register(connected, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)
        while selector.get_map():
            ready = selector.select(SECONDS)
            if not ready:
                raise TimeoutError(f"nothing moved for {SECONDS} s")
            for key, events in ready:
                if events & selectors.EVENT_WRITE and not key.data.send():
                    selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
                if events & selectors.EVENT_READ and not key.data.receive():
                    selector.unregister(key.fileobj)
    for connected in sockets.values():
        connected.settimeout(SECONDS)
