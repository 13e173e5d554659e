"""`pydatapath lab demo`: what a newcomer sees first. It shows what it says, quickly, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import EMULATED, PATIENCE

from pydatapath import instance, manifests
from pydatapath.errors import LabError
from pydatapath.kernel import bpffs
from pydatapath.kernel.netns import RUN_NETNS
from pydatapath.lab import Lab, LabSpec, chapters, demo, labs
from pydatapath.lab.processes import processes_in
from pydatapath.lab.stage import MANIFEST, Failed
from pydatapath.lab.topology import topology_of
from pydatapath.model import EndpointSlice

DEMO = [sys.executable, "-c", "from pydatapath.cli import main; main()", "lab", "demo"]
COLOUR = "\x1b["


def things() -> set[Path]:
    """All that a lab and a datapath put into the file system."""
    roots = (RUN_NETNS, instance.RUN, bpffs.BPFFS / "pydatapath")
    return {path for root in roots if root.is_dir() for path in root.rglob("*")}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = things()
    yield
    assert things() == before


def test_the_demo_shows_all_and_leaves_nothing_behind():
    start = time.monotonic()
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=PATIENCE, check=False)
    seconds = time.monotonic() - start
    assert (done.returncode, done.stderr) == (0, "")
    titles = re.findall(r"^(\d)\. (.*)$", done.stdout, re.MULTILINE)
    assert titles == [(str(number), one.title) for number, one in enumerate(chapters.CHAPTERS, start=1)]
    assert "  ! " not in done.stdout
    assert COLOUR not in done.stdout
    story, _, to_go_on = done.stdout.partition("Three commands to go on with:\n")
    assert max(map(len, story.splitlines())) <= 100
    assert "  pydatapath lab up\n  pydatapath --netns lab-node1 load --node-name node1\n" in to_go_on
    assert re.search(r"  pydatapath --netns lab-node1 apply -f \S+\.yaml\n", to_go_on)
    assert seconds < 30 or EMULATED


def test_it_takes_another_name_where_its_own_is_taken():
    """Two demos at once, and a lab `demo` that somebody has up, do not meet."""
    with Lab.up(LabSpec("demo", nodes=1, pods=1)) as mine:
        here = things()
        demos = [subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [one.communicate(timeout=PATIENCE) for one in demos]
        assert [(one.returncode, errors) for one, (_, errors) in zip(demos, said, strict=True)] == [(0, ""), (0, "")]
        names = {match for out, _ in said for match in re.findall(r"(demo\d+)-switch", out)}
        assert names == {"demo2", "demo3"}
        assert mine.pod(1, 1).exec(["true"]).returncode == 0
        assert things() == here


@pytest.mark.parametrize(
    ("number", "after", "code"),
    [
        pytest.param(signal.SIGINT, "A cluster", 1, id="SIGINT, while it loads"),
        pytest.param(signal.SIGINT, "2. Pod to pod", 1, id="SIGINT, in a chapter"),
        pytest.param(signal.SIGINT, "5. The node", 1, id="SIGINT, near the end"),
        pytest.param(signal.SIGTERM, "3. Pod to", 143, id="SIGTERM"),
        pytest.param(signal.SIGHUP, "1. Container", 129, id="SIGHUP"),
    ],
)
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, after: str, code: int):
    """The signal goes to the whole group, as a terminal's Ctrl-C does, and is sent twice, as people do."""
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith(after):
                break
        os.killpg(process.pid, number)
        time.sleep(0.05)
        os.killpg(process.pid, number)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert "The lab is down" not in rest
    assert process.returncode in (code, -number)
    assert "Traceback" not in errors
    assert "Traceback" not in rest


def test_a_pipe_that_closes_leaves_nothing_behind():
    """As `pydatapath lab demo | head -3` does."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors


def test_what_a_killed_demo_leaves_goes_with_lab_down():
    """SIGKILL leaves everything there: a lab like any other, and its datapath goes with it."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = ""
        for line in process.stdout:
            name = name or "".join(re.findall(r"(demo\d*)-switch", line))
            if line.startswith("3."):
                break
        process.kill()
    lab = Lab.open(name)
    names = [host.netns for host in lab.hosts]
    assert len(processes_in(names)) >= 4
    assert [one.netns for one in lab.down()] == [f"{name}-node1"]
    assert processes_in(names) == []


def test_a_chapter_that_fails_is_told_and_the_others_are_played(monkeypatch: pytest.MonkeyPatch):
    """Then there is one error, and still nothing is left."""

    def wrong(*_: object) -> None:
        raise Failed("two is not three")

    first, second, *others = chapters.CHAPTERS
    monkeypatch.setattr(chapters, "CHAPTERS", (first, second._replace(play=wrong), *others))
    told: list[tuple[str, str]] = []
    with pytest.raises(LabError, match=r"did not show 2 \(pod to pod\)$"):
        demo.run(lambda kind, text: told.append((kind, text)))
    assert ("failed", "two is not three") in told
    assert [text for kind, text in told if kind == "failed"] == ["two is not three"]
    assert ("title", f"6. {others[-1].title}") in told


def test_colours_are_for_terminals_that_want_them():
    def on_a_terminal(**environment: str) -> str:
        master, slave = pty.openpty()
        with os.fdopen(master, "rb", buffering=0) as terminal:
            with subprocess.Popen(DEMO, stdout=slave, stderr=slave, env={**os.environ, **environment}) as process:
                os.close(slave)
                said = b""
                try:
                    while part := terminal.read(4096):
                        said += part
                except OSError:  # EIO: nobody holds the other end any more
                    pass
            assert process.returncode == 0
        return said.decode()

    assert COLOUR in on_a_terminal(TERM="xterm")
    assert COLOUR not in on_a_terminal(TERM="xterm", NO_COLOR="1")


def test_quiet_says_nothing():
    done = subprocess.run([*DEMO[:-2], "-q", *DEMO[-2:]], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_root_it_says_so_in_one_line():
    nobody = [sys.executable, str(Path(__file__).parents[1] / "as_nobody.py"), "lab", "demo"]
    done = subprocess.run(nobody, capture_output=True, text=True, timeout=PATIENCE, check=False)
    lines = ["Error: lab needs root: it works with network namespaces", "Hint: run it with sudo"]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (1, "", lines)


def test_the_example_fits_the_lab_that_is_up_by_default():
    """Its backends are pods of `pydatapath lab up`, and the demo applies the very same file."""
    example = Path(__file__).parents[2] / "examples" / "web.yaml"
    assert example.read_text() == MANIFEST.read_text()
    addresses = {veth.address.split("/")[0] for veth in topology_of(LabSpec()).veths}
    slices = [one for one in manifests.read([str(example)]).objects if isinstance(one, EndpointSlice)]
    assert {endpoint.address for one in slices for endpoint in one.endpoints} <= addresses
    assert not [lab for lab in labs() if lab.name.startswith("demo")]
