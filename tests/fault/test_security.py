"""Who may read what we keep, and what hostile input may do: nothing but a sentence (F25, F26, F28)."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from measuring import measured
from rows import tell
from scene import PYDATAPATH, objects, pydatapath
from stand import OPTIONS, STEADY, Stand, stand_up

from pydatapath.documents import to_yaml
from pydatapath.instance import RUN
from pydatapath.kernel import cache, capabilities

MOST_MB = 50  # of a command that refuses what would be gigabytes
LAUGHS = 'a: &a ["lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol"]\n' + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = "p\x1b[2J\x07"  # as a name of an interface: the kernel forbids slashes, colons and white space only
EVIL = "a\x1b[31m\r\x0b\x0c\x1c\x85\u2028\u202eb\x9b31m\x7f"
READING = (
    *(["status"], ["status", "-o", "wide"], ["status", "-o", "json"], ["status", "-o", "yaml"], ["service", "list"]),
    *(["service", "show", "evil"], ["backend", "list"], ["flow", "list"], ["node", "list"], ["export"]),
    *(["export", "-o", "json"], ["service", "list", "-o", "json"], ["service", "list", "-o", "yaml"]),
)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A node with nothing loaded."""
    with stand_up(f"se-{os.getpid()}", tmp_path_factory.mktemp("manifests")) as made:
        yield made


def test_nobody_else_reads_pins_records_and_kept_programs(stand: Stand):
    """Also where the mask of the process would let them."""
    command = stand.command("load", *OPTIONS)
    for _ in range(2):  # compiled, and from what is kept
        subprocess.run(command, check=True, capture_output=True, timeout=100, preexec_fn=lambda: os.umask(0))
    arguments = stand.command("apply", "-f", str(stand.base))
    subprocess.run(arguments, check=True, capture_output=True, timeout=60, preexec_fn=lambda: os.umask(0))
    which = stand.which
    for folder in (which.pins, which.map_pins, which.program_pins, which.directory, cache.DIRECTORY):
        assert oct(folder.stat().st_mode & 0o777) == "0o700", folder
    pins = [path for path in which.pins.rglob("*") if path.is_file()]
    assert {which.map_pins, which.program_pins} == {path.parent for path in pins}
    for path in (*pins, *which.directory.iterdir()):
        assert oct(path.stat().st_mode & 0o777) == "0o600", path
    for folder in (RUN, RUN / which.name, which.pins.parent, which.pins.parent.parent):
        assert not folder.stat().st_mode & 0o022, f"others could put something into {folder}"
    stand.clear()


def test_a_command_keeps_the_capabilities_that_it_needs(stand: Stand):
    """And no others, nor do its children; with these alone all is loaded, applied, changed and taken away."""
    had = capabilities_of(os.getpid())["CapBnd"]  # a container may have been given less than all
    bits = had & sum(1 << number for number in capabilities.NEEDED.values())
    assert bits != had
    stand.load()
    command = stand.command("apply", "-f", "-")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as waits:
        try:
            deadline = time.monotonic() + 10
            while (kept := capabilities_of(waits.pid)) != {"CapInh": 0, "CapAmb": 0, **dict.fromkeys(CAPPED, bits)}:
                assert time.monotonic() < deadline, kept
                time.sleep(0.02)
            output, _ = waits.communicate(stand.base.read_text(), timeout=60)
        finally:
            waits.kill()
    assert waits.returncode == 0
    assert "created" in output
    for arguments in (["service", "list"], ["flow", "list"], ["repair"], ["load", *OPTIONS], ["unload"]):
        stand.do(*arguments)


CAPPED = ("CapPrm", "CapEff", "CapBnd")


def capabilities_of(pid: int) -> dict[str, int]:
    """The sets of a process, as bits (proc_pid_status(5))."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(value, 16) for name, value in lines if name.startswith("Cap")}


def test_F25_a_billion_laughs_take_no_memory(stand: Stand, tmp_path: Path, figure: Callable[[str], None]):
    """They are refused before they are written out; the command is as small as any."""
    stand.load()
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    begun, before = time.monotonic(), stand.state()
    done = measured(stand.command("apply", "-f", str(path)), timeout=60)
    seconds, wrong = time.monotonic() - begun, stand.differences(before)
    assert done.returncode == 1
    assert "aliases stand for more than 2 MB of text" in done.stderr
    figure(f"a billion laughs: refused with {done.megabytes} MB, {seconds:.1f} s")
    assert done.megabytes < MOST_MB
    assert wrong == []
    stand.clear()
    tell(repeats=1, wrong=len(wrong), rss_peak_mb=done.megabytes, load="nobody")


def obeyed(output: bytes) -> list[bytes]:
    """The lines with something that a terminal would obey."""
    lines = output.decode(errors="surrogateescape").split("\n")
    return [line.encode(errors="surrogateescape") for line in lines if not line.replace("\t", " ").isprintable()]


def said(stand: Stand, arguments: list[str], text: str = "") -> subprocess.CompletedProcess[bytes]:
    """A command's output, byte by byte."""
    return subprocess.run(stand.command(*arguments), input=text.encode(), capture_output=True, timeout=150, check=False)


