"""What is between C and Python: the structs, one clear error for what the compiler or the verifier says, the budget."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from frames import addresses, tcp
from packetbed import SIZES, Bed
from places import BACKEND, CLIENT, DEVICES, NODE, POD_NETWORKS, SERVICE_NETWORKS, VIP
from programs import masquerading_bed

from pydatapath import carrying
from pydatapath.errors import CompileError, LayoutError, VerifierError
from pydatapath.kernel import bpffs, cache, compile, layout, libbpf, source
from pydatapath.kernel.layout import ANSWERED, Hook
from pydatapath.kernel.maps import Maps, possible_cpus

PINS = bpffs.BPFFS / "pydatapath" / f"contract{os.getpid()}"

# Instructions that the verifier looks at for a program, a quarter more than Linux 6.1 takes (for some, more than
# 6.18). A program that needs more has grown: that is asked for here first. Every kernel since 5.2 takes a million.
BUDGET = {
    "walk": 215_000,
    "walk6": 470_000,
    "leave": 160_000,
    "leave6": 300_000,
    "settle": 4_000,
    "settle6": 9_000,
    "search": 10_000,
    "search6": 10_000,
    "from_pod": 18_000,
    "from_uplink": 14_000,
    "to_bridge": 16_000,
    "to_uplink": 16_000,
    "to_loopback": 22_000,
    "from_pod6": 18_000,
    "from_uplink6": 18_000,
    "to_bridge6": 18_000,
    "to_uplink6": 20_000,
    "to_loopback6": 18_000,
}
# Where pods are masqueraded: a program of more than a million is refused, and how options add up is not foreseen
MASQUERADING = {"walk": 330_000, "walk6": 860_000, "nat": 290_000, "nat6": 430_000}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[compile.Program]:
    """What may be compiled into a place of its own, with nothing kept of what was compiled before."""
    monkeypatch.setattr(cache, "DIRECTORY", tmp_path / "cache")
    scope = compile.Scope(IPv4Address(NODE), POD_NETWORKS, SERVICE_NETWORKS)
    made = compile.Program(PINS, PINS / "programs", scope, sizes=SIZES)
    made.program_directory.mkdir(parents=True)
    yield made
    bpffs.remove_tree(PINS)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of bpf/ that may be broken."""
    copy = Path(shutil.copytree(source.directory(), tmp_path / "bpf"))
    monkeypatch.setattr(source, "directory", lambda: copy)
    return copy


def refused(program: compile.Program) -> CompileError:
    """The error that compiling ends with; nothing is pinned then that a later load would trust."""
    with compile.Compiler() as compiler, pytest.raises(CompileError) as caught:
        compile.compile_programs(compiler, program)
    assert {path.name for path in program.program_directory.iterdir()} <= {"walks"}
    return caught.value


# The structs


class Told:
    """A compiler that has been asked before: gives the one answer of this session."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    def ask(self, _request: object) -> dict[str, Any]:
        """The answer."""
        return self._answer


def test_Python_packs_what_the_compiler_lays_out(compiler_answer: dict[str, Any], program: compile.Program):
    """Every struct of every map, field by field: the session's own load would have failed, and so would this."""
    compile.compile_programs(Told(compiler_answer), program)
    named = {side for shapes in compiler_answer["records"].values() for side in shapes if shapes[side]}
    assert named == {"key", "value"}


def changed(name: str, field: str, to: tuple[tuple[str, str], ...]) -> dict[str, layout.MapContract]:
    """Python's maps with one field of one map's value replaced."""
    record = layout.MAPS[name].value
    assert isinstance(record, layout.Record)
    fields = tuple(part for one in record.fields for part in (to if one[0] == field else (one,)))
    return {**layout.MAPS, name: replace(layout.MAPS[name], value=replace(record, fields=fields))}


