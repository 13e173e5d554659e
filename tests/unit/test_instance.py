"""Where an instance lies, who may use it, and how it is found: folders in tmp_path stand for /run and bpffs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydatapath import instance
from pydatapath.errors import Conflict, DatapathError, NotLoaded
from pydatapath.instance import Instance, check_name, find, left_behind, loaded
from pydatapath.kernel import bpffs, netns
from pydatapath.kernel.layout import LAYOUT_VERSION
from pydatapath.record_faults import copy_of
from pydatapath.records import Records

NOBODY = 65534
HOLD = """
import sys
from pathlib import Path
from pydatapath import instance
instance.RUN = Path(sys.argv[1])
with instance.Instance("web", "", 7).locked(make=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/run/pydatapath and /sys/fs/bpf of this test."""
    monkeypatch.setattr(instance, "RUN", tmp_path / "run")
    monkeypatch.setattr(bpffs, "BPFFS", tmp_path / "bpf")
    monkeypatch.setattr(instance, "PINS", tmp_path / "bpf" / "pydatapath")


@pytest.fixture
def web() -> Instance:
    """An instance of a namespace that is not ours."""
    return Instance("web", "", 7)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `web` until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def make(one: Instance, netns_name: str = "") -> Instance:
    """Records for an instance, as load leaves them."""
    one.directory.mkdir(parents=True)
    with Records(one.records, create=True) as records:
        records.put({"netns": netns_name})
    return one


def make_here(name: str) -> Instance:
    """An instance of the namespace that the test runs in."""
    return make(Instance(name, "", netns.cookie()))


@pytest.mark.parametrize("name", ["default", "a", "0", "node-1", "x" * 32])
def test_a_name_that_can_be(name: str) -> None:
    """Lower-case letters, digits and dashes within."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a/b", "..", "a b", "é", "default\n", "x" * 33])
def test_F25_a_name_that_cannot_be_a_folders(name: str) -> None:
    """No name leads out of its folder, and the sentence quotes it."""
    with pytest.raises(DatapathError) as caught:
        check_name(name)
    assert str(caught.value) == f"instance name {name!r} cannot be used"
    assert "digits and dashes" in caught.value.hint


def test_every_instance_has_folders_of_its_own(tmp_path: Path, web: Instance) -> None:
    """Name and namespace tell them apart; maps lie by layout version."""
    assert web.pins == tmp_path / "bpf/pydatapath/web/7"
    assert web.map_pins == web.pins / f"maps_v{LAYOUT_VERSION}"
    assert web.program_pins == web.pins / "programs"
    assert web.records == tmp_path / "run/web/7/state.db"
    assert {Instance("web", "", 8).pins, Instance("api", "", 7).pins}.isdisjoint({web.pins})


def test_it_exists_where_either_side_is_left(web: Instance) -> None:
    """Records without pins or pins without records are something that unload must take away."""
    assert not web.exists
    web.pins.mkdir(parents=True)
    assert web.exists
    web.remove()
    assert not web.exists
    make(web)
    assert web.exists


@pytest.mark.parametrize("place", ["run", "run/web", "run/web/7", "bpf/pydatapath", "bpf/pydatapath/web/7"])
@pytest.mark.parametrize("what", ["mode is 0770", "mode is 0707", "symbolic link", "dangling symbolic link", "file"])
def test_F7_a_folder_that_others_could_write_is_refused(tmp_path: Path, web: Instance, place: str, what: str) -> None:
    """Found, or in the way of one that is to be made: named, with what is wrong and what to do."""
    folder = tmp_path / place
    folder.parent.mkdir(parents=True, exist_ok=True)
    if what.startswith("mode"):
        folder.mkdir()
        folder.chmod(int(what[-3:], 8))
    elif what == "file":
        folder.touch()
    else:
        if not what.startswith("dangling"):
            (tmp_path / "aside").mkdir()
        folder.symlink_to(tmp_path / "aside")
    for make_it in (True, False):
        with pytest.raises(Conflict) as caught, web.locked(make=make_it):
            pass
        assert f"the folder {folder} " in str(caught.value)
        assert what.removeprefix("dangling ") in str(caught.value)
        assert str(folder) in caught.value.hint
    (folder.rmdir if what.startswith("mode") else folder.unlink)()
    with web.locked(make=True):
        pass


def test_F7_doctor_looks_at_the_folders_of_all_and_at_nothing_else(tmp_path: Path, web: Instance) -> None:
    """Where there are none, all is well; a file that somebody has left beside them is in nobody's way."""
    instance.check_all_folders()
    make(web).map_pins.mkdir(parents=True)
    (tmp_path / "run" / "note.txt").touch()
    instance.check_all_folders()
    (tmp_path / "bpf/pydatapath/other").mkdir(mode=0o777)
    (tmp_path / "bpf/pydatapath/other").chmod(0o777)
    with pytest.raises(Conflict, match="bpf/pydatapath/other may be written by others"):
        instance.check_all_folders()


def test_remove_leaves_nothing_but_what_others_have(tmp_path: Path, web: Instance) -> None:
    """Its folders go, those of others stay; with the last instance everything is gone."""
    other = make(Instance("web", "", 8))
    make(web).map_pins.mkdir(parents=True)
    web.remove()
    assert {path.name for path in (tmp_path / "run").rglob("*")} == {"web", "8", "state.db", "state.db.copy"}
    other.remove()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "bpf/pydatapath").exists()
    other.remove()


