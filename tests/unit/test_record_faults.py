"""Records that are damaged or gone, and their copy, in real SQLite files."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pydatapath.claims import Claim
from pydatapath.errors import DatapathError
from pydatapath.kernel import bpffs
from pydatapath.kernel.layout import MemberKind
from pydatapath.plan import Address, Frontend, PortPlan
from pydatapath.record_copy import INCOMPLETE, PLANNED
from pydatapath.record_faults import DamagedRecords, copy_of, explained, take_copy
from pydatapath.record_tables import SCHEMA_VERSION
from pydatapath.records import HostChange, Records, Stored

WEB = Stored("Service", "shop", "web", None, '{"kind":"Service"}')
VIP = Address("10.96.0.10", 80, "TCP")
PORT = PortPlan("shop", "web", "http", "TCP", (Frontend(VIP),), ())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Records with one object."""
    path = tmp_path / "state.db"
    with Records(path, create=True) as records:
        records.store([WEB])
    return path


def flip(path: Path, place: int, bits: int = 1) -> None:
    text = bytearray(path.read_bytes())
    text[place] ^= bits
    path.write_bytes(text)


def other_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE books (title TEXT)")
        made.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def no_json(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as records:
        records.execute("UPDATE objects SET manifest = '{'")
        records.commit()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "no header": lambda path: flip(path, 3),
    "read-only by a bit": lambda path: flip(path, 18),
    "another's": other_database,
    "no JSON": no_json,
}


def texts_in(path: Path, *texts: bytes) -> list[int]:
    """Every byte of these texts, wherever they stand in a file."""
    whole = path.read_bytes()
    starts = [(place, text) for text in texts for place in range(len(whole)) if whole.startswith(text, place)]
    return [place + offset for place, text in starts for offset in range(len(text))]


def test_F8_any_bit_that_flips_in_what_was_written_is_seen(path: Path) -> None:
    """Also inside a text that stays good: an object, a fact, and what load did to the host."""
    with Records(path) as records:
        records.put({"zone": "north"})
        records.note_host_change(HostChange.FILTER, "eth0 FROM_UPLINK")
    good = path.read_bytes()
    places = texts_in(path, WEB.manifest.encode(), b'"north"', b"eth0 FROM_UPLINK")
    assert len(places) >= len(WEB.manifest) + len("north") + len("eth0 FROM_UPLINK")
    for place in places:
        flip(path, place)
        assert take_copy(path), f"the byte {place}"
        path.write_bytes(good)
        copy_of(path).write_bytes(good)


@pytest.mark.parametrize("column", ["service TEXT", "name TEXT PRIMARY", "held INTEGER", "family TEXT"])
def test_F8_any_bit_that_flips_in_a_columns_type_is_seen(path: Path, column: str) -> None:
    """SQLite takes any word for a type, and would make a number of the name 8080."""
    good = path.read_bytes()
    for place in texts_in(path, column.encode())[column.index(" ") + 1 :][: len(column.split()[1])]:
        for bit in (0, 1, 2, 3, 4, 6, 7):  # bit 5 makes a small letter, which is the same type
            flip(path, place, 1 << bit)
            assert take_copy(path), f"the byte {place}, bit {bit}"
            copy_of(path).write_bytes(good)
            path.write_bytes(good)


def test_F8_the_copy_is_never_made_of_damaged_records(path: Path) -> None:
    """A change goes into the copy by itself; where a whole one is due, the damage is said."""
    good = path.read_bytes()
    flip(path, texts_in(path, WEB.manifest.encode())[5])
    with Records(path) as records:
        records.put({"any": "change"})
    assert take_copy(path)
    with Records(path) as records:
        assert (records.objects(), records.get("any")) == ([WEB], "change")
    path.write_bytes(good)
    flip(path, texts_in(path, WEB.manifest.encode())[5])
    with pytest.raises(DamagedRecords, match="not the one that was written"), Records(path) as records:
        records.put({"any": "change"})
    assert not copy_of(path).exists()


