"""A command is killed before each of its steps (F3, F4): traffic goes on, the same command again does it, and nothing
is left behind by what was killed. In turn another command comes between: `repair` finds and mends what is half done.

The steps are what the kernel saw the command change (stepping.py). By default some of them, spread by a seed; all with
PYDATAPATH_BIG. The same steps again: PYDATAPATH_SEED. All take an hour for each command: where PYDATAPATH_KILLS names a
file each kill is a line there, and a later run leaves out those that are there.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from calls import dial
from rows import tell, tell_worst
from scene import BIG
from stand import OPTIONS, OTHER_OPTIONS, OTHER_SIZES, STEADY, Stand, stand_up
from stepping import Stepped, stepped

from pydatapath import Datapath
from pydatapath.errors import DatapathError
from pydatapath.record_faults import copy_of

SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
SECONDS = 7200.0 if BIG else 16.0  # for the kills of one command
KILLS = os.environ.get("PYDATAPATH_KILLS", "")
FEWEST = 3  # kills of a command, however slow the machine is
ORPHANS_SECONDS = 30.0  # to compile, on a crowded machine
ALONE = {"PYDATAPATH_NO_CACHE": "1"}  # compiles, in child processes
REPAIR = ("repair",)
SINCE = ("the service, since the kill", 0)

pytestmark = pytest.mark.timeout(9000 if BIG else 300)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded, and the programs kept that its loads need."""
    with stand_up(f"ki-{os.getpid()}", tmp_path_factory.mktemp("manifests"), dual_stack=True) as made:
        made.load(OTHER_SIZES)
        made.load(OTHER_OPTIONS)
        made.load()
        made.clear()
        yield made


@pytest.fixture(autouse=True)
def cleared(stand: Stand) -> Iterator[None]:
    """A test that fails leaves nothing to the next one."""
    yield
    stand.clear()


@dataclass
class Trial:
    """A command that is killed again and again. `prepare` makes what it starts from, `back` the same of what it made;
    `target` is what must be answered whenever it is killed; `between`: the commands that in turn come between the kill
    and the same command again, () for none.
    """

    stand: Stand
    arguments: Sequence[str]
    prepare: Callable[[], object]
    back: Callable[[], object]
    target: tuple[str, int]
    environment: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    between: Sequence[Sequence[str]] = ((), REPAIR)
    tally: dict[str, int] = field(default_factory=lambda: {"steps": 0, "kills": 0, "too late": 0})

    @property
    def name(self) -> str:
        """What is killed, in words that are the same in each run: without this one's sizes and folders."""
        words = [*self.environment, *self.arguments]
        return " ".join(re.sub(r"^\d{5,}$|^/.*", "N", one) for one in words)

    def run(self, **more: Any) -> Stepped:
        """The command, step by step."""
        command = self.stand.command(*self.arguments, fault=self.fault)
        return stepped(command, environment=self.environment, **more)

    def learn(self) -> list[str]:
        """The steps of a run without a kill; what it came from, and what it came to, are known then."""
        self.prepare()
        self.start = self.stand.settled_state()
        done = self.run()
        assert done.code == 0, done.output
        self.end = self.stand.settled_state()
        self.back()
        self.tally["steps"] = len(done.steps)
        return done.steps

    def kill(self, number: int, *, whole: bool = True, between: Sequence[str] = ()) -> list[str]:
        """What is wrong after a kill before this step, and after the same command again; [] for nothing."""
        killed = self.run(kill_before=number, whole=whole)
        self.tally["too late" if len(killed.steps) < number else "kills"] += 1
        wrong = self.stand.traffic(self.target)
        if killed.orphans > ORPHANS_SECONDS:
            wrong.append(f"children lived on for {killed.orphans:.1f} s")
        wrong += self._told()
        wrong += self._open()
        if between:
            wrong += [f"after {between[0]}: {one}" for one in self._come_between(between)]
        command = self.stand.command(*self.arguments, fault=self.fault)
        begun = time.monotonic()
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        tell_worst(recovery_s=round(time.monotonic() - begun, 2))
        if again.returncode != 0 or "Traceback" in again.stderr:
            wrong.append(f"the same command again: {again.returncode}: {again.stderr}")
        wrong += self.stand.traffic(self.target)
        wrong += self.stand.differences(self.end)
        self._close()
        self.back()
        wrong += [f"after the way back: {one}" for one in self.stand.differences(self.start)]
        step = killed.steps[-1] if killed.steps else "none"
        how = "" if whole else "alone "
        return [f"killed {how}before step {number} of {self.tally['steps']} ({step}): {one}" for one in wrong]

    def _open(self) -> list[str]:
        """A connection that is opened after the kill must live, too."""
        try:
            self.stand.held[SINCE] = dial(self.stand.caller, self.target)
        except OSError as error:
            return [f"a connection after the kill: {error!r}"]
        return self.stand.traffic(self.target, count=1)

    def _close(self) -> None:
        if SINCE in self.stand.held:
            self.stand.held.pop(SINCE).close()

    def _come_between(self, arguments: Sequence[str]) -> list[str]:
        """What is wrong with another command, and after it: it does it, or says in a sentence why not. After repair all
        is as before the killed command, or as after it.
        """
        command = self.stand.command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        wrong = self.stand.traffic(self.target)
        if "Traceback" in done.stderr or done.returncode not in (0, 1):
            wrong.append(f"{done.returncode}: {done.stderr}")
        if arguments == REPAIR and done.returncode == 0:
            wrong += self.stand.differences_from_all([self.start, self.end])
            with Datapath.open(netns=self.stand.node.netns) as datapath:
                wrong += datapath.status().drift
        return wrong

    def _told(self) -> list[str]:
        """What is wrong with what a reading command says of a half-done change."""
        try:
            with Datapath.open(netns=self.stand.node.netns) as datapath:
                datapath.status()
                datapath.services  # noqa: B018 - reading is the test
        except DatapathError:
            return []
        except Exception as error:  # noqa: BLE001 - whatever is a traceback to the user
            return [f"status: {error!r}"]
        return []


