"""The command line from outside: help, usage, and what is said where nothing is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import yaml

from pydatapath import timers
from pydatapath.cli import COMMANDS, SUMMARIES, cli, main
from pydatapath.cli.node import _print_status
from pydatapath.cli.service import backend_rows
from pydatapath.cli.types import BACKEND, PORT
from pydatapath.editing import PortSpec
from pydatapath.model import Backend
from pydatapath.version import __version__
from pydatapath.views import Status

Run = Callable[..., tuple[int, str, str]]
NOBODY = 65534
POD6 = "fd00:10:244:1::11"

# An instance of this name is nowhere
ABSENT = ["--instance", "no-such-instance-of-a-test"]
NOT_LOADED = (
    "Error: instance 'no-such-instance-of-a-test' is not loaded\n"  # what is wrong
    "Hint: `pydatapath load` loads it\n"  # what to do about it
)
MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
"""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process, as in a wide terminal: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capfd.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else int(code is not None)), out, err

    return call


def every_command(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command and group, but for the first."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


def test_help_lists_every_command_with_its_summary(run: Run) -> None:
    """`pydatapath --help`, `-h` and `pydatapath` alone tell what there is, with examples to begin with."""
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert list(COMMANDS) == list(SUMMARIES)
    lines = [line.strip() for line in out.splitlines()]
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines)
    assert "  pydatapath load --bridge br0 --uplink eth0" in out
    assert run("-h")[1] == out
    code, bare, err = run()
    assert (code, bare + err) == (2, out)


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    """Each says what it does and shows, line by line, a command that can be typed."""
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: pydatapath {' '.join(words)} ")
    examples = [line.strip() for line in out.splitlines() if line.strip().startswith(("pydatapath ", "kubectl "))]
    assert any(line.startswith(f"pydatapath {' '.join(words)}") or " | pydatapath" in line for line in examples)
    assert "\\b" not in out
    assert "\b" not in out


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_summary_ends_in_a_full_stop_and_is_not_cut(run: Run, words: tuple[str, ...]) -> None:
    """In the list of a group each command is one whole sentence."""
    _, out, _ = run(*words[:-1], "--help")
    line = next(line for line in out.splitlines() if line.strip().partition(" ")[0] == words[-1])
    assert line.endswith(".")
    assert not line.endswith("...")


