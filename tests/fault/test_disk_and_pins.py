"""A disk that is full, a file system of pins that is gone, pins that were removed or are not ours (F6, F7, F11).

In each case traffic goes on, a command says in a sentence what is wrong and what to do, and what it says to do leads
back to a good state.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rows import tell
from scene import BIG
from spoiling import READING, SEED, WRITING, fails, loaded_over, mounted, run, same, works
from stand import OPTIONS, Stand

from pydatapath.instance import RUN
from pydatapath.kernel import layout, libbpf
from pydatapath.kernel.bpffs import BPFFS

NOBODY = 65534

pytestmark = pytest.mark.timeout(1800 if BIG else 300)


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


def missing(stand: Stand) -> dict[str, str]:
    """What `doctor` does not find, and what it says of it."""
    done = subprocess.run(stand.command("doctor", "-o", "json"), capture_output=True, check=False)
    return {one["name"]: one["detail"] for one in json.loads(done.stdout) if not one["found"]}


@pytest.mark.parametrize("what", SPOILT)
def test_F7_pin_dir_wrong_owner(loaded: Stand, what: str):
    """Nor may others write there, nor does it lead elsewhere: every command says so and does nothing, traffic goes on,
    and what it says to do is enough. The folders of the records are as those of the pins.
    """
    before, which = loaded.state(), loaded.which
    spoil, mend, says, hints = SPOILT[what]
    assert "folders of root alone" not in missing(loaded)
    for lowest, root in ((which.pins, BPFFS), (which.directory, RUN.parent)):
        for place in (one for one in (lowest, *lowest.parents) if one.is_relative_to(root) and one != root):
            spoil(place)
            try:
                for command in (*WRITING[:2], ("status",), ("repair",), ("unload",)):
                    fails(loaded, *command, says=f"the folder {place} .*{says}", hints=hints)
                assert re.match(f"the folder {place} .*{says}", missing(loaded)["folders of root alone"])
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
        assert f"the folder {place} belongs to user" in missing(stand)["folders of root alone"]
        shutil.rmtree(place)
        assert stand.differences(before) == []
        stand.load()
        for made in (place, stand.which.pins.parent, stand.which.pins):
            assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (0, 0o700)
        stand.do("unload")