def spread(count: int, wanted: int) -> list[int]:
    """Steps of 1..count, one of each stretch, in any order; all of them where `wanted` or PYDATAPATH_BIG says so."""
    chance = random.Random(SEED)
    if BIG or wanted >= count:
        found = list(range(1, count + 1))
    else:
        edges = [1 + count * place // wanted for place in range(wanted + 1)]
        found = [chance.randrange(first, after) for first, after in itertools.pairwise(edges)]
    chance.shuffle(found)
    return found


def already(trial: Trial, steps: int) -> set[int]:
    """The steps before which an earlier run has killed this command, without a fault."""
    if not KILLS or not Path(KILLS).exists():
        return set()
    made = [json.loads(line) for line in Path(KILLS).read_text().splitlines()]
    return {one["step"] for one in made if (one["of"], one["steps"], one["wrong"]) == (trial.name, steps, [])}


def note(trial: Trial, steps: int, number: int, wrong: list[str]) -> None:
    """A line for a kill."""
    if KILLS:
        with open(KILLS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"of": trial.name, "steps": steps, "step": number, "wrong": wrong}) + "\n")


def killed_everywhere(
    trial: Trial, figure: Callable[[str], None], wanted: int, *, alone: bool = False, since: str = ""
) -> None:
    """Kills the command before its steps; fails with all that was wrong. `since`: as often again before those from the
    first one on that is named so.
    """
    begun = time.monotonic()
    steps = trial.learn()
    numbers = spread(len(steps), wanted)
    if since:
        first = next(place for place, step in enumerate(steps) if step.startswith(since))
        late = [first + number for number in spread(len(steps) - first, wanted)]
        numbers = [*late, *numbers] if BIG else [one for both in zip(late, numbers, strict=True) for one in both]
    known = already(trial, len(steps))
    wrong: list[str] = []
    for done, number in enumerate(one for one in dict.fromkeys(numbers) if one not in known):
        if done >= FEWEST and time.monotonic() - begun > SECONDS:
            assert not BIG, f"only {done} of {len(steps)} steps were tried in {SECONDS:.0f} s"
            break
        between = trial.between[(done + SEED) % len(trial.between)]
        found = trial.kill(number, whole=not alone or number % 2 == 0, between=between)
        note(trial, len(steps), number, found)
        wrong += found
        if len(wrong) > 30:
            break
    tally = ", ".join(f"{count} {name}" for name, count in trial.tally.items())
    name = " ".join(one for one in trial.arguments[:1])
    figure(f"killed in {name}: {tally}, {len(wrong)} wrong; {time.monotonic() - begun:.0f} s, seed {SEED}")
    tell(repeats=trial.tally["kills"], wrong=len(wrong), seed=SEED)
    assert trial.tally["too late"] <= 1 + trial.tally["kills"] // 50, "it had ended before: nothing was tried"
    assert wrong == [], "\n".join(wrong)


