"""What becomes of an instance whose files, pins or surroundings are not what they should be (F5 to F8, F11, F29, F31).

In each case traffic goes on, a command says in a sentence what is wrong and what to do, and what it says to do leads
back to a good state, with the objects, where these can be had.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rows import tell, tell_more, tell_worst
from scene import BIG
from stand import OPTIONS, OTHER_OPTIONS, STEADY, Stand, stand_up, unwritten
from stepping import stepped

from pydatapath.instance import RUN
from pydatapath.kernel import cache, layout, libbpf
from pydatapath.kernel.bpffs import BPFFS
from pydatapath.record_faults import copy_of
from pydatapath.record_tables import SCHEMA_VERSION
from pydatapath.records import Records

SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
WRITING = (
    ("load", *OPTIONS),
    ("apply", "-f"),
    ("service", "add", "more", "--port", "81"),
    ("delete", "service", "web"),
)
NOBODY = 65534
SECONDS = 1500.0 if BIG else 40.0  # for damage all over a file
READING = (("status",), ("service", "list"), ("export",), ("flow", "list"), ("node", "list"))

pytestmark = pytest.mark.timeout(1800 if BIG else 300)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded, and the programs kept that its loads need."""
    with stand_up(f"sf-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        made.load(OTHER_OPTIONS)
        made.load()
        made.clear()
        yield made


@pytest.fixture
def loaded(stand: Stand) -> Iterator[Stand]:
    """The stand with a service that must go on, over a connection that was open before."""
    stand.load()
    stand.apply()
    stand.hold(STEADY)
    works(stand)
    yield stand
    stand.clear()


def works(stand: Stand) -> None:
    """The steady service is called, and so it was."""
    assert stand.traffic(STEADY) == []


def run(stand: Stand, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """A command that may fail, but with one error and no traceback."""
    if arguments == ("apply", "-f"):
        arguments = ("apply", "--prune", "-f", str(stand.changed))
    tell_more(repeats=1)
    done: subprocess.CompletedProcess[str] = subprocess.run(
        stand.command(*arguments), capture_output=True, text=True, timeout=60, check=False, **more
    )
    told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, told
    assert done.returncode in (0, 1), told
    if done.returncode:
        assert re.fullmatch(r"Error: [^\n]+\n(Hint: [^\n]+\n)?", done.stderr), told
    return done


def fails(stand: Stand, *arguments: str, says: str, hints: str = "", **more: object) -> None:
    """A command that fails with this in its sentence and that in its hint."""
    done = run(stand, *arguments, **more)
    told = f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert done.returncode == 1, told
    error, _, hint = done.stderr.partition("\nHint: ")
    assert re.search(says, error), told
    assert re.search(hints, hint), told


def same(stand: Stand, wanted: dict[str, Any]) -> None:
    """All is as it was."""
    assert stand.differences(wanted) == []
    works(stand)


@contextlib.contextmanager
def mounted(kind: str, where: Path, options: str) -> Iterator[None]:
    """Something else lies over a folder."""
    subprocess.run(["mount", "-t", kind, "-o", options, "tests", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


# The disk


@contextlib.contextmanager
def loaded_over(stand: Stand, kind: str, where: Path, options: str) -> Iterator[Stand]:
    """As `loaded`, with a mount of its own over a folder."""
    with mounted(kind, where, options):
        stand.load()
        stand.apply()
        stand.hold(STEADY)
        yield stand
        stand.clear()


@pytest.fixture
def small_disk(stand: Stand) -> Iterator[Stand]:
    """As `loaded`, with the records on a disk of their own."""
    RUN.mkdir(mode=0o700, exist_ok=True)
    with loaded_over(stand, "tmpfs", RUN, "size=2m,mode=700") as made:
        yield made


def fill(folder: Path) -> Path:
    """Leaves no room at all; the file that takes it."""
    path = folder / "full"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_F6_a_full_disk(small_disk: Stand):
    """What changes something says so and changes nothing; what reads works; with room again all is as before."""
    before = small_disk.state()
    filler = fill(RUN)
    for command in WRITING:
        fails(small_disk, *command, says="no room|cannot be written|No space", hints="make room")
        works(small_disk)
    for command in READING:
        assert run(small_disk, *command).returncode == 0
    filler.unlink()
    same(small_disk, before)
    small_disk.apply(small_disk.changed)


def test_F6_a_full_disk_does_not_hold_up_unload(stand: Stand):
    """It makes room itself, and takes back all that was done to the host."""
    before = stand.state()
    RUN.mkdir(mode=0o700, exist_ok=True)
    with mounted("tmpfs", RUN, "size=2m,mode=700"):
        stand.load()
        stand.apply()
        filler = fill(RUN)
        stand.do("unload")
        tell(repeats=1)
        filler.unlink()
        assert list(RUN.iterdir()) == []
    RUN.rmdir()
    assert stand.differences(before) == []


def test_F6_a_first_load_on_a_full_disk(stand: Stand):
    """Nothing is loaded, and the host is as it was."""
    before = stand.state()
    RUN.mkdir(mode=0o700, exist_ok=True)
    with mounted("tmpfs", RUN, "size=64k,mode=700"):
        filler = fill(RUN)
        fails(stand, "load", *OPTIONS, says="No space|no room|cannot be written", hints="make room")
        filler.unlink()
        with (RUN / "half").open("wb") as file:
            file.write(bytes(40_000))  # enough for a folder, not for records
        fails(stand, "load", *OPTIONS, says="No space|no room|cannot be written", hints="make room")
        (RUN / "half").unlink()
        assert list(RUN.iterdir()) == []
    RUN.rmdir()
    assert stand.differences(before) == []


def test_F6_a_disk_that_is_read_only(small_disk: Stand):
    """As a full one."""
    before = small_disk.state()
    subprocess.run(["mount", "-o", "remount,ro", str(RUN)], check=True)
    try:
        for command in (*WRITING, ("unload",)):
            fails(small_disk, *command, says="cannot be written: Read-only file system", hints="make it writable")
            works(small_disk)
        for command in READING:
            assert run(small_disk, *command).returncode == 0
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(RUN)], check=True)
    same(small_disk, before)


# The file system of pins, and pins


@pytest.fixture
def own_pins(stand: Stand) -> Iterator[Stand]:
    """As `loaded`, with its pins in a file system of their own: those of other tests stay where they are."""
    with loaded_over(stand, "bpf", BPFFS, "mode=700") as made:
        yield made


def test_F7_no_file_system_of_pins(own_pins: Stand):
    """Taken away under a loaded instance: what needs the maps says so, and load finds those of the programs that hang.

    The kernel empties an array of tail calls whose last pin goes, so that new calls wait for it.
    """
    before = own_pins.state()
    subprocess.run(["umount", "-l", str(BPFFS)], check=True)
    try:
        fails(own_pins, "apply", "-f", says="no longer pinned", hints="`pydatapath repair`")
        fails(own_pins, "flow", "list", says="no longer pinned", hints="`pydatapath repair`")
        run(own_pins, "status")
    finally:
        # As `load` would mount it, but as a mount of the test run
        subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "tests", str(BPFFS)], check=True)
    own_pins.mend()
    same(own_pins, before)