def without_sums(path: Path) -> None:
    """Records of version 4, and their copy."""
    with contextlib.closing(sqlite3.connect(path)) as records:
        for table in ("facts", "objects", "host_changes"):
            records.execute(f"ALTER TABLE {table} DROP COLUMN sum")
        records.execute("PRAGMA user_version = 4")
    copy_of(path).write_bytes(path.read_bytes())


def test_F30_records_without_sums_are_no_damage(path: Path) -> None:
    """A version before wrote none: what it wrote is taken as it is, and what is written now has one."""
    without_sums(path)
    assert take_copy(path) == ""
    with Records(path, create=True) as records:
        assert records.objects() == [WEB]
        records.put({"any": "change"})
    assert take_copy(path) == ""


VERSION_AT = 60  # the four bytes of user_version (sqlite.org/fileformat.html 1.3), the highest first


@pytest.mark.parametrize("bit", range(32))
@pytest.mark.parametrize("make", [lambda _: None, without_sums], ids=["ours", "older"])
def test_F8_a_version_with_a_flipped_bit_is_damage(path: Path, bit: int, make: Callable[[Path], None]) -> None:
    """The tables tell: neither is it taken for an older or newer one's, nor brought up to date."""
    make(path)
    wanted = rows(path)
    for damaged in (path, copy_of(path)):
        flip(damaged, VERSION_AT + 3 - bit // 8, 1 << bit % 8)
        if damaged == path:
            for create in (False, True):
                with pytest.raises(DamagedRecords), Records(path, create=create) as records:
                    records.put({"any": "change"})
            assert "as their copy" in (take_copy(path) or "")
            copy_of(path).write_bytes(path.read_bytes())
        else:
            assert take_copy(path) == ""
            assert not copy_of(path).exists()
        assert rows(path) == wanted
    with Records(path, create=True) as records:
        assert records.objects() == [WEB]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_F8_the_copy_takes_the_place_of_damaged_records(path: Path, damage: Callable[[Path], object]) -> None:
    """Whatever is wrong with them; the sentence says when the copy was made."""
    damage(path)
    told = take_copy(path)
    assert told is not None
    assert "as their copy of" in told
    with Records(path) as records:
        assert records.objects() == [WEB]
    assert not copy_of(path).exists()
    with Records(path) as records:
        records.put({"any": "change"})
    assert copy_of(path).exists(), "with the next change there is one again"


def test_good_records_stay(path: Path) -> None:
    """The copy is not asked."""
    copy_of(path).write_bytes(b"garbage")
    assert take_copy(path) == ""


def test_without_a_copy_nothing_is_done(path: Path) -> None:
    """Also where the copy is as bad as the records."""
    path.write_bytes(b"garbage" * 1000)
    copy_of(path).write_bytes(b"garbage" * 1000)
    assert take_copy(path) is None
    assert path.exists()


def test_newer_records_are_no_damage(path: Path) -> None:
    """The copy would be older than what a newer pydatapath has written."""
    with contextlib.closing(sqlite3.connect(path)) as records:
        records.executescript(f"CREATE TABLE later (what TEXT); PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(DatapathError, match="this pydatapath writes"):
        take_copy(path)
    assert copy_of(path).exists()


def test_the_copy_is_of_whole_changes(path: Path) -> None:
    """What is undone is not copied, and a command that changes nothing copies nothing."""
    before = copy_of(path).stat()
    with Records(path) as records:
        records.store([Stored("Service", "shop", "other", None, "{}")])
        records.rollback()
        records.keep_copy()
    assert copy_of(path).stat() == before
    with Records(path) as records:
        records.store([Stored("Service", "shop", "other", None, "{}")])
    with Records(copy_of(path)) as copied:
        assert len(copied.objects()) == 2
    assert copy_of(path).stat().st_mode & 0o777 == 0o600


def rows(path: Path) -> dict[str, list[object]]:
    """All that a database holds, but for what follows from its objects, which a copy lacks."""
    with contextlib.closing(sqlite3.connect(path)) as records:
        names = [row[0] for row in records.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {
            name: records.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()  # noqa: S608
            for name in names
            if name not in PLANNED
        }
    return found | {"facts": [row for row in found["facts"] if row[0] != INCOMPLETE]}


def change(path: Path, number: int) -> None:
    """Changes rows of every table, by each way that Records has, with what is taken back in between."""
    key = ("shop", f"s{number % 3}")
    port = PORT._replace(service=key[1], frontends=(Frontend(VIP._replace(port=80 + number % 2)),))
    with Records(path) as records:
        records.put({"number": number})
        records.store([WEB, Stored("Service", *key, None, f'{{"number":{number}}}')])
        records.release([key])
        records.register({key: [port] if number % 4 else []})
        records.claim({key: {Claim(VIP.address, 80, "TCP"): "cluster-ip"}})
        records.settle()
        records.commit()
        records.store([WEB._replace(manifest="{}")])
        records.release([("shop", f"s{number % 2}")])
        records.rollback()
        records.join(f"n{number % 2}", {f"10.{number % 3}.0.0/16": MemberKind.PODS})
        records.note_host_change(HostChange.ROUTE, f"10.{number % 5}.0.0/16")
        records.forget_host_change(HostChange.ROUTE, f"10.{(number + 2) % 5}.0.0/16")
        records.forget([("Service", "shop", f"s{(number + 1) % 3}")])


def test_the_copy_follows_each_change_without_being_made_anew(path: Path) -> None:
    """It is the same file, and holds the same."""
    file = copy_of(path).stat().st_ino
    for number in range(24):
        change(path, number)
        assert rows(copy_of(path)) == rows(path)
        assert copy_of(path).stat().st_ino == file
    assert {one.name for one in path.parent.iterdir()} == {"state.db", "state.db.copy"}


class Undone(Exception):
    """What ends a block."""


def test_the_copy_has_what_was_committed_before_an_error(path: Path) -> None:
    """And nothing of what was not."""
    with contextlib.suppress(Undone), Records(path) as records:
        records.put({"kept": 1})
        records.commit()
        records.put({"kept": 2})
        raise Undone
    assert rows(copy_of(path)) == rows(path)
    with Records(path) as records:
        assert records.get("kept") == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from pydatapath import record_copy, record_faults
from pydatapath.records import Records, Stored
path, where, name = Path(sys.argv[1]), int(sys.argv[2]), "_FOLLOW"

class Dying(tuple):
    def __iter__(self):
        for number, one in enumerate(tuple.__iter__(self)):
            if number == where:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

record_copy._FOLLOW = Dying(record_copy._FOLLOW)
with Records(path) as records:
    records.store([Stored("Service", "shop", "late", None, "{}")])
"""


@pytest.mark.parametrize("where", [0, 3, 8, 13])
def test_F3_a_kill_within_the_copys_change_is_made_up_for(path: Path, where: int) -> None:
    """The change is made; the next command that looks after the copy brings it up to date, and nothing is left."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(where)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert take_copy(path) == ""
    with Records(path) as records:
        assert len(records.objects()) == 2
        records.keep_copy()
    assert rows(copy_of(path)) == rows(path)
    assert {one.name for one in path.parent.iterdir()} == {"state.db", "state.db.copy"}


def test_a_copy_of_before_is_rid_of_what_it_need_not_hold(path: Path) -> None:
    """Of an earlier version, which copied all: what was left of that would be in the way of what is planned anew."""
    change(path, 1)
    with contextlib.closing(sqlite3.connect(copy_of(path))) as records:
        records.execute("ATTACH ? AS main_records", (str(path),))
        for table in PLANNED:
            records.execute(f"INSERT INTO {table} SELECT * FROM main_records.{table}")  # noqa: S608
        records.execute("DELETE FROM facts WHERE name = ?", (INCOMPLETE,))
        records.commit()
    change(path, 2)
    with contextlib.closing(sqlite3.connect(copy_of(path))) as records:
        assert [records.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in PLANNED] == [0, 0]  # noqa: S608
    with Records(copy_of(path)) as records:
        assert records.incomplete


def test_F8_a_copy_that_is_damaged_is_thrown_away_by_load(path: Path) -> None:
    """Else it would be found so when it is wanted; the next change makes another."""
    flip(copy_of(path), texts_in(copy_of(path), WEB.manifest.encode())[5])
    assert take_copy(path) == ""
    assert not copy_of(path).exists()
    change(path, 1)
    assert rows(copy_of(path)) == rows(path)


def test_F8_records_that_are_older_than_their_copy_give_way(path: Path) -> None:
    """A log that was lost: the copy is never ahead otherwise."""
    old = path.read_bytes()
    change(path, 1)
    wanted = rows(path)
    path.write_bytes(old)
    assert "were older than their copy" in (take_copy(path) or "")
    assert rows(path) == wanted


@pytest.mark.parametrize("of", [Path, copy_of], ids=["the records", "the copy"])
@pytest.mark.parametrize("value", ["x'ff'", "'[]'", "'1e'", "1.5"])
def test_F8_a_count_of_changes_that_makes_no_sense_is_damage(
    path: Path, of: Callable[[Path], Path], value: str
) -> None:
    """In a sentence, where it is read."""
    with contextlib.closing(sqlite3.connect(of(path))) as records:
        records.execute(f"UPDATE facts SET value = {value} WHERE name = 'changes'")  # noqa: S608
        records.commit()
    if of is copy_of:
        change(path, 1)
        assert rows(copy_of(path)) == rows(path)
    else:
        with pytest.raises(DamagedRecords), Records(path):
            pass
        assert "as their copy" in (take_copy(path) or "")


def test_F8_what_SQLite_cannot_say_in_text_is_damage(path: Path) -> None:
    """A bit in the definition of a table, which it quotes."""
    good = path.read_bytes()
    for place in texts_in(path, b"CREATE TABLE facts"):
        damaged = bytearray(good)
        damaged[place] ^= 128
        path.write_bytes(damaged)
        with pytest.raises(DamagedRecords), Records(path) as records:
            records.objects()
        assert "as their copy" in (take_copy(path) or "")
        copy_of(path).write_bytes(good)


@pytest.mark.parametrize("way", ["behind", "of another version", "damaged"])
def test_a_copy_that_cannot_follow_is_made_anew(path: Path, way: str) -> None:
    """Also by a command that has nothing to change, where it looks after the copy."""
    if way == "behind":
        kept = copy_of(path).read_bytes()
        change(path, 1)
        copy_of(path).write_bytes(kept)
    elif way == "damaged":
        copy_of(path).write_bytes(b"garbage" * 1000)
    else:
        with contextlib.closing(sqlite3.connect(copy_of(path))) as records:
            records.execute("PRAGMA user_version = 1")
    file = copy_of(path).stat().st_ino
    with Records(path) as records:
        records.keep_copy()
    assert rows(copy_of(path)) == rows(path)
    assert copy_of(path).stat().st_ino != file


def test_what_a_kill_left_half_made_does_not_matter(tmp_path: Path) -> None:
    """Neither of a database nor of a copy."""
    path = tmp_path / "state.db"
    for name in ("state.db.new", "state.db.new-wal", "state.db.copy.new"):
        (tmp_path / name).write_bytes(b"half" * 100)
    with Records(path, create=True) as records:
        records.store([WEB])
    assert {one.name for one in tmp_path.iterdir()} == {"state.db", "state.db.copy"}


def test_a_value_that_makes_no_sense_is_damage_and_not_a_traceback(path: Path) -> None:
    """What a reader stumbles over is looked at again."""
    no_json(path)
    with pytest.raises(DamagedRecords), Records(path):
        raise ValueError("not JSON")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_FULL, "cannot be written: no room is left on the disk"),
        (sqlite3.SQLITE_IOERR, "cannot be written: disk I/O error"),
        (sqlite3.SQLITE_BUSY, "are busy: "),
        (sqlite3.SQLITE_CORRUPT, "are damaged and cannot be read: "),
    ],
)
def test_each_of_SQLites_errors_has_its_sentence(tmp_path: Path, code: int, said: str) -> None:
    """The disk's fault, somebody else's, or damage."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert said in str(explained(tmp_path / "state.db", error))


def test_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Those above it that are made on the way, too; those that are there stay as they are."""
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        bpffs.make_private(tmp_path / "a" / "b", tmp_path)
    finally:
        os.umask(before)
    assert [oct(one.stat().st_mode & 0o777) for one in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        *("0o755", "0o700", "0o700")
    ]