@pytest.mark.parametrize(
    ("name", "field", "to"),
    [
        ("flows", "packets", (("packets", "I"),)),
        ("flows", "zero", (("mark", "I"), ("zero", "2x"))),
        ("flows", "state", (("flags", "B"),)),
        ("backends", "generation", (("generation", "H"), ("weight", "H"))),
        ("services", "shared", ()),
        ("endpoints", "kind", (("type", "B"),)),
    ],
    ids=["narrower", "one more in the padding", "in another order", "split", "missing", "renamed"],
)
def test_another_layout_is_refused(
    compiler_answer: dict[str, Any],
    program: compile.Program,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    field: str,
    to: tuple[tuple[str, str], ...],
):
    """Where Python's struct is not the compiler's, nothing is ever read through it."""
    monkeypatch.setattr(layout, "MAPS", changed(name, field, to))
    with pytest.raises(LayoutError, match=rf"struct \w+ \(the value of the map '{name}'\) is .* to the compiler"):
        compile.compile_programs(Told(compiler_answer), program)


def test_a_pinned_map_of_another_shape_is_refused(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    """A map that lies at our pin and is not ours is named with what it is, and not used."""
    monkeypatch.setitem(layout.MAPS, "flows", replace(layout.MAPS["flows"], value=layout.BACKEND_RECORD))
    with Maps(bed.maps.directory) as maps, pytest.raises(LayoutError, match=r"flows is not our map: .*value 64 bytes"):
        maps["flows"]


def test_other_sizes_are_seen(bed: Bed):
    """Maps are kept at an upgrade but for those of another size; those that refer to each other are new together."""
    plan = {"backends", "services", "services6", "slots", "targets", "targets6"}
    with Maps(bed.maps.directory) as maps:
        for sizes, changed in (
            (SIZES, set()),
            (replace(SIZES, flows=8192), {"flows", "flows6"}),
            (replace(SIZES, backends=128), plan),
        ):
            assert set(carrying.changed(maps, sizes.definitions)) == changed


def test_a_per_CPU_map_is_read_with_what_every_CPU_has(bed: Bed):
    """The kernel writes all CPUs' values, whatever room there is for them."""
    assert [len(value) for _, value in bed.maps["answers"].items()] == [ANSWERED.size * possible_cpus()]
    assert len(bed.maps["answers"].lookup(bytes(4)) or b"") == ANSWERED.size * possible_cpus()


# What the compiler and the verifier say


compilers_own = pytest.mark.skipif(
    "PYDATAPATH_EMULATED" in os.environ,
    reason="the compiler says the same on every kernel, and takes a minute or two for it in an emulator",
)


@compilers_own
def test_a_compile_error_names_our_file_and_line(program: compile.Program, sources: Path):
    """One sentence with the header's own name and line, not those of the pasted text; the log is kept whole."""
    header = sources / "flow.h"
    lines = header.read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if "bpf_jiffies64" in line)
    lines[number] = "\treturn no_such_thing;"
    header.write_text("\n".join(lines))
    error = refused(program)
    assert str(error) == f"flow.h:{number + 1}: use of undeclared identifier 'no_such_thing'"
    assert "no_such_thing" in error.log
    assert "\n" not in str(error)


@compilers_own
def test_another_layout_version_does_not_compile(program: compile.Program, monkeypatch: pytest.MonkeyPatch):
    """Whoever changes a struct raises the number on both sides."""
    monkeypatch.setattr(layout, "LAYOUT_VERSION", layout.LAYOUT_VERSION + 1)
    assert re.match(r"contract\.h:\d+: .*layout", str(refused(program)))


TOO_BIG = """#include <linux/bpf.h>
int walk(struct __sk_buff *skb)
{
	char big[600];
	bpf_skb_load_bytes(skb, 0, big, sizeof(big));
	return big[skb->len & 511];
}
"""
OUT_OF_BOUNDS = """#include <linux/bpf.h>
int walk(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data;

	return data[40];
}
"""


@compilers_own
def test_LLVMs_own_end_is_one_error(program: compile.Program, sources: Path):
    """A stack over 512 bytes ends the compiler's process (bcc 0.26), not ours."""
    (sources / "datapath.c").write_text(TOO_BIG)
    error = refused(program)
    assert not isinstance(error, VerifierError)
    assert re.search(r"datapath\.c.*stack", str(error))
    assert "\n" not in str(error)