def test_find_takes_the_one_of_this_namespace() -> None:
    """Without --netns the current namespace's instance is meant, whatever others there are."""
    mine = make_here("web")
    make(Instance("web", "", 1), "elsewhere")
    assert find("web", "") == mine


def test_only_instances_whose_namespace_is_there_are_loaded() -> None:
    """Records of a namespace that is no more, or whose name now means another, are left over, not loaded."""
    mine = make_here("web")
    make(Instance("web", "", netns.cookie() + 1))
    make(Instance("api", "", 1 << 60), "no-such-netns")
    assert loaded("web") == loaded() == [mine]
    assert loaded("api") == []


def test_what_is_not_loaded_is_said_with_the_way_out() -> None:
    """The name, and the command that loads."""
    with pytest.raises(NotLoaded) as caught:
        find("web", "")
    assert (str(caught.value), caught.value.hint) == ("instance 'web' is not loaded", "`pydatapath load` loads it")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter a namespace")
def test_a_namespace_is_searched_where_one_is_given() -> None:
    """It is found by the namespace that it is in, however that is called, and is said to be in none other."""
    here = f"/proc/{os.getpid()}/ns/net"
    with pytest.raises(NotLoaded, match=f"^instance 'web' is not loaded in namespace {here}$"):
        find("web", here)
    mine = make_here("web")
    assert find("web", here) == Instance("web", here, mine.cookie)


def test_F25_records_that_are_roots_are_said_to_be() -> None:
    """Without root the records of a loaded instance cannot be looked at: that is no traceback."""
    directory = make_here("web").directory
    root = os.geteuid() == 0
    directory.chmod(0)
    if root:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(DatapathError, match=r"^instance 'web' cannot be read: Permission denied$") as caught:
            find("web", "")
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o700)
    assert caught.value.hint == "run it with sudo"


def test_damaged_records_do_not_hide_other_instances() -> None:
    """`unload --all` takes them along: what it must take away is found by name where records say nothing."""
    mine = make_here("web")
    make_here("api").records.write_bytes(b"garbage" * 1000)
    assert [one.name for one in loaded()] == ["api", mine.name]


def test_an_instance_is_only_found_in_its_own_namespace() -> None:
    """One whose namespace is another's, or gone, is never meant by a command without --netns."""
    make(Instance("web", "", 2**60))
    with pytest.raises(NotLoaded, match=r"^instance 'web' is not loaded$"):
        find("web", "")
    assert loaded() == []
    assert [one.cookie for one in left_behind()] == [2**60]


def test_the_second_waits_for_the_first(web: Instance) -> None:
    """Commands on one instance run one after the other."""
    order: list[str] = []
    first_is_in, second_is_there = threading.Event(), threading.Event()

    def second() -> None:
        first_is_in.wait(10)
        second_is_there.set()
        with web.locked(make=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with web.locked(make=True):
        first_is_in.set()
        second_is_there.wait(10)
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_other_instances_do_not_wait(web: Instance) -> None:
    """The lock is the instance's own."""
    others = Instance("web", "", 8), Instance("api", "", 7)
    with web.locked(make=True), others[0].locked(make=True), others[1].locked(make=True):
        pass


@pytest.mark.parametrize("left", ["nothing", "the folder", "a lock"])
def test_what_is_not_loaded_is_not_locked(web: Instance, tmp_path: Path, left: str) -> None:
    """After an unload, or while one takes all away: nothing of it comes back."""
    if left != "nothing":
        web.directory.mkdir(parents=True)
    if left == "a lock":
        (web.directory / "lock").touch()
    with pytest.raises(NotLoaded, match="instance 'web' is not loaded"), web.locked():
        pass
    assert [*tmp_path.iterdir()] == []


def test_the_copy_of_records_that_are_lost_is_kept(web: Instance) -> None:
    """It may be all that there is."""
    web.directory.mkdir(parents=True)
    copy_of(web.records).touch()
    with web.locked():
        pass
    assert copy_of(web.records).exists()


def test_who_holds_the_lock_is_named(
    web: Instance, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the wait the error says which process it is; once that ends, the lock is free."""
    monkeypatch.setattr(instance, "LOCK_SECONDS", 0.1)
    with pytest.raises(Conflict) as caught, web.locked(make=True):
        pass
    said = f"instance 'web' has been busy for 0 s: process {holder.pid} holds its lock"
    assert (str(caught.value), caught.value.hint) == (said, "wait for that command, or end it")
    holder.kill()
    holder.wait(10)
    with web.locked(make=True):
        assert (web.directory / "lock").read_text().rstrip() == str(os.getpid())


def test_a_lock_that_went_with_an_unload_is_made_anew(web: Instance, tmp_path: Path) -> None:
    """Who waited for an unload holds a lock that others see, not the one of the folder that is gone."""
    held = threading.Event()

    def next_command() -> None:
        with web.locked(make=True):
            held.set()
            still_there.append((web.directory / "lock").exists())

    still_there: list[bool] = []
    thread = threading.Thread(target=next_command)
    with web.locked(make=True):
        thread.start()
        thread.join(0.1)
        web.remove()
    thread.join(10)
    assert held.is_set()
    assert still_there == [True]


def test_what_a_block_raises_comes_out_of_it(web: Instance) -> None:
    """An absent file in a locked block is the block's own error, and the lock is free after it."""
    for error in (FileNotFoundError(2, "No such file or directory", "x"), KeyboardInterrupt(), ValueError("x")):
        with pytest.raises(type(error)) as caught, web.locked(make=True):
            raise error
        assert caught.value is error
    with web.locked(make=True):
        pass