def map_ids(stand: Stand) -> dict[str, int]:
    """The id of each map by its pin."""
    found = {}
    for pin in stand.which.map_pins.iterdir():
        with libbpf.opened(libbpf.open_pin(str(pin))) as descriptor:
            found[pin.name] = libbpf.map_info(descriptor).id
    return found


def test_F11_pins_that_were_removed(loaded: Stand, figure: Callable[[str], None]):
    """One map's after the other's, and all: said in a sentence, and load takes those that run, with all their flows."""
    before, maps = loaded.state(), map_ids(loaded)
    pins = sorted(maps)
    for names in [*([one] for one in (pins if BIG else random.Random(SEED).sample(pins, 4))), pins]:
        for name in names:
            (loaded.which.map_pins / name).unlink()
        works(loaded)
        run(loaded, "apply", "-f")
        assert "Traceback" not in run(loaded, "status").stderr
        works(loaded)
        loaded.mend()
        assert map_ids(loaded) == maps
        works(loaded)
        loaded.apply()
        same(loaded, before)
    figure(f"pins removed: {len(pins)} known, seed {SEED}")
    tell(repeats=len(pins) if BIG else 4, seed=SEED)
    for name in ("walk", "from_pod"):
        (loaded.which.program_pins / name).unlink()
    works(loaded)
    loaded.mend()
    same(loaded, before)
    shutil.rmtree(loaded.which.program_pins)
    loaded.apply()
    loaded.mend()
    same(loaded, before)


