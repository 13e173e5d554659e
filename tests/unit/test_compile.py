"""The constants that the C code is given, and the one sentence for what a compiler or the verifier says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest

from pydatapath.errors import CompileError, LayoutError, Unsupported, VerifierError
from pydatapath.kernel import cache, layout, source
from pydatapath.kernel.capabilities import what_is_missing
from pydatapath.kernel.compile import (
    HALVES,
    Egress,
    Masquerade,
    Program,
    Scope,
    Sizes,
    _compare,
    _explain,
    _part,
    definitions,
)
from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family, Hook

PROGRAM = Program(
    Path("/sys/fs/bpf/maps"),
    Path("/sys/fs/bpf/programs"),
    ipv4=Scope(
        node_address=IPv4Address("10.244.1.1"),
        pod_networks=(IPv4Network("10.244.1.0/24"), IPv4Network("10.245.0.0/16")),
        service_networks=(IPv4Network("10.96.0.0/12"),),
        egress=(Egress(3, IPv4Address("192.168.50.11")),),
    ),
    ipv6=Scope(
        node_address=IPv6Address("fd00:10:244:1::1"),
        pod_networks=(IPv6Network("fd00:10:244:1::/64"),),
        service_networks=(IPv6Network("fd00:10:96::/112"), IPv6Network("fd00:20::/45")),
        cluster_networks=(IPv6Network("fd00:10:244::/48"),),
        egress=(Egress(3, IPv6Address("2001:db8::11")),),
    ),
    masquerade=Masquerade(),
)
families = pytest.mark.parametrize("family", Family, ids=lambda family: family.name)
# What C code gets from <linux/...> and from bcc
OTHERS = re.compile(r"BPF_(ADJ_ROOM|F|FIB_LKUP|TABLE)_\w+|ETH_\w+|ICMP(V6)?_\w+|IPPROTO_\w+|TC_ACT_\w+|NULL")

# Said by bcc 0.26 with LLVM 14 on Debian 12, and by Linux 6.18
UNDECLARED = """\
flow.h:3:9: error: use of undeclared identifier 'nothing'
        return nothing;
               ^
flow.h:9:2: error: expected ';' after expression
2 errors generated.
Failed to compile BPF module <text>
"""
WARNED = """\
In file included from <built-in>:2:
/virtual/include/bcc/bpf.h:12:9: warning: 'X' macro redefined [-Wmacro-redefined]
datapath.c:40:2: fatal error: 'lost.h' file not found
1 warning and 1 error generated.
Failed to compile BPF module <text>
"""
LAYOUT = """\
/virtual/contract.h:16:2: error: "contract.h has layout 2: LAYOUT_VERSION in pydatapath/kernel/layout.py says otherwise"
#error "contract.h has layout 2: LAYOUT_VERSION in pydatapath/kernel/layout.py says otherwise"
 ^
1 error generated.
Failed to compile BPF module <text>
"""
STACK = """\
error: datapath.c:8:7: in function walk i32 (%struct.__sk_buff*): Looks like the BPF stack limit of 512 bytes is \
exceeded. Please move large on stack variables into BPF per-cpu array map.


"""
SELECT = """\
LLVM ERROR: Cannot select: 0x55d0c8a3c9b0: ch = AtomicFence 0x55d0c8a3c8e0
In function: walk
PLEASE submit a bug report to https://github.com/llvm/llvm-project/issues/
"""
REFUSED = """\
bpf: Failed to load program: Permission denied
0: R1=ctx() R10=fp0
;  @ flow.h:4
0: (61) r1 = *(u32 *)(r1 +76)         ; R1=pkt(r=0)
;  @ flow.h:5
1: (71) r0 = *(u8 *)(r1 +14)
invalid access to packet, off=14 size=1, R1(id=0,off=14,r=0)
R1 offset is outside of the packet
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0

Failed to load BPF program b'walk': Permission denied
"""
REFUSED_6_1 = """\
bpf: Failed to load program: Invalid argument
; return f(skb);
5: (85) call bpf_redirect_peer#155
R2 !read_ok
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0

Failed to load BPF program b'from_pod': Invalid argument
"""
TOO_LARGE = """\
datapath.c:6:9: warning: implicit declaration of function 'missing' is invalid in C99
1 warning generated.
bpf: Argument list too long. Program  too large (2 insns), at most 4096 insns

Failed to load BPF program b'walk': Argument list too long
"""
NOT_PERMITTED = """\
bpf: Failed to load program: Operation not permitted

