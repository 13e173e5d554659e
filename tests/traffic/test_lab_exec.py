"""What runs in a lab: commands in pods and containers, their signals and exit codes, sockets; and `pydatapath lab`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from pydatapath.cli import cli
from pydatapath.errors import DatapathError, NotFound
from pydatapath.lab import Lab, LabSpec
from pydatapath.lab.processes import processes_in

NAME = f"x{os.getpid()}"  # of this process, should two runs share /run/netns


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(NAME)) as made:
        yield made


def command_line(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["lab", *arguments])


def lab_exec(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`pydatapath lab exec ARGUMENTS` in a process of its own, as it becomes the command."""
    command = [sys.executable, "-c", "from pydatapath.cli.lab import lab; lab()", "exec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


# The Python side


def test_a_command_runs_where_it_should(lab: Lab):
    done = lab.pod(1, 2).exec(["sh", "-c", "cat; ip -br -4 address show eth0; exit 7"], stdin="hello\n")
    assert done.returncode == 7
    assert done.stdout.split() == ["hello", *done.stdout.split()[1:]]
    assert "10.244.1.12/24" in done.stdout


def test_bpffs_stays_in_sight(lab: Lab):
    """`ip netns exec` would hide it."""
    here = os.stat("/sys/fs/bpf").st_dev
    assert int(lab.node(1).exec(["stat", "-c", "%d", "/sys/fs/bpf"]).stdout) == here
    assert int(lab.pod(1, 1).exec(["stat", "-c", "%d", "/sys/fs/bpf"], container="app").stdout) == here


def test_the_process_of_popen_is_the_command(lab: Lab):
    process = lab.pod(2, 2).popen(["sleep", "60"])
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM


def test_two_containers_share_the_network_and_nothing_else(lab: Lab):
    """One pod, one address: what `app` serves on localhost, `sidecar` reaches there, but it does not see `app`."""
    pod = lab.pod(1, 1)
    app_code = """
import socket
server = socket.create_server(("127.0.0.1", 8081))
print("up", flush=True)
server.accept()[0].send(socket.gethostname().encode())
"""
    sidecar_code = """
import os, socket
answer = socket.create_connection(("127.0.0.1", 8081)).recv(99).decode()
print(socket.gethostname(), answer, sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()))
"""
    with pod.popen([sys.executable, "-c", app_code], container="app", stdout=subprocess.PIPE) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "up\n"
        done = pod.exec([sys.executable, "-c", sidecar_code], container="sidecar")
        assert done.stdout == "sidecar app [1, 2]\n", done.stderr
    assert app.returncode == 0


def test_a_container_leaves_the_hosts_proc_and_name_alone(lab: Lab):
    before = (Path("/proc/self/mountinfo").read_text(), socket.gethostname(), os.listdir("/proc/self/ns"))
    assert lab.pod(1, 1).exec(["true"], container="app").returncode == 0
    assert (Path("/proc/self/mountinfo").read_text(), socket.gethostname(), os.listdir("/proc/self/ns")) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_command_in_a_container(lab: Lab, number: signal.Signals):
    process = lab.pod(1, 1).popen(["sh", "-c", "echo up; exec sleep 60"], container="app", stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(5) == 128 + number


def test_a_killed_container_takes_its_processes_along(lab: Lab):
    pod = lab.pod(1, 1)
    with pod.popen(["sh", "-c", "sleep 60 & echo up; wait"], container="app", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
        # the pipe ends when its last holder has: the background sleep too
        assert process.stdout.read() == ""
    deadline = time.monotonic() + 3
    while processes_in([pod.netns]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_in([pod.netns]) == []


def test_a_command_that_is_none_says_so_in_a_container(lab: Lab):
    done = lab.pod(1, 1).exec(["no-such-program"], container="app")
    assert (done.returncode, done.stderr) == (127, "Error: cannot run 'no-such-program': No such file or directory\n")


def test_a_container_that_is_not_there(lab: Lab):
    with pytest.raises(NotFound, match=f"{NAME}-node1-pod2 has no container 'app'"):
        lab.pod(1, 2).exec(["true"], container="app")


def test_a_socket_made_in_a_pod_stays_there(lab: Lab):
    with lab.pod(2, 1).socket(kind=socket.SOCK_DGRAM) as inside:
        inside.bind((lab.pod(2, 1).address, 0))
    with socket.socket(type=socket.SOCK_DGRAM) as here, pytest.raises(OSError, match="Cannot assign"):
        here.bind((lab.pod(2, 1).address, 0))


# The command line


def test_the_command_line_goes_up_and_down(lab: Lab):
    name = f"{NAME}-cli"
    result = command_line("up", "--nodes", "1", "--pods", "1", "--name", name)
    assert (result.exit_code, result.exception) == (0, None)
    assert f"lab {name}: 1 node with 1 pod each, up in" in result.output
    result = command_line("list", "-o", "json")
    assert [one for one in json.loads(result.output) if one["name"] == name] == [
        {
            "name": name,
            "dual_stack": False,
            "nodes": [
                {
                    "name": f"{name}-node1",
                    "address": "192.168.50.11",
                    "address6": "",
                    "pods": [
                        {
                            "name": f"{name}-node1-pod1",
                            "address": "10.244.1.11",
                            "address6": "",
                            "containers": ["app", "sidecar"],
                        }
                    ],
                }
            ],
            "outside": {"name": f"{name}-outside", "address": "192.168.50.100", "address6": ""},
        }
    ]
    assert command_line("show", "--name", name).output.splitlines() == [
        f"{name}-switch   bridge uplink, 192.168.50.0/24",
        f"├── {name}-node1   eth0 192.168.50.11, br0 10.244.1.1/24",
        f"│   └── {name}-node1-pod1   eth0 10.244.1.11, containers app and sidecar",
        f"└── {name}-outside   eth0 192.168.50.100",
    ]
    assert json.loads(command_line("show", "--name", name, "-o", "json").output)["name"] == name
    assert command_line("down", "--name", name).output == f"lab {name}: down\n"
    assert isinstance(command_line("down", "--name", name).exception, DatapathError)


def test_the_table_has_a_line_for_each_namespace(lab: Lab):
    lines = [line.split() for line in command_line("list").output.splitlines()]
    assert lines[0] == ["LAB", "KIND", "NAMESPACE", "ADDRESS", "CONTAINERS"]
    assert [NAME, "pod", f"{NAME}-node1-pod1", "10.244.1.11", "app,sidecar"] in lines
    assert [NAME, "switch", f"{NAME}-switch", "-", "-"] in lines


def test_the_wide_table_says_where_the_cables_end(lab: Lab):
    lines = [line.split() for line in command_line("list", "-o", "wide").output.splitlines()]
    assert [NAME, "pod", f"{NAME}-node1-pod2", "10.244.1.12", "-", f"{NAME}-node1:pod2"] in lines
    assert [NAME, "node", f"{NAME}-node2", "192.168.50.12", "-", f"{NAME}-switch:node2"] in lines


def test_yaml_and_json_say_the_same(lab: Lab):
    assert yaml.safe_load(command_line("list", "-o", "yaml").output) == json.loads(
        command_line("list", "-o", "json").output
    )


@pytest.mark.parametrize("command", ["up", "down", "list", "show", "exec", "demo"])
def test_help_has_examples_as_they_are_typed(command: str):
    """A line each: click would wrap them into a paragraph, had it not been told."""
    lines = command_line(command, "--help").output.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    assert lines[heading + 1].startswith("    pydatapath lab ")
    assert "\\b" not in "".join(lines)


def test_quiet_says_nothing():
    name = f"{NAME}-quiet"
    for arguments in (["up", "--nodes", "1", "--pods", "0", "--name", name], ["down", "--name", name]):
        result = CliRunner().invoke(cli, ["-q", "lab", *arguments])
        assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("dashes", [["--"], []], ids=["with --", "without --"])
def test_exec_passes_options_output_and_exit_code_on(lab: Lab, dashes: list[str]):
    done = lab_exec(
        f"{NAME}-node2-pod2", *dashes, "sh", "-c", 'ip -br -4 address show eth0; echo "$@" >&2; exit 5', "-", "--"
    )
    assert (done.returncode, done.stderr) == (5, "--\n")
    assert "10.244.2.12/24" in done.stdout


def test_exec_takes_the_short_name_and_a_container(lab: Lab):
    done = lab_exec("node1-pod1/sidecar", "--", "sh", "-c", "hostname; cat /proc/sys/kernel/hostname; exit 6")
    assert (done.returncode, done.stdout) == (6, "sidecar\nsidecar\n")


def test_a_command_ends_as_if_nobody_stood_between(lab: Lab):
    assert lab_exec(f"{NAME}-node1", "--", "sh", "-c", "kill -9 $$").returncode == -signal.SIGKILL
    # SIGPIPE is not ignored, as Python would leave it: `yes` ends without a word
    assert lab_exec(f"{NAME}-node1", "--", "sh", "-c", "yes | head -1").stdout == "y\n"
    assert lab_exec(f"{NAME}-node1", "--", "sh", "-c", "yes | head -1").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "ls"], "no lab has a namespace 'nowhere'"),
        (["node1-pod1", "no-such-program"], "there is no program 'no-such-program'"),
        (["node1-pod1/nowhere", "ls"], "has no container 'nowhere'"),
    ],
    ids=["namespace", "program", "container"],
)
def test_exec_says_what_is_missing(lab: Lab, arguments: list[str], message: str):
    result = command_line("exec", *arguments)
    assert isinstance(result.exception, NotFound)
    assert message in str(result.exception)


@pytest.mark.parametrize("arguments", [["node1"], ["node1", "--"]], ids=["nothing", "only --"])
def test_exec_without_a_command_is_wrong_usage(arguments: list[str]):
    assert command_line("exec", *arguments).exit_code == 2


def test_reading_and_running_do_not_load_pyroute2(lab: Lab):
    """It takes 150 ms: only who builds a network waits for it."""
    code = "import sys; from pydatapath.lab import find_host, labs; labs(); find_host('{}').command(['ls'])"
    code += "; print([name for name in ('bcc', 'pyroute2', 'yaml', 'asyncio') if name in sys.modules])"
    command = [sys.executable, "-c", code.format(f"{NAME}-node1")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