def test_F26_hostile_names_never_reach_the_terminal_raw(stand: Stand):
    """Of an interface, a node, a pod and a zone, which are refused, and text that is taken: shown with what a terminal
    would obey made harmless.
    """
    stand.node.exec(["ip", "link", "set", "pod1", "name", HOSTILE], check=True)
    try:
        outputs = [said(stand, ["load", *OPTIONS])]
        made = [one.manifest for one in objects("evil", "10.96.0.95", stand.servers)]
        made[1]["endpoints"][0] |= {
            "zone": "z\x1b[31m",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "pod\x1b]0;title\x07"},
        }
        made[1]["endpoints"][1] |= {"nodeName": "node\x1b[31m\r\n2"}
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        outputs += [said(stand, ["apply", "-f", "-"], each) for each in (text, to_yaml(made))]
        assert {done.returncode for done in outputs[1:]} == {1}
        taken = [dict(one.manifest) for one in objects("evil", "10.96.0.95", stand.servers)]
        for one in taken:
            one["metadata"] = {**one["metadata"], "annotations": {"note": EVIL, EVIL: "note"}}
            one[EVIL] = [EVIL]
        for each in (json.dumps({"apiVersion": "v1", "kind": "List", "items": taken}), to_yaml(taken)):
            outputs += [said(stand, [command, "-f", "-"], each) for command in ("diff", "apply", "diff")]
        assert b"service/default/evil created" in outputs[4].stdout
        stand.do("apply", "-f", str(stand.base))
        outputs += [said(stand, one) for one in READING]
        hostile = (
            ("--node-name", "n\x1b[31m"),
            ("--uplink", "e\x1b[31m"),
            ("--bridge", HOSTILE),
            ("--zone", "z\x9b31m"),
        )
        outputs += [said(stand, ["load", *options]) for options in hostile]
        outputs += [said(stand, one) for one in READING]
        wrong = [done.args for done in outputs if obeyed(done.stdout + done.stderr)]
        tell(repeats=len(outputs), wrong=len(wrong))
        for done in outputs:
            assert b"Traceback" not in done.stderr, done
            assert obeyed(done.stdout + done.stderr) == [], done.args
        names = [one["name"] for one in json.loads(stand.do("status", "-o", "json").stdout)["interfaces"]]
        assert HOSTILE in names, "to a program it is what it is"
        assert stand.traffic(STEADY) == []
        stand.clear()
    finally:
        stand.node.exec(["ip", "link", "set", HOSTILE, "name", "pod1"], check=True)


@pytest.mark.parametrize("command", [["load"], ["unload"], ["status"], ["export"], ["service", "list"]], ids=" ".join)
def test_F28_who_is_not_root_is_told_so(stand: Stand, command: list[str]):
    """In one sentence, with nothing changed."""
    before = stand.state()
    done = pydatapath(*command, as_nobody_in=stand.node.netns)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["Error", "Hint"]
    wrong = stand.differences(before)
    tell(repeats=1, wrong=len(wrong), load="nobody")
    assert wrong == []


@pytest.mark.parametrize(
    ("command", "loaded"),
    [("load", False), ("load", True), ("apply", True), ("repair", True), ("unload", True), ("status", True)],
)
def test_F28_root_without_the_rights_of_root(stand: Stand, command: str, loaded: bool):
    """As in a container: one error, which names the capabilities, and the host as it was."""
    if loaded:
        stand.load()
        stand.apply()
    before = stand.state()
    arguments = {"load": OPTIONS, "apply": ("-f", str(stand.changed))}.get(command, ())
    lacks = "-net_admin,-bpf,-perfmon,-sys_admin"
    limited = ["setpriv", f"--bounding-set={lacks}", f"--inh-caps={lacks}"]
    done = measured([*limited, *stand.command(command, *arguments)], timeout=60)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["Error", "Hint"], done.stderr
    assert "root lacks CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF here" in done.stderr
    wrong = stand.differences(before)
    stand.clear()
    tell(repeats=1, wrong=len(wrong), load="nobody")
    assert wrong == []


def test_F28_the_root_of_a_user_namespace(stand: Stand):
    """Who has all capabilities there has none of the host's."""
    before = stand.state()
    host = "ip link add br0 type bridge && ip address add 10.244.9.1/24 dev br0 && ip link set br0 up"
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", f"{host} && exec {PYDATAPATH} load"]
    done = measured(command, timeout=60)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["Error", "Hint"], done.stderr
    assert "Hint: this is the root of a user namespace, who may not: run it as the host's" in done.stderr
    wrong = stand.differences(before)
    tell(repeats=1, wrong=len(wrong), load="nobody")
    assert wrong == []


def test_F31_memory_that_is_short(stand: Stand, figure: Callable[[str], None]):
    """Of an address space of so many MB: a command is done, or says in one sentence that it had too little."""
    stand.load()
    stand.apply()
    stand.hold(STEADY)
    before = stand.state()
    codes = {}
    for limit in (25, 40, 80, 160, 320):
        size = limit << 20
        done = subprocess.run(
            stand.command("apply", "-f", str(stand.base)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
        )
        codes[limit] = done.returncode
        told = f"{limit} MB: exit code {done.returncode}: {done.stderr}"
        assert done.returncode in (0, 1), told
        wanted = r"Error: [^\n]+\n(Hint: [^\n]+\n)?" if done.returncode else ""
        assert re.fullmatch(wanted, done.stderr), told
        assert stand.traffic(STEADY) == []
    figure(f"apply in so many MB of address space, exit codes: {codes}")
    assert codes[320] == 0
    assert 1 in codes.values(), "none was too little"
    tell(repeats=len(codes))
    stand.apply()
    assert stand.differences(before) == []
    stand.clear()