Failed to load BPF program b'walk': Operation not permitted
"""


def code() -> str:
    """All of our C, without comments and texts."""
    folder = source.directory()
    text = "\n".join(path.read_text() for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h"))
    return re.sub(r'/\*.*?\*/|"[^"\n]*"|#define BPF_LICENSE [^\n]*|#error[^\n]*', " ", text, flags=re.DOTALL)


def given(family: Family = Family.IPV4) -> dict[str, str]:
    return definitions(PROGRAM, family)


def given_in_parts() -> set[str]:
    """With those that tell the compilers apart, and what `recall` alone is given."""
    return names(given()) | {*HALVES, "WITH_RECALL", "MAX_FORMER_ENTRIES", "FORMER_DIRECTORY"}


def names(defined: Iterable[str]) -> set[str]:
    return {name.partition("(")[0] for name in defined}


def test_every_constant_that_the_c_code_uses_is_given() -> None:
    """No name in capitals comes from nowhere: it is ours in C, the kernel's or bcc's, or a -D of Python's."""
    text = code()
    own = set(re.findall(r"#\s*define\s+(\w+)", text))
    enums = re.findall(r"enum \w+ \{(.*?)\}", text, re.DOTALL)
    own |= {name for body in enums for name in re.findall(r"\b[A-Z]\w+", body)}
    used = set(re.findall(r"\b[A-Z][A-Z0-9_]*[A-Z0-9]\b", text))
    assert len(used) > 50
    assert {name for name in used - own - given_in_parts() if not OTHERS.fullmatch(name)} == set()
    assert not own & given_in_parts(), "a default in C would hide a -D that is misspelt"


def test_no_constant_is_given_that_nobody_uses() -> None:
    """Each -D is used in the C code, but for states: C may ask for one of them and mean the others by that. Both
    families' programs are given the same names.
    """
    assert given().keys() == given(Family.IPV6).keys()
    states = {f"BACKEND_{state.name}" for state in layout.BackendState}
    states |= {f"FLOW_{state.name}" for state in layout.FlowState}
    states |= {f"VIP_{kind.name}" for kind in layout.VipKind}
    assert names(given()) - set(re.findall(r"\w+", code())) <= states


def test_every_number_of_the_layout_is_given() -> None:
    """States, flags, kinds, counters and timeouts arrive in C under their names, with Python's values."""
    expected = {
        **{f"FLOW_{one.name}": one for one in (*layout.FlowState, *layout.FlowFlag)},
        **{f"BACKEND_{one.name}": one for one in layout.BackendState},
        **{f"VIP_{one.name}": one for one in layout.VipKind},
        **{f"SERVICE_{one.name}": one for one in layout.ServiceFlag},
        **{f"ENDPOINT_{one.name}": one for one in layout.EndpointKind},
        **{one.name: one for one in layout.Counter},
        **{f"TIMEOUT_{name}": seconds for name, seconds in layout.TIMEOUTS.items()},
        "TIMEOUT_SHORTEST": layout.TIMEOUTS["ICMP_NEW"],
        "LAYOUT_VERSION": layout.LAYOUT_VERSION,
        "COUNTERS": len(layout.Counter),
    }
    assert {name: given()[name] for name in expected} == {name: str(int(value)) for name, value in expected.items()}


def test_C14_the_times_that_are_said_are_compiled() -> None:
    """As constants, the shortest of them, too; so what is kept of an earlier compilation is another's."""
    said = replace(PROGRAM, timeouts={**layout.TIMEOUTS, "UDP_ESTABLISHED": 50})
    found = definitions(said, Family.IPV4)
    assert (found["TIMEOUT_UDP_ESTABLISHED"], found["TIMEOUT_SHORTEST"]) == ("50", "50")
    parts = [[_part(one, Family.IPV4, "WITH_WALK")] for one in (PROGRAM, said)]
    assert cache.key_of(parts[0]) != cache.key_of(parts[1])


def test_every_map_has_its_size() -> None:
    """The sizes that the maps' contracts name are those that are given; each direction of a flow is an entry."""
    sizes = Sizes(flows=1000, backends=50).definitions
    assert {contract.size for contract in layout.MAPS.values()} == sizes.keys()
    assert sizes.items() <= {name: int(v) for name, v in given().items() if v.isdecimal()}.items() | sizes.items()
    assert (sizes["MAX_FLOW_ENTRIES"], sizes["MAX_BACKENDS"], sizes["MAX_SLOTS"]) == (2000, 50, 200)


def test_addresses_are_given_as_they_stand_in_packets() -> None:
    """An address is the numbers that loads of four of its bytes each give, folders are texts."""
    assert packed(given()["NODE_ADDRESS"]) == IPv4Address("10.244.1.1").packed
    assert packed(given(Family.IPV6)["NODE_ADDRESS"]) == IPv6Address("fd00:10:244:1::1").packed
    for family in Family:
        assert packed(given(family)["SERVICE_GATEWAY"]) == SERVICE_GATEWAYS[family].packed
        assert given(family)["UPLINK_ADDRESS"] == given(family)["NODE_ADDRESS"], "where no uplink has an address"
    assert given()["MAP_DIRECTORY"] == '"/sys/fs/bpf/maps"'
    mac = b"".join(int(word).to_bytes(2, sys.byteorder) for word in given()["SERVICE_GATEWAY_MAC"].split(","))
    assert mac.hex(":") == "02:da:7a:00:00:01"


