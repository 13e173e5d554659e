"""Records that are cut off, have flipped bits, are gone or somebody else's (F8).

In each case traffic goes on, each command works or says in a sentence what is wrong, and what it says to do leads back
to a good state, with the objects, where these can be had.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rows import tell, tell_worst
from scene import BIG
from spoiling import READING, SEED, WRITING, fails, run, same, works
from stand import OPTIONS, STEADY, Stand

from pydatapath.record_faults import copy_of, take_copy
from pydatapath.record_tables import SCHEMA_VERSION

SECONDS = 1500.0 if BIG else 40.0  # for damage all over a file

pytestmark = pytest.mark.timeout(1800 if BIG else 300)


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
            assert wrong or not BIG, f"only {tally} of {len(cuts)} cuts and {len(flips)} flips in {SECONDS:.0f} s"
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
    for way in (("repair",), ("load", *OPTIONS)):
        which.records.unlink()
        for command in (("apply", "-f"), ("status",)):
            fails(loaded, *command, says="there are none", hints="`pydatapath repair` takes their copy")
        done = run(loaded, *way)
        assert "as their copy" in done.stdout + done.stderr
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


def test_F8_killed_when_the_copy_has_just_been_taken(loaded: Stand):
    """What a copy lacks is planned by the next command, whichever that is."""
    before, which = loaded.state(), loaded.which
    for way in (("apply", "--prune", "-f", str(loaded.base)), ("repair",), ("load", *OPTIONS)):
        which.records.unlink()
        assert take_copy(which.records)
        run(loaded, *way)
        works(loaded)
        same(loaded, before)


def test_F8_a_load_that_fails_has_taken_the_copy_as_a_whole(loaded: Stand):
    """All is as it was, and whoever only reads finds what services are called by."""
    before, which = loaded.state(), loaded.which
    which.records.unlink()
    failed = run(loaded, "load", *OPTIONS, "--uplink", "none0")
    assert (failed.returncode, "none0" in failed.stderr) == (1, True), failed.stderr
    works(loaded)
    same(loaded, before)


def test_F8_status_tells_that_a_copy_has_just_been_taken(loaded: Stand):
    """By whom a kill has ended before he planned by it; a look changes nothing."""
    before, which = loaded.state(), loaded.which
    which.records.unlink()
    assert take_copy(which.records)
    assert "the records are a copy, by which services have not been planned yet" in run(loaded, "status").stdout
    for command in READING:
        assert "Traceback" not in run(loaded, *command).stderr
    works(loaded)
    assert "services had not been planned yet" in run(loaded, "repair").stdout
    same(loaded, before)


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


def test_records_of_an_earlier_version(loaded: Stand):
    """Load alone brings them up to date; each other command says which version they are."""
    before, path = loaded.state(), loaded.which.records
    for one in (path, copy_of(path)):
        with contextlib.closing(sqlite3.connect(one)) as records:
            for table in ("facts", "objects", "host_changes"):
                records.execute(f"ALTER TABLE {table} DROP COLUMN sum")
            records.execute("PRAGMA user_version = 4")
    for command in (*WRITING[1:], *READING):
        fails(loaded, *command, says="of version 4, this pydatapath writes", hints="the version that made them")
        works(loaded)
    done = run(loaded, "load", *OPTIONS)
    assert done.returncode == 0, done.stderr
    works(loaded)
    loaded.apply()
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