@pytest.mark.parametrize("what", ["map", "folder"])
def test_F7_what_is_not_ours_at_the_place_of_a_pin(loaded: Stand, what: str):
    """Said with the way out, and neither used nor taken away."""
    before = loaded.state()
    place = loaded.which.map_pins / "services"
    place.rename(place.with_name("aside"))
    if what == "map":
        descriptor = libbpf.create_map(layout.MapType.HASH, "foreign", 4, 4, 10)
        libbpf.pin(descriptor, str(place))
        os.close(descriptor)
    else:
        place.mkdir()
    for command in (("load", *OPTIONS), ("apply", "-f"), ("service", "add", "more", "--port", "81")):
        fails(loaded, *command, says="services", hints="pin" if what == "map" else "")
        works(loaded)
    assert place.exists()
    (place.unlink if what == "map" else place.rmdir)()
    place.with_name("aside").rename(place)
    loaded.apply()
    same(loaded, before)


def chowned(place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)


def moved(place: Path) -> None:
    place.rename(place.with_name("aside"))
    place.symlink_to("aside")


SPOILT = {
    "wrong owner": (chowned, lambda place: os.chown(place, 0, 0), f"belongs to user {NOBODY}", "chown"),
    "writable by a group": (
        lambda place: place.chmod(0o720),
        lambda place: place.chmod(0o700),
        "mode is 0720",
        "chmod",
    ),
    "writable by all": (lambda place: place.chmod(0o702), lambda place: place.chmod(0o700), "mode is 0702", "chmod"),
    "symbolic link": (
        moved,
        lambda place: place.with_name("aside").replace(place.unlink() or place),
        "is a symbolic link",
        "`rm ",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_F7_pin_dir_wrong_owner(loaded: Stand, what: str):
    """Nor may others write there, nor does it lead elsewhere: every command says so and does nothing, traffic goes on,
    and what it says to do is enough. The folders of the records are as those of the pins.
    """
    before, which = loaded.state(), loaded.which
    spoil, mend, says, hints = SPOILT[what]
    for lowest, root in ((which.pins, BPFFS), (which.directory, RUN.parent)):
        for place in (one for one in (lowest, *lowest.parents) if one.is_relative_to(root) and one != root):
            spoil(place)
            try:
                for command in (*WRITING[:2], ("status",), ("repair",), ("unload",)):
                    fails(loaded, *command, says=f"the folder {place} .*{says}", hints=hints)
                works(loaded)
            finally:
                mend(place)
    loaded.do("status")
    same(loaded, before)


def test_F7_pin_dir_wrong_owner_before_the_first_load(stand: Stand):
    """Where all may write, as a bpf file system is mounted without an option, anybody may make our folder first."""
    with mounted("bpf", BPFFS, "mode=1777"):
        before, place = stand.state(), BPFFS / "pydatapath"
        subprocess.run(["mkdir", "-p", str(place / "default")], check=True, user=NOBODY, group=NOBODY)
        for command in (("load", *OPTIONS), ("unload",)):
            fails(stand, *command, says=f"the folder {place} belongs to user {NOBODY}", hints=f"`rm -r {place}`")
            assert not RUN.exists()
        shutil.rmtree(place)
        assert stand.differences(before) == []
        stand.load()
        for made in (place, stand.which.pins.parent, stand.which.pins):
            assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (0, 0o700)
        stand.do("unload")


# The records


def damage(path: Path, how: Callable[[bytearray], bytearray]) -> None:
    """Changes the database's bytes, with nothing beside it."""
    path.write_bytes(how(bytearray(path.read_bytes())))


@contextlib.contextmanager
def noted(wrong: list[str]) -> Iterator[None]:
    """What is not as it must be is noted, so that it can be counted."""
    try:
        yield
    except AssertionError as error:
        wrong.append(str(error))


def check_damage(stand: Stand, before: dict[str, Any], wrong: list[str]) -> str:
    """With damaged records each command works or says why, load mends them, and nothing is lost; or `wrong` gets more.
    What happened.
    """
    for command in (("status",), ("export",), ("apply", "-f")):
        with noted(wrong):
            run(stand, *command)
    wrong += stand.traffic(STEADY)
    begun = time.monotonic()
    done = run(stand, "load", *OPTIONS)
    tell_worst(recovery_s=round(time.monotonic() - begun, 2))
    if done.returncode:
        wrong.append(f"load: {done.stderr}")
    wrong += stand.traffic(STEADY)
    with noted(wrong):
        stand.apply()
    # What follows from the objects has no sums: a bit of it that nothing depends on may stay, in the records alone
    wrong += stand.differences(before | {"copied": stand.state()["copied"]})
    wrong += stand.traffic(STEADY)
    return "copied" if "as their copy" in done.stderr else "unseen"


def test_F8_records_cut_off_and_with_flipped_bits(loaded: Stand, figure: Callable[[str], None]):
    """At places all over the file; what is seen to be damaged is taken from its copy."""
    before, path, begun = loaded.state(), loaded.which.records, time.monotonic()
    good = path.read_bytes()
    texts = [place for place in range(len(good)) if good.startswith(b"steady", place)]
    chance, size = random.Random(SEED), len(good)
    cuts = [0, 1, 50, 100, 4095, 4096, *(chance.randrange(size) for _ in range(60))]
    flips = [
        18,
        60,
        63,
        *(2 + place for place in (texts if BIG else chance.sample(texts, 3))),
        *(chance.randrange(size) for _ in range(200)),
    ]
    chance.shuffle(cuts)
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    for cut, flip in itertools.zip_longest(cuts, flips):
        if time.monotonic() - begun > SECONDS or wrong:
            break
        if cut is not None:
            damage(path, lambda text, place=cut: text[:place])
            tally[f"cut off: {check_damage(loaded, before, wrong)}"] += 1
        bit = 1 << chance.randrange(8)
        damage(path, lambda text, place=flip, bit=bit: flipped(text, place, bit))
        tally[f"a bit flipped: {check_damage(loaded, before, wrong)}"] += 1
    tell(repeats=sum(tally.values()), wrong=len(wrong), seed=SEED)
    figure(f"damaged records of {size} bytes: {dict(tally)}; {time.monotonic() - begun:.0f} s, seed {SEED}")
    assert wrong == [], "\n".join(wrong)


def flipped(text: bytearray, place: int, bit: int) -> bytearray:
    text[min(place, len(text) - 1)] ^= bit
    return text


@pytest.mark.parametrize(
    "column", ["objects.manifest", "objects.kind", "facts.value", "members.kind", "frontends.kind"]
)
def test_F8_values_that_make_no_sense(loaded: Stand, column: str):
    """Whoever meets one says that the records are damaged, and no more."""
    before, (table, name) = loaded.state(), column.split(".")
    with contextlib.closing(sqlite3.connect(loaded.which.records)) as records:
        records.execute(f"UPDATE {table} SET {name} = '{{' || {name}")  # noqa: S608
        records.commit()
    differs = loaded.command("diff", "-f", str(loaded.base))  # which has exit codes of its own
    assert "Traceback" not in subprocess.run(differs, capture_output=True, text=True, timeout=60, check=False).stderr
    for command in (*READING, *WRITING[1:], ("repair",)):
        run(loaded, *command)
    works(loaded)
    loaded.mend()
    loaded.apply()
    same(loaded, before | {"copied": loaded.state()["copied"]})


def test_F8_records_that_are_gone(loaded: Stand):
    """By themselves, their copy serves; with it, what runs is not ended in passing."""
    before, which = loaded.state(), loaded.which
    which.records.unlink()
    assert run(loaded, "apply", "-f").returncode == 1
    assert "as their copy" in run(loaded, "load", *OPTIONS).stderr
    same(loaded, before)
    shutil.rmtree(which.directory)
    fails(loaded, "load", *OPTIONS, says="lost, without a copy, and 6 addresses", hints="`pydatapath unload` ends it")
    works(loaded)
    loaded.do("unload")
    loaded.mend()
    loaded.apply()
    loaded.held.pop(STEADY).close()
    # Who made the qdisc clsact, and who set the sysctl, nobody knew any more
    same(loaded, before | {"records": before["records"] | {"changes": loaded.state()["records"]["changes"]}})


def test_F8_records_that_are_anothers_database(loaded: Stand):
    """It is not taken for ours, also where it has our version."""
    before, path = loaded.state(), loaded.which.records
    for version in (0, SCHEMA_VERSION):
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE books (title TEXT)")
            other.execute(f"PRAGMA user_version = {version}")
        fails(
            loaded, "apply", "-f", says="are damaged and cannot be read", hints="`pydatapath repair` takes their copy"
        )
        works(loaded)
        if version:
            assert "as their copy" in run(loaded, "load", *OPTIONS).stderr
        else:
            assert "as their copy" in run(loaded, "repair").stdout
        same(loaded, before)


def test_F8_records_of_a_newer_version(loaded: Stand):
    """They are no damage: nothing is put in their place."""
    before, path = loaded.state(), loaded.which.records

    def make(tables: str, version: int) -> None:
        with contextlib.closing(sqlite3.connect(path)) as records:
            records.executescript(f"{tables}; PRAGMA user_version = {version}")

    make("CREATE TABLE later (what TEXT)", 99)
    for command in (*WRITING, *READING, ("repair",)):
        fails(loaded, *command, says="of version 99, this pydatapath writes", hints="the version that made them")
        works(loaded)
    make("DROP TABLE later", SCHEMA_VERSION)
    same(loaded, before)


@pytest.mark.parametrize("number", [1, SCHEMA_VERSION - 1, SCHEMA_VERSION + 2, SCHEMA_VERSION + 8])
def test_F8_records_whose_version_is_damaged(loaded: Stand, number: int):
    """Nobody takes them for older or newer ones: each command says what they are, and repair or load takes the copy."""
    before, path = loaded.state(), loaded.which.records
    for way in (("repair",), ("load", *OPTIONS)):
        damage(path, lambda text: text[:60] + number.to_bytes(4) + text[64:])
        for command in (*WRITING[1:], *READING):
            fails(loaded, *command, says="are damaged and cannot be read", hints="`pydatapath repair` takes their copy")
            works(loaded)
        done = run(loaded, *way)
        assert done.returncode == 0, done.stderr
        assert f"of version {number}, and have the tables of version {SCHEMA_VERSION}" in done.stdout + done.stderr
        assert "as their copy" in done.stdout + done.stderr
        loaded.apply()
        same(loaded, before)


# The process


def test_F31_few_descriptors(loaded: Stand):
    """A limit that cannot be raised is one error; nothing is changed by it."""
    before = loaded.state()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    for command in (*WRITING, *READING):
        done = run(loaded, *command, preexec_fn=limit)
        assert done.returncode == 0 or "Too many open files" in done.stderr, done.stderr
        works(loaded)
    loaded.mend()
    loaded.apply()
    same(loaded, before)


def test_F31_a_low_limit_that_can_be_raised(loaded: Stand):
    """It is."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    done = run(loaded, "load", *OPTIONS, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_F5_a_signal_in_apply_leaves_it_done_or_not(loaded: Stand, number: int, figure: Callable[[str], None]):
    """Never half-done, whenever it comes."""
    before, begun = loaded.state(), time.monotonic()
    loaded.apply(loaded.changed)
    after = loaded.state()
    loaded.apply()
    command = loaded.command("apply", "--prune", "-f", str(loaded.changed))
    steps = stepped(command).steps
    loaded.apply()
    chance, writes = random.Random(SEED), [place for place, step in enumerate(steps, 1) if step.startswith("bpf MAP")]
    places = range(1, len(steps) + 1)
    if not BIG:  # some of all, and of those that would leave the maps half written
        places = sorted({*chance.sample(places, 5), *chance.sample(writes, 3)})
    done = 0
    for place in places:
        hit = stepped(command, kill_before=place, kill_with=number)
        assert "Traceback" not in hit.output, hit.output
        assert not unwritten(loaded.which), f"signal {number} before step {place}: {hit.steps[-1]}"
        works(loaded)
        found = loaded.state()
        assert found["records"] in (before["records"], after["records"]), f"before step {place}: {hit.steps[-1]}"
        done += found["records"] == after["records"]
        loaded.apply()
    figure(
        f"signal {number} in apply: {len(places)} of {len(steps)} steps, {done} done all the same;"
        f" {time.monotonic() - begun:.0f} s, seed {SEED}"
    )
    tell(repeats=len(places), seed=SEED)
    same(loaded, before)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "| true", ">/dev/full"])
def test_F5_output_that_nobody_takes(loaded: Stand, closed: str):
    """The change is made all the same, and nothing is written where the output would have gone."""
    before = loaded.state()
    command = " ".join(loaded.command("apply", "--prune", "-f", str(loaded.changed)))
    subprocess.run(["bash", "-c", f"{command} {closed}"], timeout=60, check=False, capture_output=True)
    tell(repeats=1)
    assert {one.name for one in _services(loaded)} == {"new", "steady", "web"}
    loaded.apply()
    same(loaded, before)


def _services(stand: Stand) -> list[object]:
    with Records(stand.which.records) as records:
        return [*records.objects("Service")]


DAY = 86_400
# What Python runs first of all. The clock itself is the whole machine's, and other tests run on it
SET_CLOCK = f"""
import datetime, os, time
shift = int(os.environ["PYDATAPATH_SHIFT"])
real, real_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: real() + shift, lambda: real_ns() + shift * {10**9}
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift)
datetime.datetime = Shifted
"""


@pytest.mark.parametrize("clock", ["the date", "since boot"])
@pytest.mark.parametrize("way", ["on", "back"])
def test_F29_flows_are_as_old_as_they_are(loaded: Stand, tmp_path: Path, clock: str, way: str):
    """Whatever the commands' clock says, a day off or more than the machine has run: none is older or younger, gone or
    back, nothing is drift, and nothing that a command does under it is undone by the next.
    """
    before, spoken, port = loaded.state(), time.monotonic(), loaded.held[STEADY].getsockname()[1]
    shift = DAY if way == "on" else -DAY if clock == "the date" else -int(spoken / 2)
    start, environment = ["unshare", "--time", f"--monotonic={shift}", f"--boottime={shift}"], dict(os.environ)
    if clock == "the date":
        (tmp_path / "sitecustomize.py").write_text(SET_CLOCK)
        found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        start, environment = [], environment | {"PYTHONPATH": found, "PYDATAPATH_SHIFT": str(shift)}

    def flows(*start: str, **more: Any) -> dict[str, dict[str, Any]]:
        command = [*start, *loaded.command("flow", "list", "-o", "json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, **more)
        return {f"{one['protocol']} {one['original']}": one for one in json.loads(done.stdout)}

    def shifted(*arguments: str) -> str:
        command = [*start, *loaded.command(*arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment).stdout

    while True:
        begun, right = time.monotonic(), flows()
        (held,) = (name for name, one in right.items() if port in one["original"].values())
        if right[held]["idle"] > 2:
            break
        assert begun - spoken < 30, right[held]
    told = flows(*start, env=environment)
    took = time.monotonic() - begun
    assert told.keys() <= right.keys()
    assert {name for name, one in right.items() if one["expires"] > took} <= told.keys()
    for name, one in told.items():
        assert 0 <= one["idle"] - right[name]["idle"] <= took, (one, right[name])
        assert one["idle"] + one["expires"] == pytest.approx(right[name]["idle"] + right[name]["expires"])
    for arguments in (("apply", "--prune", "-f", str(loaded.changed)), ("load", *OPTIONS), ("repair",)):
        shifted(*arguments)
        works(loaded)
    told_of = json.loads(shifted("status", "--check", "-o", "json"))
    since = datetime.fromisoformat(told_of["since"]).timestamp() - time.time()
    assert since == pytest.approx(shift if clock == "the date" else 0, abs=120), "the clock was set at all"
    drift = told_of["drift"], json.loads(loaded.do("status", "--check", "-o", "json").stdout)["drift"]
    tell(repeats=1, wrong=len(drift[0]) + len(drift[1]))
    assert drift == ([], [])
    loaded.mend()
    loaded.apply()
    same(loaded, before)


def test_F29_a_clock_that_was_wrong(loaded: Stand):
    """What says that it was made in the future is no worse for it: nothing compares it with the clock."""
    before = loaded.state()
    with Records(loaded.which.records) as records:
        records.put({"since": "2099-01-01T00:00:00+00:00"})
    for path in (loaded.which.records, copy_of(loaded.which.records), *cache.DIRECTORY.iterdir()):
        os.utime(path, (4e9, 4e9))
    assert "2099" in run(loaded, "status").stdout
    loaded.mend()
    assert "2099" not in run(loaded, "status").stdout
    tell(repeats=1, wrong=len(loaded.traffic(STEADY)))
    same(loaded, before)