def packed(text: str) -> bytes:
    """The bytes of address_of(...)."""
    assert text.startswith("address_of(")
    return b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in re.findall(r"0x[0-9a-f]+", text))


@pytest.mark.parametrize(
    ("address", "pod", "service"),
    [
        ("fd00:10:244:1::", True, False),
        ("fd00:10:244:1:ffff:ffff:ffff:ffff", True, False),
        ("fd00:10:244:2::", False, False),
        ("fd00:10:96::ffff", False, True),
        ("fd00:10:96::1:0", False, False),
        ("fd00:20:7:ffff::", False, True),
        ("fd00:20:8::", False, False),
        ("10.244.1.0", True, False),
        ("10.244.1.255", True, False),
        ("10.245.77.1", True, False),
        ("10.244.2.1", False, False),
        ("10.96.0.1", False, True),
        ("10.111.255.255", False, True),
        ("10.112.0.0", False, False),
    ],
)
def test_networks_are_given_as_a_question(address: str, pod: bool, service: bool) -> None:
    """IN_POD_NETWORK and IN_SERVICE_NETWORK mean what the networks mean, here evaluated as Python."""
    for name, expected in (("IN_POD_NETWORK(a)", pod), ("IN_SERVICE_NETWORK(a)", service)):
        assert holds(given(Family.of(address))[name], address) is expected


def holds(question: str, address: str) -> bool:
    """What C makes of it."""
    raw = ip_address(address).packed
    words = [int.from_bytes(raw[place : place + 4], sys.byteorder) for place in range(0, len(raw), 4)]
    python = question.replace("||", "or").replace("&&", "and").replace("(a).words", "words")
    return bool(eval(python, {"words": words}))  # noqa: S307 - our own text


def test_S28_the_cluster_is_the_nodes_own_pods_and_all_others() -> None:
    """Who calls from either is inside."""
    question = given(Family.IPV6)["IN_CLUSTER_NETWORK(a)"]
    for address, inside in (("fd00:10:244:1::5", True), ("fd00:10:244:9::5", True), ("fd00:10:245::5", False)):
        assert holds(question, address) is inside


@families
def test_a_network_of_everything_is_always_met(family: Family) -> None:
    """`0.0.0.0/0` and `::/0` leave nothing to compare."""
    everything = {Family.IPV4: IPv4Network("0.0.0.0/0"), Family.IPV6: IPv6Network("::/0")}[family]
    program = replace(PROGRAM, ipv4=Scope(pod_networks=(everything,)), ipv6=Scope(pod_networks=(everything,)))
    assert definitions(program, family)["IN_POD_NETWORK(a)"] == "((1))"


def test_only_the_families_that_are_used_are_compiled() -> None:
    """IPv4 always: its programs hang at the hooks. IPv6's are reached from them, by name and place."""
    alone = replace(PROGRAM, ipv6=None)
    assert list(alone.scopes) == [Family.IPV4]
    assert list(PROGRAM.scopes) == [Family.IPV4, Family.IPV6]
    assert definitions(alone, Family.IPV4)["IPV6_HOOKS"] == "0"
    for family in Family:
        assert int(given(family)["IPV6_HOOKS"]) == PROGRAM.places[f"{Hook(0).program}6"]
        for tail in layout.TAILS:
            assert int(given(family)[tail.upper()]) == PROGRAM.places[tail + family.suffix]
        assert int(given(family)["RECALL"]) == layout.tail_place(layout.RECALL, family)


@families
def test_every_program_is_compiled_once(family: Family) -> None:
    """The two halves share no program, and each has the maps of its family and those of both."""
    walk, others = (_part(PROGRAM, family, half) for half in HALVES)
    hooks = [hook.program for hook in PROGRAM.hooks]
    more = ["leave", "search", "settle", "nat", *hooks]
    assert (sorted(walk["programs"]), sorted(others["programs"])) == (["walk"], sorted(more))
    assert {pin for part in (walk, others) for pin in part["programs"].values()} == {
        f"{name}{family.suffix}" for name in ("walk", *more)
    }
    wanted = {name for name, contract in layout.MAPS.items() if contract.is_of([family])}
    assert set(walk["maps"]) == set(others["maps"]) == wanted


