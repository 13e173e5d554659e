"""Fifty commands at once on one instance (F9): each ends right or says why, and what is left is what one of the orders
in which they may have come would leave.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from calls import KINDS, ask_many
from rows import tell
from scene import VIP_PORT, objects
from stand import OPTIONS, STEADY, Stand, stand_up

from pydatapath import Datapath
from pydatapath.documents import to_yaml

COMMANDS = 50
PATIENCE = 170.0  # for all; what waits for a lock gives up after 30 s by itself
SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
# Another route; Maglev's tables for so many services would have no room
OTHER_OPTIONS = (*OPTIONS, "--service-cidr", "10.96.0.0/12", "--service-cidr", "10.112.0.0/16")
SHARED = ("10.96.0.90", VIP_PORT)  # each `apply` of the test makes this service, with backends of its own

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A loaded node with the steady service."""
    with stand_up(f"ao-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        made.load(OTHER_OPTIONS)
        made.load()
        made.apply()
        yield made
        made.clear()


def variants(stand: Stand, folder: Path) -> list[Path]:
    """Manifests of one service, each with other backends and another node port."""
    first, second = stand.servers
    paths = []
    for number, backends in enumerate(([first], [second], [first, second])):
        made = objects("shared", SHARED[0], backends, type="NodePort", node_port=30090 + number)
        path = folder / f"variant{number}.yaml"
        path.write_text(to_yaml([one.manifest for one in made]))
        paths.append(path)
    return paths


def test_F9_fifty_commands_at_once(stand: Stand, tmp_path: Path, figure: Callable[[str], None]):
    """Applies of one service in three forms, services by hand, loads with other options, and readers."""
    files = variants(stand, tmp_path)
    chance = random.Random(SEED)
    commands = [["apply", "-f", str(files[number % len(files)])] for number in range(18)]
    commands += [["service", "add", f"hand{number}", "--port", "80"] for number in range(8)]
    commands += [["delete", "--ignore-not-found", "service", f"hand{number}"] for number in range(4)]
    commands += [["load", *OPTIONS], ["load", *OTHER_OPTIONS]]
    reading = (["status", "-o", "json"], ["service", "list"], ["export"], ["flow", "list"])
    commands += [reading[number % len(reading)] for number in range(COMMANDS - len(commands))]
    chance.shuffle(commands)
    stand.hold(STEADY)
    begun = time.monotonic()

    def run(arguments: list[str]) -> tuple[list[str], subprocess.CompletedProcess[str], float]:
        start = time.monotonic()
        done = subprocess.run(stand.command(*arguments), capture_output=True, text=True, timeout=PATIENCE, check=False)
        return arguments, done, time.monotonic() - start

    with ThreadPoolExecutor(COMMANDS) as pool:
        results = list(pool.map(run, commands))
    refused = 0
    for arguments, done, _ in results:
        told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, told
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if not line.startswith(("Hint: ", "Warning: "))]
            assert [line[:7] for line in errors] == ["Error: "], told
            assert "busy" in errors[0], told
            refused += 1
    figure(
        f"{COMMANDS} commands at once: {COMMANDS - refused} done, {refused} said that it was busy, the longest"
        f" {max(seconds for *_, seconds in results):.1f} s; {time.monotonic() - begun:.1f} s, seed {SEED}"
    )
    tell(repeats=COMMANDS, seed=SEED)
    assert stand.traffic(STEADY) == []
    check_serial(stand, [arguments for arguments, done, _ in results if not done.returncode])


def check_serial(stand: Stand, done: list[list[str]]) -> None:
    """What is there is what some order of these commands leaves, and the maps are what the records say."""
    state = stand.state()
    assert not state["unwritten"]
    assert not state["unfinished"]
    with Datapath.open(netns=stand.node.netns) as datapath:
        found = {one.service.name: one for one in datapath.services}
        assert datapath.status().drift == ()
    # The last apply is there as a whole
    node_port = {port.node_port for port in found["shared"].service.ports}
    backends = {one.address for one in found["shared"].backends}
    first, second = (server.address for server in stand.servers)
    whole = {30090: {first}, 30091: {second}, 30092: {first, second}}
    assert len(node_port) == 1
    assert backends == whole[node_port.pop()]
    for kind in KINDS.values():
        assert set(ask_many(stand.caller, kind, SHARED, 20).names) <= {one.name for one in stand.servers}
    # Of a service that was made and deleted either may have come last
    made = {one[2] for one in done if one[:2] == ["service", "add"]}
    deleted = {one[3] for one in done if one[:1] == ["delete"]}
    there = {name for name in found if name.startswith("hand")}
    assert made - deleted <= there <= made
    addresses = [port for one in found.values() for port in one.service.cluster_ips]
    assert len(addresses) == len(set(addresses)), "each has an address of its own"


def test_F9_first_loads_and_unloads_at_once(stand: Stand, figure: Callable[[str], None]):
    """Each does its work before or after another; what is left is loaded or not."""
    stand.clear()
    before = stand.state()
    begun = time.monotonic()
    commands = [["load", *OPTIONS], ["unload"]] * 4 + [["status"], ["apply", "-f", str(stand.base)]] * 3
    with ThreadPoolExecutor(len(commands)) as pool:
        results = list(
            pool.map(
                lambda one: subprocess.run(
                    stand.command(*one), capture_output=True, text=True, timeout=PATIENCE, check=False
                ),
                commands,
            )
        )
    for one, done in zip(commands, results, strict=True):
        assert "Traceback" not in done.stderr, f"{one}: {done.stderr}"
        assert done.returncode in (0, 1), f"{one}: {done.stderr}"
        if one[0] in ("load", "unload"):
            assert done.returncode == 0 or "busy" in done.stderr, f"{one}: {done.stderr}"
    if stand.which.exists:
        stand.do("unload")
    assert stand.differences(before) == []
    figure(f"{len(commands)} first loads, unloads and others at once: {time.monotonic() - begun:.1f} s")
    stand.load()
    stand.apply()
    assert stand.traffic(STEADY) == []