def nothing() -> None:
    """Where a command ends, there it began."""


def test_F4_the_first_load(stand: Stand, figure: Callable[[str], None]):
    """The host's own traffic goes on; unloaded after all, the host is as it was."""
    stand.hold(stand.direct)

    def unload() -> None:
        stand.do("unload")

    trial = Trial(stand, ["load", *OPTIONS], nothing, unload, stand.direct)
    killed_everywhere(trial, figure, 9)


def test_F4_a_first_load_that_compiles(stand: Stand, figure: Callable[[str], None]):
    """The compiler's processes end by themselves where their parent alone is killed."""
    stand.hold(stand.direct)

    def unload() -> None:
        stand.do("unload")

    trial = Trial(stand, ["load", *OPTIONS], nothing, unload, stand.direct, ALONE)
    killed_everywhere(trial, figure, 4, alone=True)


def loaded(stand: Stand) -> None:
    stand.load()
    stand.apply()
    stand.hold(STEADY)


def test_F3_apply(stand: Stand, figure: Callable[[str], None]):
    """A service that stays as it is does not notice, of the others each is as before or as after."""
    arguments = ["apply", "--prune", "-f", str(stand.changed)]

    def there_and_back() -> None:
        loaded(stand)
        for manifests in (stand.changed, stand.base):  # from the second time on SQLite writes the same pages
            stand.apply(manifests)

    trial = Trial(stand, arguments, there_and_back, stand.apply, STEADY)
    killed_everywhere(trial, figure, 10)


def test_applied_again_there_is_no_step_but_the_locks(stand: Stand):
    """The second time no map, no link and no file is written; what SQLite makes to lock records it takes away."""
    loaded(stand)
    files = [stand.which.records, copy_of(stand.which.records)]
    before = [(one.read_bytes(), one.stat().st_mtime_ns) for one in files]
    again = stepped(stand.command("apply", "--prune", "-f", str(stand.base)))
    assert (again.code, {line.split()[-1] for line in again.output.splitlines()}) == (0, {"unchanged"}), again.output
    ours = re.escape(str(stand.which.directory))
    locking = rf"(openat|fchown|unlink) {ours}/state\.db-(wal|shm)|(ftruncate|pwrite64) {ours}/state\.db-shm"
    lock = rf"(openat|write) {ours}/lock|unlink {ours}/state\.db\.copy\.new"
    assert [one for one in again.steps if not re.fullmatch(f"{locking}|{lock}", one)] == []
    assert [(one.read_bytes(), one.stat().st_mtime_ns) for one in files] == before
    changed = stepped(stand.command("apply", "--prune", "-f", str(stand.changed)))
    assert any(re.match(rf"pwrite64 {ours}/state\.db\.copy", one) for one in changed.steps), "a change is written"


def test_F4_an_upgrade(stand: Stand, figure: Callable[[str], None]):
    """Other programs, maps, routes and plans: connections go on, whichever half of it is there."""
    trial = Trial(stand, ["load", *OTHER_OPTIONS], lambda: loaded(stand), stand.load, STEADY)
    killed_everywhere(trial, figure, 9)


