"""Fifty commands at once on one instance (F9): each ends right or says why, and what is left is what one of the orders
in which they may have come would leave.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from calls import KINDS, ask_many
from measuring import measured
from rows import tell
from scene import VIP_PORT, objects
from stand import OPTIONS, STEADY, Stand, stand_up

from pydatapath import Datapath, Options
from pydatapath.documents import to_yaml
from pydatapath.instance import LOCK_SECONDS
from pydatapath.kernel import libbpf

COMMANDS = 50
PATIENCE = 170.0  # for all; what waits for a lock gives up after 30 s by itself
SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
MOST_REFUSED = 16  # half of those that write: who has waited so long gives up, on a machine that others use, too
# Another route; Maglev's tables for so many services would have no room
OTHER_OPTIONS = (*OPTIONS, "--service-cidr", "10.96.0.0/12", "--service-cidr", "10.112.0.0/16")
SHARED = ("10.96.0.90", VIP_PORT)  # each `apply` of the test makes this service, with backends of its own

pytestmark = pytest.mark.timeout(400)


class Loaded(NamedTuple):
    """What a load leaves: the routes, and what the programs are by their tags, hashes of their instructions."""

    options: Options
    routes: set[str]
    tags: dict[str, str]


def loaded(stand: Stand) -> Loaded:
    """As it is now."""
    tags = {}
    for pin in stand.which.program_pins.iterdir():
        if pin.name != "walks":
            with libbpf.opened(libbpf.open_pin(str(pin))) as descriptor:
                tags[pin.name] = libbpf.program_info(descriptor).tag
    routes = stand.node.exec(["ip", "route", "show", "table", "all", "proto", "218"], check=True).stdout
    with Datapath.open(netns=stand.node.netns) as datapath:
        return Loaded(datapath.options, {line.split()[0] for line in routes.splitlines()}, tags)


@pytest.fixture(scope="module")
def either(stand: Stand) -> list[Loaded]:
    """What a load by itself leaves, with the one options and with the other."""
    found = []
    for options in (OTHER_OPTIONS, OPTIONS):
        stand.load(options)
        found.append(loaded(stand))
    one, other = found
    assert one.options != other.options
    assert one.routes != other.routes
    assert one.tags != other.tags
    return found


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A loaded node with the steady service."""
    with stand_up(f"ao-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
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


def test_F9_fifty_commands_at_once(stand: Stand, either: list[Loaded], tmp_path: Path, figure: Callable[[str], None]):
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
        done = measured(stand.command(*arguments), timeout=PATIENCE)
        return arguments, done, time.monotonic() - start

    with ThreadPoolExecutor(COMMANDS) as pool:
        results = list(pool.map(run, commands))
    refused = Counter[str]()
    for arguments, done, seconds in results:
        told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, told
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if not line.startswith(("Hint: ", "Warning: "))]
            assert [line[:7] for line in errors] == ["Error: "], told
            assert "busy" in errors[0], told
            assert seconds >= LOCK_SECONDS, told
            refused[arguments[0]] += 1
    busy = refused.total()
    figure(
        f"{COMMANDS} commands at once: {COMMANDS - busy} done, {busy} said that it was busy, the longest"
        f" {max(seconds for *_, seconds in results):.1f} s; {time.monotonic() - begun:.1f} s, seed {SEED}"
    )
    wrong = stand.traffic(STEADY)
    left = loaded(stand)
    if left not in either:
        parts = [[name for name in Loaded._fields if getattr(left, name) == getattr(one, name)] for one in either]
        wrong.append(
            f"neither load leaves this: of its {Loaded._fields} as of the one {parts[0]}, of the other {parts[1]}"
        )
    with Datapath.open(netns=stand.node.netns) as datapath:
        wrong += datapath.status(check=True).drift
    tell(repeats=COMMANDS, new_failed=busy, wrong=len(wrong), seed=SEED)
    assert wrong == []
    assert busy <= MOST_REFUSED, refused
    assert not refused.keys() & {one[0] for one in reading}, "who reads waits for nobody"
    check_serial(stand, [arguments for arguments, done, _ in results if not done.returncode])
    applied = [done.stdout for arguments, done, _ in results if arguments[0] == "apply" and not done.returncode]
    first = [text for text in applied if "service/default/shared created" in text]
    assert len(first) == 1, "one of them found nothing, all others what it had made"


def check_serial(stand: Stand, done: list[list[str]]) -> None:
    """What is there is what some order of these commands leaves, and the maps are what the records say."""
    state = stand.state()
    assert not state["unwritten"]
    assert not state["unfinished"]
    with Datapath.open(netns=stand.node.netns) as datapath:
        found = {one.service.name: one for one in datapath.services}
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
                lambda one: measured(stand.command(*one), timeout=PATIENCE),
                commands,
            )
        )
    busy = sum("busy" in done.stderr for done in results)
    for one, done in zip(commands, results, strict=True):
        assert "Traceback" not in done.stderr, f"{one}: {done.stderr}"
        assert done.returncode in (0, 1), f"{one}: {done.stderr}"
        if one[0] in ("load", "unload"):
            assert done.returncode == 0 or "busy" in done.stderr, f"{one}: {done.stderr}"
    if stand.which.exists:
        stand.do("unload")
    wrong = stand.differences(before)
    tell(repeats=len(commands), new_failed=busy, wrong=len(wrong))
    assert wrong == []
    assert busy <= MOST_REFUSED
    figure(f"{len(commands)} first loads, unloads and others at once: {time.monotonic() - begun:.1f} s")
    stand.load()
    stand.apply()
    assert stand.traffic(STEADY) == []