def test_no_network_is_never_met() -> None:
    """Where there is no pod network, no address is in it; a family without addresses has nothing."""
    program = Program(Path("/m"), Path("/p"), Scope())
    assert definitions(program, Family.IPV4)["IN_POD_NETWORK(a)"] == "(0)"
    assert packed(definitions(program, Family.IPV4)["NODE_ADDRESS"]) == bytes(4)


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        pytest.param(UNDECLARED, "flow.h:3: use of undeclared identifier 'nothing'", id="the first of two"),
        pytest.param(WARNED, "datapath.c:40: 'lost.h' file not found", id="a warning is no error"),
        pytest.param(LAYOUT, 'contract.h:16: "contract.h has layout 2: LAYOUT_VERSION in', id="#error"),
        pytest.param(STACK, "bpf/datapath.c: LLVM gave up: datapath.c:8:7: in function walk", id="LLVM, in code"),
        pytest.param(SELECT, "bpf/datapath.c: LLVM gave up: Cannot select: ", id="LLVM, in its back end"),
    ],
)
def test_what_the_compiler_says_is_one_sentence(log: str, sentence: str) -> None:
    """File and line first, where the compiler knows them; the log is kept whole."""
    error = _explain("compile", log, 0)
    assert type(error) is CompileError
    assert str(error).startswith(sentence)
    assert "\n" not in str(error)
    assert error.log == log


@pytest.mark.parametrize(
    ("error", "log", "sentence", "hint"),
    [
        pytest.param(
            "load walk",
            REFUSED,
            "flow.h:5: the kernel refuses the program 'walk': R1 offset is outside of the packet",
            "-v shows the verifier's whole log",
            id="with lines",
        ),
        pytest.param(
            "load from_pod",
            REFUSED_6_1,
            "the kernel refuses the program 'from_pod': R2 !read_ok",
            "-v shows the verifier's whole log",
            id="before Linux 6.8 the log has no lines",
        ),
        pytest.param(
            "load walk",
            TOO_LARGE,
            "the kernel refuses the program 'walk': "
            "bpf: Argument list too long. Program  too large (2 insns), at most 4096 insns",
            "-v shows the verifier's whole log",
            id="too large",
        ),
        pytest.param(
            "load walk",
            NOT_PERMITTED,
            "the kernel refuses the program 'walk': bpf: Failed to load program: Operation not permitted",
            what_is_missing() or "-v shows the verifier's whole log",
            id="no right to it",
        ),
        pytest.param(
            "load walk",
            "",
            "the kernel refuses the program 'walk': no reason given",
            "-v shows the verifier's whole log",
            id="silence",
        ),
    ],
)
def test_what_the_verifier_says_is_one_sentence(error: str, log: str, sentence: str, hint: str) -> None:
    """The last line that tells a reason, not the summary after it; and what to do."""
    found = _explain(error, log, 0)
    assert type(found) is VerifierError
    assert (str(found), found.hint, found.log) == (sentence, hint, log)


def test_a_compiler_that_ends_without_a_word_is_one_sentence() -> None:
    """LLVM may take the whole process along: the exit code is all there is to say."""
    assert str(_explain("", "", -11)) == "bpf/datapath.c does not compile (the compiler ended with -11): no word"


@pytest.mark.parametrize(
    ("log", "code", "sentence"),
    [
        ("9 warnings generated.", -9, "the compiler was killed, as the kernel does where memory is short"),
        ("terminate called after throwing\n  what():  std::bad_alloc", -6, "the compiler has no memory left"),
        ("LLVM ERROR: out of memory", -6, "the compiler has no memory left"),
        ("OSError: libLLVM-14.so.1: failed to map segment from shared object", 1, "the compiler has no memory left"),
    ],
)
def test_F31_a_compiler_without_memory_is_one_sentence(log: str, code: int, sentence: str) -> None:
    """However it ends: Linux kills it, C++ and LLVM abort, and where it does not even start the loader says so."""
    error = _explain("", log, code)
    assert (type(error), str(error)) == (CompileError, sentence)


def test_a_missing_bcc_is_one_sentence_with_the_command() -> None:
    """And a warning against the package of that name on PyPI."""
    error = _explain("missing", "", 0)
    assert type(error) is Unsupported
    assert (str(error), error.hint[:27]) == ("the Python module bcc is not installed", "apt install python3-bpfcc (")


def test_structs_that_differ_are_named() -> None:
    """What the compiler made of contract.h must be what Python packs, field by field."""
    record = layout.MAPS["services"].key
    assert isinstance(record, layout.Record)
    good = [list(field) for field in record.shape]
    _compare("services", "key", record, good)
    with pytest.raises(LayoutError, match=r"^struct transport_address \(the key of the map 'services'\) is \[\['port'"):
        _compare("services", "key", record, good[1:])