def test_F4_an_upgrade_to_other_sizes(stand: Stand, figure: Callable[[str], None]):
    """As any, and what is open is carried to other maps; from where new ones are in their place on it is looked at more
    closely, for there records, pins and programs may be of two loads.
    """
    between = (REPAIR, ("apply", "-f", str(stand.base)), ())
    trial = Trial(stand, ["load", *OTHER_SIZES], lambda: loaded(stand), stand.load, STEADY, between=between)
    killed_everywhere(trial, figure, 9, since="rename")


def test_F4_programs_are_exchanged_in_one_step(stand: Stand):
    """No kill leaves the programs of two loads beside each other, also where an interface is no pod's any more: what
    one enters the other may not know.
    """
    loaded(stand)
    pod = stand.servers[1].interface
    stand.node.exec(["ip", "link", "set", pod, "nomaster"], check=True)
    try:
        steps = stepped(stand.command("load", *OTHER_SIZES)).steps
    finally:
        stand.node.exec(["ip", "link", "set", pod, "master", "br0"], check=True)
    found = [steps.count(f"netlink message {kind}") for kind in (44, 45)]  # RTM_NEWTFILTER, RTM_DELTFILTER
    tell(repeats=1, wrong=abs(sum(found) - 1), recovery_s=0, seed=SEED)
    assert found == [1, 0]


def test_F4_unload(stand: Stand, figure: Callable[[str], None]):
    """The host's own traffic goes on, and unload again takes away what is left."""

    def prepare() -> None:
        stand.load()
        stand.apply()

    prepare()
    stand.hold(stand.direct)
    trial = Trial(stand, ["unload"], prepare, prepare, stand.direct)
    killed_everywhere(trial, figure, 9)


# The check itself: with a fault put in, it is red

# Takes a filter away before its successor hangs there, as a careless exchange would
GAP = """
from pydatapath.kernel.attach import Attacher
exchange = Attacher.exchange
def careless(self, places, instance, over=(), *more):
    failed = {}
    for one in places:
        there = self.ours(one.index, one.hook, instance)
        self.remove([there] if there else [])
        failed |= exchange(self, [one], instance)
    return failed | exchange(self, [], instance, over)
Attacher.exchange = careless
"""
# Writes maps without a note that they are behind
FORGETFUL = """
from pydatapath import applying
from pydatapath.records import Records
put = Records.put
Records.put = lambda self, facts: put(self, {**facts, **({"unfinished": False} if "unfinished" in facts else {})})
"""


def red(trial: Trial, wanted: str, first: str) -> list[str]:
    """What the check finds wrong in the steps from the first one that is `first`, up to the first fault."""
    steps = trial.learn()
    places = [number for number, step in enumerate(steps, 1) if step == wanted]
    begin = places.index(next(number for number in places if number > steps.index(first)))
    for number in places[begin : begin + 6]:
        if wrong := trial.kill(number):
            return wrong
    return []


def test_an_exchange_with_a_gap_is_seen(stand: Stand):
    """Killed between the two halves of a careless exchange, traffic stops."""
    trial = Trial(stand, ["load", *OPTIONS], lambda: loaded(stand), nothing, STEADY, fault=GAP)
    attaching = "netlink message 44"  # RTM_NEWTFILTER
    wrong = red(trial, attaching, "netlink message 45")
    assert any("no answer" in one or "open connection" in one for one in wrong), wrong


def test_a_change_without_a_note_is_seen(stand: Stand):
    """Killed between records and maps, the same command again does not know that there is something to do."""
    arguments = ["apply", "--prune", "-f", str(stand.changed)]
    trial = Trial(stand, arguments, lambda: loaded(stand), stand.apply, STEADY, fault=FORGETFUL)
    wrong = red(trial, "bpf MAP_UPDATE_BATCH", "bpf MAP_UPDATE_ELEM")
    assert any("unwritten" in one for one in wrong), wrong