def test_a_verifier_error_is_one_error(program: compile.Program, sources: Path):
    """Our line, the program and the verifier's last telling words; the log is kept whole."""
    (sources / "datapath.c").write_text(OUT_OF_BOUNDS)
    error = refused(program)
    assert isinstance(error, VerifierError)
    place = "datapath.c:6: " if " @ datapath.c" in error.log else ""  # which older kernels do not say, such as 6.1
    assert str(error) == f"{place}the kernel refuses the program 'walk': R1 offset is outside of the packet"
    assert "invalid access to packet" in error.log
    assert len(error.log.splitlines()) > 3


@compilers_own
def test_a_verifier_error_names_the_line_in_a_long_file(program: compile.Program, sources: Path):
    """bcc puts a line of its own before each function, which must not be counted."""
    text = (sources / "datapath.c").read_text()
    before, found, after = text.partition("\treturn walk_fast(skb, TO_BRIDGE);")
    assert found
    (sources / "datapath.c").write_text(f"{before}\treturn *(u8 *)(long)skb->data;{after}")
    line = before.count("\n") + 1
    assert str(refused(program)).startswith(f"datapath.c:{line}: the kernel refuses the program 'to_bridge': ")


# Programs that were kept


def test_kept_programs_do_the_same(
    bed: Bed, compiler_answer: dict[str, Any], program: compile.Program, monkeypatch: pytest.MonkeyPatch
):
    """A load from the cache asks no compiler, and its programs find their own maps."""
    program = replace(program, ipv6=compile.Scope())
    compile.compile_programs(Told(compiler_answer), program)  # as the first load: it keeps what it was told
    bpffs.remove_tree(PINS)
    program.program_directory.mkdir(parents=True)
    with compile.Compiler() as compiler:
        monkeypatch.setattr(compiler, "ask", lambda _: pytest.fail("the compiler was asked"))
        compile.compile_programs(compiler, program)
    kept = Bed(PINS, bed.devices)
    try:
        kept.reset()
        kept.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080"]})
        packet = tcp(CLIENT, 40000, VIP, 80)
        there = kept.run(Hook.FROM_POD, packet)
        assert addresses(there) == (CLIENT, 40000, BACKEND, 8080)
        assert addresses(kept.answer(there)) == (VIP, 80, CLIENT, 40000)
        kept.confirm(packet)
        assert len(kept.entries()) == 2
        assert bed.entries() == {}
        assert set(kept.devices) >= set(DEVICES.values())
    finally:
        kept.close()


# Budgets that are counts


class ProgramInfo(libbpf._ProgramInfo):
    """struct bpf_prog_info up to `verified_insns`, which it has since Linux 5.16."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns", ctypes.c_uint64 * 2),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited", ctypes.c_uint64 * 2),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64 * 2),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
    )


@pytest.mark.parametrize("name", BUDGET)
def test_the_verifier_has_not_more_to_look_at(loaded: Bed, name: str):
    """The count grows when the program does: raise the budget knowingly, or find out what it was."""
    assert 0 < verified(loaded, name) <= BUDGET[name]


@pytest.mark.parametrize("name", MASQUERADING)
@pytest.mark.parametrize("build", ["masquerading", "timed", "limited", "heaviest"])
def test_nor_where_pods_are_masqueraded(request: pytest.FixtureRequest, build: str, name: str):
    """With other timeouts and the pods' fast path, with a pod's limit, and with all that adds the most."""
    assert 0 < verified(request.getfixturevalue(f"loaded_{build}"), name) <= MASQUERADING[name]


@pytest.fixture(scope="module")
def loaded_heaviest(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """Of all builds the one that the verifier has the most to look at."""
    with masquerading_bed(namespace, keep, "heavy", compile.Masquerade(pod_flows=(9, 9)), pod_fast_path=True) as made:
        yield made


def verified(bed: Bed, name: str) -> int:
    """Instructions that the verifier has looked at for a program."""
    info = ProgramInfo()
    with libbpf.opened(libbpf.open_pin(str(bed.pins / "programs" / name))) as descriptor:
        libbpf._info(descriptor, info)
    return int(info.verified_insns)
