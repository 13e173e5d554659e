"""From C to pinned programs: definitions in, programs and maps in bpffs out.

bcc runs in a child process (pydatapath.kernel.bcc_child): an error in LLVM's back end ends the whole process (bcc
0.26), and what the compiler and the verifier say goes to file descriptor 2. Both become one error here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from pydatapath.errors import CompileError, LayoutError, Unsupported, VerifierError
from pydatapath.kernel import cache, capabilities, clock, layout, source
from pydatapath.kernel.gateway import SERVICE_GATEWAY_MAC, SERVICE_GATEWAYS
from pydatapath.kernel.layout import Family

__all__ = [
    "Compiler",
    "Program",
    "Scope",
    "Sizes",
    "compile_programs",
    "definitions",
    "key_of",
    "recall_part",
]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
# The halves of datapath.c by their -D: `walk`, and all others, which take about as long
HALVES: Final = ("WITH_WALK", "WITH_OTHERS")
WITH_RECALL: Final = "WITH_RECALL"
ANSWERS_PER_SECOND: Final = 10_000  # RSTs, ICMP errors and echo replies that a CPU makes
NAT_TRIES: Final = 6  # ports that a run of `nat` tries
NAT_CHOOSY_ROUNDS: Final = 6  # runs that pass over what was another pod's lately: with half of the ports free one does
NAT_ROUNDS: Final = 21  # runs after the first: N22, with nine ports of ten taken one new flow of 25,000 finds none
NAT_POD_PARTS: Final = 1024  # of a jiffy
NAT_PORTS: Final = (1024, 65_535)
NODE_PORTS: Final = (30_000, 32_767)  # the API server's --service-node-port-range
NEVER_TRANSLATED: Final[Mapping[Family, tuple[Network, ...]]] = {
    Family.IPV4: tuple(
        IPv4Network(text)
        for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")
    ),
    Family.IPV6: tuple(IPv6Network(text) for text in ("::/127", "fe80::/10", "ff00::/8")),
}
COMPILE_SECONDS: Final = 600  # one takes 0.6; in an emulator that has more to do, some hundred times that

_COMPILER_ERROR = re.compile(r"^(?:/virtual/)?([\w./-]+:\d+):\d+: (?:fatal )?error: (.*)$", re.MULTILINE)
_BACKEND_ERROR = re.compile(r"^(?:fatal error|error|LLVM ERROR): (.*)$", re.MULTILINE)
_SOURCE_LINE = re.compile(r"^; .*@ ([\w.-]+):(\d+)$", re.MULTILINE)
# As Python, libstdc++, LLVM, and the dynamic loader say it
_NO_MEMORY = re.compile(r"MemoryError|std::bad_alloc|LLVM ERROR: out of memory|failed to map segment", re.IGNORECASE)
# The summary behind the reason, and bcc's last word, which has less to say than the lines before it
_VERIFIER_NOISE = re.compile(
    r"^(processed \d+ insns|max_states|verification time|stack depth|\s*$|from \d+ to \d+|Failed to load BPF program)"
)


@dataclass(frozen=True)
class Sizes:
    """Entries of the maps. A flow takes two, one for each direction."""

    flows: int = 131_072
    half_open: int = 32_768
    services: int = 65_536
    backends: int = 65_536
    endpoints: int = 16_384
    fragments: int = 32_768  # datagrams of which fragments may be on their way
    ranges: int = 16_384  # of loadBalancerSourceRanges, all services together
    networks: int = 65_536  # of Node objects: twice what 5,000 of them, Kubernetes' most, have of a family
    affinities: int = 65_536  # clients of services with session affinity; C11
    mappings: int = 65_536  # of pods' UDP ports to the node's: there are no more ports than that

    @classmethod
    def asked(cls, flows: int, backends: int, services: int) -> Sizes:
        """As `load` is asked for them; `services`: addresses and ports of them, a quarter of that for source ranges."""
        return cls(flows=flows, backends=backends, services=services, ranges=max(16, services // 4))

    def memory(self, families: Iterable[Family], made: Collection[str] | None = None) -> int:
        """About how many bytes the maps take that grow with what was asked for, or those of these names; `load --help`
        has the same figures.
        """
        of_flows = {"flows": 288 * self.flows, "flows6": 416 * self.flows}
        parts = {name: of_flows[name] for name in (f"flows{family.suffix}" for family in families)}
        parts |= {"backends": 240 * self.backends, "services": 392 * self.services}
        return sum(size for name, size in parts.items() if made is None or name in made)

    @property
    def definitions(self) -> dict[str, int]:
        """The -D names, as the contracts of the maps know them."""
        return {
            "MAX_FLOW_ENTRIES": 2 * self.flows,
            "MAX_HALF_OPEN_ENTRIES": 2 * self.half_open,
            "MAX_SERVICES": self.services,
            "MAX_BACKENDS": self.backends,
            # A backend is in a Cluster and a Local set, and a fresh run finds room beside the old one
            "MAX_SLOTS": 4 * self.backends,
            "MAX_ENDPOINTS": self.endpoints,
            "MAX_RANGES": self.ranges,
            "MAX_NETWORKS": self.networks,
            "MAX_FRAGMENTS": self.fragments,
            "MAX_AFFINITIES": self.affinities,
            "MAX_MAPPING_ENTRIES": 2 * self.mappings,
            "MAX_OPENINGS": 16_384,  # a power of two: most connections that open at once have a place of their own
            "MAX_NEARBY": 256,  # a power of two; a node has some 110 pods (Kubernetes' --max-pods)
            "CHANGES": len(layout.Change),
            "MAX_ROUTES": 64,  # a power of two
            "COUNTERS": len(layout.Counter),
            "ONE": 1,
        }


@dataclass(frozen=True)
class Egress:
    """The address behind which pods leave by an uplink (its interface's index); `network`: those pods only."""

    uplink: int
    address: Address
    network: Network | None = None


@dataclass(frozen=True)
class Scope:
    """What one family's programs know of this node; nothing, where it has no address of the family."""

    node_address: Address | None = None  # what a pod sees that calls itself through a service
    pod_networks: tuple[Network, ...] = ()
    service_networks: tuple[Network, ...] = ()
    # What a backend elsewhere sees of a client from elsewhere
    uplink_address: Address | None = None
    cluster_networks: tuple[Network, ...] = ()  # where the other nodes' pods are
    exclusive_networks: tuple[Network, ...] = ()  # pod networks that are this node's alone
    unmasqueraded_networks: tuple[Network, ...] = ()  # where pods are seen as who they are, beside the cluster's own
    egress: tuple[Egress, ...] = ()  # the first that fits counts


@dataclass(frozen=True)
class Masquerade:
    """How what leaves the cluster is hidden behind the node's address."""

    type: layout.NatType = layout.NatType.ENDPOINT_INDEPENDENT
    ports: tuple[int, int] = NAT_PORTS
    node_ports: tuple[int, int] = NODE_PORTS  # which are never taken (N19)
    pod_flows: tuple[int, int] | None = None  # what one pod may begin at once, and again in so many seconds (N24)


@dataclass(frozen=True)
class Program:
    """What is compiled: where to pin, the hooks that are used, the constants of this node."""

    map_directory: Path
    program_directory: Path
    ipv4: Scope
    ipv6: Scope | None = None  # None: IPv6 is left to the stack
    hooks: tuple[layout.Hook, ...] = tuple(layout.Hook)
    sizes: Sizes = field(default_factory=Sizes)
    # Where answers from balancers' and external addresses, for the node itself, come in
    uplink_index: int = 0
    uplink_mac: str = "00:00:00:00:00:00"
    masquerade: Masquerade | None = None  # None: what leaves the cluster does so as it is
    timeouts: Mapping[str, int] = field(default_factory=lambda: layout.TIMEOUTS)
    pod_fast_path: bool = False  # what pods of this node send to each other goes past the bridge

    def masquerades(self, family: Family) -> bool:
        """Whether pods leave the cluster behind the node's address, in this family."""
        return self.masquerade is not None and bool(self.scopes[family].egress)

    @property
    def maps(self) -> dict[str, layout.MapContract]:
        """The maps that there are."""
        return {
            name: contract
            for name, contract in layout.MAPS.items()
            if contract.is_of(self.scopes)
            and (contract.in_c != "mappings" or (contract.family and self.masquerades(contract.family)))
        }

    @property
    def scopes(self) -> dict[Family, Scope]:
        """The families that are compiled. IPv4 always is: its programs are at the hooks."""
        return {Family.IPV4: self.ipv4, **({Family.IPV6: self.ipv6} if self.ipv6 else {})}

    @property
    def places(self) -> dict[str, int]:
        """The programs that go into the program array, by name."""
        without = [f"nat{family.suffix}" for family in self.scopes if not self.masquerades(family)]
        places = layout.program_places(self.scopes, self.hooks)
        return {name: place for name, place in places.items() if name not in without}


def definitions(program: Program, family: Family) -> dict[str, str]:
    """Every -D of a program: the one place where the C code's constants come from."""
    numbers = {name: str(number) for name, number in _numbers(program, family).items()}
    return {**numbers, **_addresses(program, family)}


def _numbers(program: Program, family: Family) -> dict[str, int]:
    """Places, sizes, times, and the enumerations that C and Python share."""
    how = program.masquerade or Masquerade()
    return {
        "LAYOUT_VERSION": layout.LAYOUT_VERSION,
        "FAMILY": family,
        "PROGRAMS": layout.PROGRAM_ARRAY_SIZE,
        **{tail.upper(): layout.tail_place(tail, family) for tail in (*layout.TAILS, layout.RECALL)},
        "IPV6_HOOKS": layout.IPV6_HOOKS if program.ipv6 else 0,
        "HZ": clock.HZ,
        # N22: ports that are tried for a flow, in a run of a program and in how many runs: 100 in all
        "CLAIM_TRIES": 4,
        "CLAIM_ROUNDS": 25,
        "ANSWERS_PER_SECOND": ANSWERS_PER_SECOND,
        # Slots that are searched for a backend that a client keeps, where it is not where it was
        "AFFINITY_SEARCH": 32,
        # Ports to try where the sender's own is taken: 32768 and up, above every well-known service
        "CLAIM_FIRST_PORT": 32_768,
        "CLAIM_PORT_MASK": 0x7FFF,
        **program.sizes.definitions,
        **{f"FLOW_{state.name}": int(state) for state in layout.FlowState},
        **{f"FLOW_{flag.name}": int(flag) for flag in layout.FlowFlag},
        **{f"SERVICE_{flag.name}": int(flag) for flag in layout.ServiceFlag},
        "MEMBER_PODS": layout.MemberKind.PODS,
        **{f"VIP_{kind.name}": int(kind) for kind in layout.VipKind},
        **{f"BACKEND_{state.name}": int(state) for state in layout.BackendState},
        **{f"CHANGES_{who.name}": int(who) for who in layout.Change},
        **{f"ENDPOINT_{kind.name}": int(kind) for kind in layout.EndpointKind},
        **{counter.name: int(counter) for counter in layout.Counter},
        **{f"TIMEOUT_{name}": seconds for name, seconds in program.timeouts.items()},
        "TIMEOUT_FRAGMENTS": layout.FRAGMENTS_TIMEOUT,
        **{f"MAPPING_{side.name}": int(side) for side in layout.MappingSide},
        "MASQUERADE": int(program.masquerades(family)),
        "POD_FAST_PATH": int(program.pod_fast_path),
        **_masquerade_numbers(how),
        "TIMEOUT_SHORTEST": min(time for name, time in program.timeouts.items() if name != "QUARANTINE"),
    }


def _addresses(program: Program, family: Family) -> dict[str, str]:
    """Whose addresses are whose on this node, as C has them, and where pins are."""
    scope, how = program.scopes[family], program.masquerade or Masquerade()
    return {
        "NAT_POD_SPAN": f"{(how.pod_flows or (0, 0))[1] * clock.HZ * NAT_POD_PARTS}ull",
        "MAP_DIRECTORY": f'"{program.map_directory}"',
        "PROGRAM_DIRECTORY": f'"{program.program_directory}"',
        "NODE_ADDRESS": _address_of(scope.node_address, family),
        "UPLINK_ADDRESS": _address_of(scope.uplink_address or scope.node_address, family),
        "IN_CLUSTER_NETWORK(a)": _within(dict.fromkeys((*scope.pod_networks, *scope.cluster_networks))),
        "UPLINK_INDEX": str(program.uplink_index),
        "UPLINK_MAC": _mac_words(program.uplink_mac),
        "SERVICE_GATEWAY": _address_of(SERVICE_GATEWAYS[family], family),
        "SERVICE_GATEWAY_MAC": _mac_words(SERVICE_GATEWAY_MAC),
        "IN_POD_NETWORK(a)": _within(scope.pod_networks),
        "IN_EXCLUSIVE_NETWORK(a)": _within(scope.exclusive_networks),
        "COMES_FROM_HERE(a)": _within((*scope.exclusive_networks, *scope.service_networks)),
        "IN_SERVICE_NETWORK(a)": _within(scope.service_networks),
        "IN_UNMASQUERADED_NETWORK(a)": _within(_never_masqueraded(scope, family)),
        "EGRESS_NUMBER(a)": _egress_numbers(scope.egress),
        "IS_EGRESS_ADDRESS(source,a)": _is_egress(scope.egress),
        "EGRESS_ADDRESSES(source,uplink,outside)": " ".join(_egress(one, family) for one in scope.egress),
    }


def _masquerade_numbers(how: Masquerade) -> dict[str, int]:
    return {
        "NAT_POD_FLOWS": how.pod_flows[0] if how.pod_flows else 0,
        "NAT_POD_PARTS": NAT_POD_PARTS,
        "NAT_TYPE": how.type,
        "NAT_TRIES": NAT_TRIES,
        "NAT_ROUNDS": NAT_ROUNDS,
        "NAT_CHOOSY_ROUNDS": NAT_CHOOSY_ROUNDS,
        "NAT_PORT_FIRST": how.ports[0],
        "NAT_PORT_LAST": how.ports[1],
        "NAT_PORT_CLASSES": int(how.ports == NAT_PORTS),
        "NODE_PORT_FIRST": how.node_ports[0],
        "NODE_PORT_LAST": how.node_ports[1],
    }


def _never_masqueraded(scope: Scope, family: Family) -> list[Network]:
    """N85: the cluster's own, and what is of one link or of many receivers."""
    cluster = (*scope.pod_networks, *scope.cluster_networks, *scope.service_networks)
    return list(dict.fromkeys((*cluster, *scope.unmasqueraded_networks, *NEVER_TRANSLATED[family])))


def _egress(one: Egress, family: Family) -> str:
    pods = f" && {_is_within(one.network).replace('(a)', '(source)')}" if one.network else ""
    return f"if ((uplink) == {one.uplink}{pods}) {{ *(outside) = {_address_of(one.address, family)}; return true; }}"


def _is_egress(egress: Iterable[Egress]) -> str:
    """Whether a source leaves behind the address `a`, by whichever uplink: of each the first that fits counts."""
    by_uplink: dict[int, str] = {}
    for one in egress:
        fits = _is_within(one.network).replace("(a)", "(source)") if one.network else "1"
        by_uplink[one.uplink] = f"{by_uplink.get(one.uplink, '')}{fits} ? {_is_within(ip_network(one.address))} : "
    return f"({' || '.join([f'({chain}0)' for chain in by_uplink.values()] or ['0'])})"


def _egress_numbers(egress: Iterable[Egress]) -> str:
    """The number of each address behind which pods leave, from 0; more than 254 of them share some."""
    addresses = list(dict.fromkeys(one.address for one in egress))[1:]
    numbers = (f"{_is_within(ip_network(one))} ? {1 + place % 253} : " for place, one in enumerate(addresses))
    return f"({''.join(numbers)}0)"


def _mac_words(text: str) -> str:
    """The initializer of three 16-bit words, as a load from a packet gives them."""
    mac = bytes.fromhex(text.replace(":", ""))
    return ",".join(str(int.from_bytes(mac[place : place + 2], sys.byteorder)) for place in (0, 2, 4))


def _words(packed: bytes) -> list[str]:
    """32-bit words as a load from a packet gives them."""
    return [hex(int.from_bytes(packed[place : place + 4], sys.byteorder)) for place in range(0, len(packed), 4)]


def _address_of(address: Address | None, family: Family) -> str:
    packed = address.packed if address else bytes(family.address_size)
    return f"address_of({', '.join(_words(packed))})"


def _within(networks: Iterable[Network]) -> str:
    return "(" + " || ".join([_is_within(network) for network in networks] or ["0"]) + ")"


def _is_within(network: Network) -> str:
    masks, wanted = _words(network.netmask.packed), _words(network.network_address.packed)
    parts = [
        f"((a).words[{place}] & {mask}) == {word}"
        for place, (mask, word) in enumerate(zip(masks, wanted, strict=True))
        if int(mask, 16)
    ]
    return "(" + " && ".join(parts or ["1"]) + ")"


class Compiler:
    """The child processes that run bcc: one for each half of each family's programs, side by side. For one answer.

    They are started early where no earlier load has left its programs: then they import bcc (100 ms) while the parent
    looks at the host.
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []
        if not cache.usable():
            self._start(len(HALVES))

    def _start(self, wanted: int) -> None:
        package_root = str(Path(__file__).resolve().parent.parent.parent)
        environment = {
            **os.environ,
            "BCC_KERNEL_SOURCE": str(source.shim()),
            "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
        }
        while len(self._children) < wanted:
            child = subprocess.Popen(
                # -P: a file named bcc.py in the working directory is not bcc
                [sys.executable, "-P", "-m", "pydatapath.kernel.bcc_child"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._children.append(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.communicate()

    def ask(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Hands each part of the programs to a child and waits for the answers, which it joins.

        Raises CompileError, VerifierError, Unsupported.
        """
        self._start(len(parts))
        with ThreadPoolExecutor(len(parts)) as pool:
            asked = [pool.submit(_ask, child, part) for child, part in zip(self._children, parts, strict=False)]
            answers = [each.result() for each in asked]
        return {
            "records": {name: shape for answer in answers for name, shape in answer["records"].items()},
            "programs": {name: one for answer in answers for name, one in answer["programs"].items()},
        }


def _ask(child: subprocess.Popen[str], request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        output, log = child.communicate(json.dumps(request), timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        raise CompileError(f"the compiler did not finish within {COMPILE_SECONDS} s") from None
    code = child.returncode
    answer: dict[str, Any] = json.loads(output) if code == 0 else {}
    if code != 0 or "error" in answer:
        raise _explain(answer.get("error", ""), log, code)
    return answer


def key_of(program: Program) -> str:
    """A name for all that is compiled in: two programs of one key are the same, wherever they are pinned."""
    return cache.key_of(_parts(program))


def compile_programs(compiler: Compiler, program: Program) -> None:
    """Compiles, loads and pins: programs below program_directory, missing maps below map_directory.

    Raises CompileError or VerifierError with our file and line, Unsupported where bcc is missing, LayoutError where
    the C structs are not Python's.
    """
    parts = _parts(program)
    maps = program.maps
    key = cache.key_of(parts)
    place = cache.Place(program.map_directory, program.program_directory, maps, program.sizes.definitions)
    if cache.usable() and cache.load(key, place, program.places):
        return
    cache.create_maps(place)
    try:
        answer = compiler.ask(parts)
    except CompileError:
        cache.unpin(program.program_directory)  # one part may have been good
        raise
    for name, contract in maps.items():
        for side, record in (("key", contract.key), ("value", contract.value)):
            if isinstance(record, layout.Record):
                _compare(name, side, record, answer["records"][name][side])
    cache.save(key, answer["programs"])


def _parts(program: Program) -> list[dict[str, Any]]:
    """What each child is to do."""
    return [_part(program, family, half) for family in program.scopes for half in HALVES]


def recall_part(program: Program, family: Family, former: Path, entries: int) -> dict[str, Any]:
    """What one child is to do for a move of flows (kernel/recalling.py) from the table in this folder, with room for so
    many.
    """
    part = _part(program, family, WITH_RECALL, MAX_FORMER_ENTRIES=str(entries), FORMER_DIRECTORY=f'"{former}"')
    return part | {"places": {f"{layout.RECALL}{family.suffix}": layout.tail_place(layout.RECALL, family)}}


def _part(program: Program, family: Family, half: str, **more: str) -> dict[str, Any]:
    """What one child is to do: a family's `walk`, all its other programs, or `recall`. `more`: -D names."""
    nat = ["nat"] if program.masquerades(family) else []
    others = ("leave", "search", "settle", *nat, *(hook.program for hook in program.hooks))
    wanted = {"WITH_WALK": ("walk",), "WITH_OTHERS": others, WITH_RECALL: (layout.RECALL,)}[half]
    names = {name: f"{name}{family.suffix}" for name in wanted}
    given = definitions(program, family) | {one: str(int(one == half)) for one in (*HALVES, WITH_RECALL)} | more
    return {
        "text": source.assemble(source.directory() / "datapath.c"),
        "cflags": [*_include_flags(), "-Wall", *(f"-D{name}={value}" for name, value in given.items())],
        "programs": names,
        "places": {name: place for name, place in program.places.items() if name in names.values()},
        "maps": {one.name: one.in_c for one in program.maps.values() if one.family in (None, family)},
        "directory": str(program.program_directory),
    }


def _include_flags() -> list[str]:
    """UAPI headers as the compiler's own machine has them (Debian: linux-libc-dev)."""
    multiarch = Path("/usr/include") / f"{platform.machine()}-linux-gnu"
    if not (Path("/usr/include/linux/ip.h").is_file()):
        raise Unsupported("the kernel's UAPI headers are not installed", hint="apt install linux-libc-dev")
    return ["-I/usr/include", f"-I{multiarch}"]


def _explain(error: str, log: str, code: int) -> CompileError | Unsupported:
    """One error out of what the child said: the file and line, or the last telling line."""
    if error == "missing":
        return Unsupported(
            "the Python module bcc is not installed", hint="apt install python3-bpfcc (PyPI's `bcc` is another thing)"
        )
    if error.startswith("load "):
        places = _SOURCE_LINE.findall(log)
        where = f"{places[-1][0]}:{places[-1][1]}: " if places else ""
        lines = [line for line in log.splitlines() if line and not _VERIFIER_NOISE.match(line)]
        return VerifierError(
            f"{where}the kernel refuses the program {error[5:]!r}: {lines[-1].strip() if lines else 'no reason given'}",
            log=log,
            hint=_privilege_hint(log),
        )
    if code == -signal.SIGKILL or (code != 0 and _NO_MEMORY.search(log)):
        how = (
            "was killed, as the kernel does where memory is short" if code == -signal.SIGKILL else "has no memory left"
        )
        return CompileError(f"the compiler {how}", log=log, hint="compiling IPv4's programs alone takes some 150 MB")
    found = _COMPILER_ERROR.search(log)
    if found is not None:
        return CompileError(f"{found[1]}: {found[2]}", log=log)
    backend = _BACKEND_ERROR.search(log)
    if backend is not None:
        return CompileError(f"bpf/datapath.c: LLVM gave up: {backend[1]}", log=log)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "no word")
    return CompileError(f"bpf/datapath.c does not compile (the compiler ended with {code}): {last}", log=log)


def _privilege_hint(log: str) -> str:
    if "Operation not permitted" in log and (hint := capabilities.what_is_missing()):
        return hint
    return "-v shows the verifier's whole log"


def _compare(name: str, side: str, record: layout.Record, found: list[list[Any]]) -> None:
    """The third side of the contract: what the compiler made of contract.h must be what Python packs."""
    wanted = [list(part) for part in record.shape]
    if found != wanted:
        raise LayoutError(
            f"struct {record.name} (the {side} of the map {name!r}) is {found} to the compiler and {wanted} to Python",
            hint="bpf/contract.h and pydatapath/kernel/layout.py must say the same",
        )
