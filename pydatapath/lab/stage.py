"""What the chapters of the demo play on: a lab, its servers and its datapath, and questions that are asked there."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, TypeAlias

from pydatapath import manifests
from pydatapath.datapath import Datapath
from pydatapath.errors import LabError
from pydatapath.lab import client, server
from pydatapath.lab.client import Exchange, Place
from pydatapath.lab.cluster import Lab
from pydatapath.lab.hosts import Host, Pod
from pydatapath.model import Manifested, Service
from pydatapath.views import Flow

__all__ = ["MANIFEST", "PORT", "VIP", "Failed", "Kind", "Stage", "Tell", "expect"]

Kind: TypeAlias = Literal["title", "line", "why", "ok", "failed"]
Tell: TypeAlias = Callable[[Kind, str], None]

MANIFEST = Path(__file__).with_name("web.yaml")
VIP: Place = ("10.96.0.10", 80)  # as the manifest says
PORT = 8080  # of the pods, as the manifest says
READY_SECONDS = 60.0  # a server needs 0.1, and in an emulator that has more to do, over five


class Failed(Exception):
    """The demo shows something, and it is not so."""


def expect(condition: bool, otherwise: str) -> None:
    """What a chapter claims. Raises Failed with `otherwise`."""
    if not condition:
        raise Failed(otherwise)


class Stage:
    """A lab with two nodes of two pods each; the first pod calls, the other three serve."""

    def __init__(self, lab: Lab, tell: Tell) -> None:
        self.lab = lab
        self.tell = tell
        self.node = lab.node(1)
        self.client = lab.pod(1, 1)
        self.backends = (lab.pod(1, 2), lab.pod(2, 1), lab.pod(2, 2))
        self.exchanges = 0  # questions that were answered
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._listening: set[str] = set()

    # Servers

    def start(self, pod: Pod, at: Place, container: str = "") -> None:
        """Start a server in `pod` or one of its containers; `wait_for_servers` waits until it listens."""
        name = container or pod.name
        program = [sys.executable, "-I", "-S", server.__file__, name, at[0], str(at[1])]
        started = pod.popen(program, container=container, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._servers[name] = started

    def start_backends(self, *pods: Pod) -> None:
        """Start a server in each of `pods`, at the port of the manifest."""
        for pod in pods:
            self.start(pod, (pod.address, PORT))
        self.wait_for_servers()

    def wait_for_servers(self) -> None:
        """Wait until all servers that were started listen. Raises LabError when one does not."""
        deadline = time.monotonic() + READY_SECONDS
        for name, process in self._servers.items():
            if name in self._listening:
                continue
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable or process.stdout.readline().strip() != server.READY:
                process.kill()
                said = process.communicate()[1].strip() or f"it did not listen within {READY_SECONDS:.0f} s"
                raise LabError(f"the server of {name} could not be started: {said}")
            self._listening.add(name)

    def stop(self, pod: Pod) -> None:
        """End the backend in `pod`, as a crash would."""
        self._end(pod.name)

    def close(self) -> None:
        """End all servers."""
        for name in list(self._servers):
            self._end(name)

    def _end(self, name: str) -> None:
        self._listening.discard(name)
        process = self._servers.pop(name)
        process.kill()
        process.communicate()

    # Questions

    def ask(self, caller: Host, at: Place, kind: socket.SocketKind = socket.SOCK_STREAM) -> Exchange:
        """One question, over a connection of its own. Raises Failed when there is no answer."""
        with self.connect(caller, at, kind) as connected:
            return self.ask_again(connected)

    def connect(self, caller: Host, at: Place, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A connection from `caller`, to be closed by who asked for it. Raises Failed when it cannot be made."""
        connected = caller.socket(kind=kind)
        try:
            connected.settimeout(client.SECONDS)
            connected.connect(at)
        except OSError as error:
            connected.close()
            raise Failed(f"{caller.name} cannot connect to {at[0]}:{at[1]}: {error}") from error
        return connected

    def ask_again(self, connected: socket.socket) -> Exchange:
        """One question over a connection that is there. Raises Failed when there is no answer."""
        try:
            found = client.ask(connected, f"question {self.exchanges + 1}")
        except (OSError, ValueError) as error:
            raise Failed(f"no answer to question {self.exchanges + 1}: {error}") from error
        self.exchanges += 1
        return found

    def ask_many(self, caller: Host, number: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Tally[str]:
        """How many of `number` questions to the service each server answered."""
        return Tally(self.ask(caller, VIP, kind).name for _ in range(number))

    def ask_in_container(self, container: str, at: Place) -> Exchange:
        """One question from a container of the client's pod."""
        program = [sys.executable, "-I", "-S", client.__file__, "--json", at[0], str(at[1])]
        done = self.client.exec(program, container=container, timeout=READY_SECONDS)
        expect(done.returncode == 0, f"{container} got no answer: {done.stderr.strip()}")
        self.exchanges += 1
        return Exchange.from_json(json.loads(done.stdout))

    # What is applied

    def apply(self, datapath: Datapath, *, without: Collection[Pod] = ()) -> list[str]:
        """Apply the manifest, its slice without some pods, as Kubernetes does when they end; says what became of it."""
        gone = {pod.address for pod in without}
        objects = [_without(one, gone) for one in manifests.read([str(MANIFEST)]).objects]
        return [str(outcome) for outcome in datapath.apply(objects)]

    def flow(self, datapath: Datapath, source: Place) -> Flow:
        """The flow of the connection that `source` opened. Raises Failed when it is not tracked."""
        found = [one for one in datapath.flows() if (one.original.src, one.original.sport) == source]
        expect(len(found) == 1, f"the flow table has {len(found)} flows from {source[0]}:{source[1]}, not one")
        return found[0]


def _without(found: Manifested, gone: Collection[str]) -> Manifested:
    """A slice without the endpoints at the addresses `gone`; anything else as it is."""
    if isinstance(found, Service):
        return found
    manifest = dict(found.manifest)
    manifest["endpoints"] = [one for one in manifest["endpoints"] if one["addresses"][0] not in gone]
    return manifests.parse(manifest, MANIFEST.name)