def test_the_version_is_said(run: Run) -> None:
    """The package's own."""
    assert run("--version") == (0, f"pydatapath, version {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["lod"],
        ["--instanse", "x", "status"],
        ["status", "-o", "xml"],
        ["status", "left over"],
        ["load", "--max-flows", "3"],
        ["load", "--max-flows", "many"],
        ["load", "--algorithm", "round-robin"],
        ["apply"],
        ["apply", "-f"],
        ["diff"],
        ["diff", "-f", "x.yaml", "-o", "table"],
        ["delete"],
        ["delete", "-f", "x.yaml", "service", "web"],
        ["delete", "service"],
        ["delete", "pod", "web"],
        ["delete", "svc/web", "db"],
        ["delete", "svc/"],
        ["apply", "-f", "x.yaml", "--dry-run=often"],
        ["service"],
        ["service", "show"],
        ["service", "add", "web"],
        ["service", "add", "web", "--port", "99999"],
        ["service", "add", "web", "--port", "80/icmp"],
        ["service", "add", "web", "--port", "80", "--cluster-ip", "10.96.0.256"],
        ["service", "add", "web", "--port", "80", "--ip-family", "both"],
        ["service", "add", "web", "--port", "80", "--backend", "web"],
        ["backend", "add", "web"],
        ["backend", "add", "web", "10.244.1.11:0"],
        ["backend", "add", "web", "10.244.1.11:"],
        ["backend", "add", "web", "10.244.1.999:80"],
        ["backend", "add", "web", "10.244.1.11:80", "--weight", "1001"],
        ["backend", "add", "web", "10.244.1.11:80", "--weight", "-1"],
        ["backend", "remove", "web", "[::1]:80:90"],
        ["backend", "remove", "web", "[::1]:"],
        ["backend", "remove", "web", "[10.244.1.11]:80"],
        ["backend", "remove", "web", "fd00::11:8080"],
        ["backend", "remove", "web", "[fd00::11"],
        ["backend", "drain", "web"],
        ["flow", "list", "--limit", "0"],
        ["flow", "list", "--state", "nwe"],
        ["flow", "flush", "--state", "nwe"],
        ["flow", "flush", "--src", "fd00::1/64"],
        ["flow", "flush", "everything"],
        ["lab", "exec", "pod"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    """Whatever is wrong with the words themselves: on stderr, with the usage, before anything is looked at."""
    code, out, err = run(*ABSENT, *arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err or err.startswith("Usage: pydatapath ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "-o", "wide"],
        ["service", "list"],
        ["service", "list", "-o", "json"],
        ["service", "show", "web"],
        ["service", "add", "web", "--port", "80"],
        ["service", "delete", "web"],
        ["backend", "list"],
        ["backend", "list", "web", "-o", "yaml"],
        ["backend", "add", "web", "10.244.1.11:8080"],
        ["backend", "remove", "web", "10.244.1.11:8080"],
        ["backend", "remove", "--reset", "web", "10.244.1.11:8080"],
        ["backend", "drain", "web", "10.244.1.11:8080"],
        ["service", "add", "web", "--port", "3868/sctp", "--ip-family", "dual", "--backend", "[fd00::11]:3868"],
        ["backend", "add", "web", "[fd00:10:244:1::11]:8080"],
        ["flow", "list"],
        ["flow", "list", "--state", "NEW"],
        ["flow", "count"],
        ["flow", "flush"],
        ["flow", "flush", "--service", "web", "--src", "10.244.1.11", "--dst", "FD00::1", "--state", "established"],
        ["delete", "service", "web"],
        ["delete", "svc/web", "svc/prod/db", "node/worker-2"],
    ],
    ids=" ".join,
)
def test_what_is_not_loaded_is_one_error_and_exit_code_1(run: Run, arguments: list[str]) -> None:
    """One line of what is wrong, one of what to do, nothing on stdout, no traceback."""
    assert run(*ABSENT, *arguments) == (1, "", NOT_LOADED)


def test_apply_on_what_is_not_loaded(run: Run, tmp_path: Path) -> None:
    """A good manifest does not help where nothing is loaded."""
    (tmp_path / "web.yaml").write_text(MANIFEST)
    assert run(*ABSENT, "apply", "-f", str(tmp_path / "web.yaml")) == (1, "", NOT_LOADED)


def test_an_error_of_diff_is_no_difference(run: Run, tmp_path: Path) -> None:
    """Scripts take exit code 1 for differences."""
    (tmp_path / "web.yaml").write_text(MANIFEST)
    assert run(*ABSENT, "diff", "-f", str(tmp_path / "web.yaml")) == (2, "", NOT_LOADED)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_status_tells_a_program_that_nothing_is_loaded(run: Run, form: str) -> None:
    """For a script that is an answer, not an error."""
    code, out, err = run(*ABSENT, "status", "-o", form)
    assert (code, err) == (0, "")
    found = json.loads(out) if form == "json" else yaml.safe_load(out)
    assert (found["instance"], found["netns"], found["loaded"]) == (ABSENT[1], "", False)
    assert list(found) == [field.name for field in dataclasses.fields(Status)]


@pytest.mark.parametrize(
    ("wide", "line"),
    [(False, "timers     udp 180 s"), (True, "timers     tcp-opening 120 s, tcp-established 432000 s, ")],
)
def test_C14_status_tells_the_timers(capsys: pytest.CaptureFixture[str], wide: bool, line: str) -> None:
    """Those that are other than usual, or with `-o wide` all."""
    times = timers.named(timers.read(["udp=180"]))
    _print_status(Status("default", "", timers=times), wide=wide)
    out, _ = capsys.readouterr()
    assert any(one.startswith(line) for one in out.splitlines())
    _print_status(Status("default", "", timers=timers.named(timers.read(()))), wide=False)
    assert "timers" not in capsys.readouterr().out


def test_S70_status_tells_of_services_that_claim_one_address(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, below what drifted."""
    said = "Service default/b: 192.0.2.1:80/tcp belongs to Service default/a, which is older"
    _print_status(Status("default", "", drift=("interface eth0 is gone",), conflicts=(said,)), wide=False)
    out, err = capsys.readouterr()
    assert out.endswith(f"\n\ndrift: interface eth0 is gone\nconflict: {said}\n")
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance", "../etc", "status"], "instance name '../etc' cannot be used"),
        (["--netns", "no-such-netns", "service", "list"], "network namespace 'no-such-netns' does not exist"),
        (["--netns", "/no/such/path", "status"], "network namespace '/no/such/path' does not exist"),
        (["--netns", "999999999", "flow", "list"], "network namespace '999999999' does not exist"),
        (["load", "--config", "/no/such.toml"], "the configuration /no/such.toml cannot be read: No such file"),
        (["load", "--config", "/"], "the configuration / cannot be read: Is a directory"),
        (["load", "--config", "/dev/zero"], "the configuration /dev/zero cannot be read: neither a file nor a folder"),
    ],
)
def test_F25_what_is_not_there_is_one_error(run: Run, arguments: list[str], message: str) -> None:
    """The sentence names it as it was typed."""
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {message}")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uplink = ", "is not TOML: Invalid value"),
        ("\xff", "is not TOML: 'utf-8' codec"),
        ("uplinks = ['eth0']", "option 'uplinks' is unknown"),
        ("uplink = 'eth0'", "option 'uplink' must be a list of strings, not 'eth0'"),
        ("algorithm = 'hash'", "option 'algorithm' must be random or maglev, not 'hash'"),
        ("max_flows = 3", "option 'max_flows' must be from 1,024 to 16,777,216, not 3"),
        (f"max_flows = {'9' * 5000}", "is not TOML: "),
        (f"uplink = {'[' * 100_000}", "is not TOML: "),
        (f"#{' ' * 2_000_000}", "cannot be read: larger than 1 MB"),
    ],
)
def test_F25_a_bad_configuration_is_one_error(run: Run, tmp_path: Path, text: str, message: str) -> None:
    """Said before anything is loaded, also without root."""
    path = tmp_path / "node.toml"
    path.write_bytes(text.encode("latin-1"))
    code, _, err = run(*ABSENT, "load", "--config", str(path))
    assert code == 1
    assert err.startswith("Error: ")
    assert message in err.splitlines()[0]


def test_the_instance_may_stand_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each global option has a variable."""
    monkeypatch.setenv("PYDATAPATH_INSTANCE", "from-the-environment")
    assert "'from-the-environment'" in run("service", "list")[2]


@pytest.fixture
def nobody() -> Iterator[None]:
    """No root, whoever runs the tests."""
    root = os.geteuid() == 0
    if root:
        # A checkout in a folder of root's own could not be imported from any more
        for name in ("node", "objects"):
            importlib.import_module(f"pydatapath.cli.{name}")
        for name in ("datapath", "instance", "loading", "records"):
            importlib.import_module(f"pydatapath.{name}")
        os.seteuid(NOBODY)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("10.244.1.11:8080", ("10.244.1.11", 8080)),
        ("10.244.1.11", ("10.244.1.11", None)),
        ("[fd00:10:244:1::11]:8080", (POD6, 8080)),
        ("[FD00:10:244:1:0::11]:8080", (POD6, 8080)),
        ("[fd00:10:244:1::11]", (POD6, None)),
        ("fd00:10:244:1::11", (POD6, None)),
        ("fd00:10:244:1:0:0:0:11", (POD6, None)),
        ("::1:b", ("::1:b", None)),
    ],
)
def test_a_backend_is_typed_with_or_without_a_port(typed: str, meant: tuple[str, int | None]) -> None:
    """IPv6 in brackets where a port follows, in any spelling."""
    assert BACKEND.convert(typed, None, None) == meant


def test_what_may_be_a_port_or_the_end_of_an_address_is_asked_for_in_brackets(run: Run) -> None:
    """Nobody is guessed wrong."""
    said = run(*ABSENT, "backend", "remove", "web", "fd00:10:244:1::11:8080")[2]
    assert "write [fd00:10:244:1::11]:8080, or [fd00:10:244:1::11:8080] for an address alone" in said


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("80", PortSpec("", "TCP", 80, 80)),
        ("80/tcp", PortSpec("", "TCP", 80, 80)),
        ("dns=53/udp", PortSpec("dns", "UDP", 53, 53)),
        ("3868/sctp", PortSpec("", "SCTP", 3868, 3868)),
        ("diameter=3868/SCTP", PortSpec("diameter", "SCTP", 3868, 3868)),
    ],
)
def test_a_port_is_typed_with_its_protocol(typed: str, meant: PortSpec) -> None:
    """TCP unless said otherwise."""
    assert PORT.convert(typed, None, None) == meant


def test_backends_are_shown_as_they_are_typed() -> None:
    """IPv6 in brackets, so that the port is told from the address."""
    rows = backend_rows((Backend(POD6, 8080, "TCP"), Backend("10.244.1.11", 53, "UDP")))
    assert [row[0] for row in rows] == ["[fd00:10:244:1::11]:8080/tcp", "10.244.1.11:53/udp"]


@pytest.mark.parametrize("command", ["load", "unload"])
def test_F25_what_needs_root_says_so(run: Run, nobody: None, command: str) -> None:
    """Before anything is touched."""
    said = f"Error: {command} needs root: it changes the kernel's network\nHint: run it with sudo\n"
    assert run(*ABSENT, command) == (1, "", said)


def test_the_installed_script_is_this_one() -> None:
    """`pydatapath` beside the interpreter runs the package that is tested."""
    script = Path(sys.executable).parent / "pydatapath"
    if not script.exists():
        pytest.skip("pydatapath is not installed beside this interpreter")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pydatapath, version {__version__}\n"
