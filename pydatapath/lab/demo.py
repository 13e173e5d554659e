"""The demo: a cluster comes up, packets reach a service in all the ways there are, and everything is gone again.

    run(lambda kind, text: print(text))

It looks at each result itself. What it shows is in pydatapath.lab.chapters, what it plays on in pydatapath.lab.stage.
"""

from __future__ import annotations

import contextlib
import time

from pydatapath import interrupts
from pydatapath.datapath import Datapath
from pydatapath.errors import Conflict, LabError
from pydatapath.lab import chapters, drawing, processes
from pydatapath.lab.cluster import Lab, labs
from pydatapath.lab.stage import MANIFEST, Failed, Stage, Tell
from pydatapath.lab.topology import LabSpec
from pydatapath.node import Options

__all__ = ["run"]

NODE_NAME = "node1"  # as the manifest calls the first node


def run(tell: Tell) -> None:
    """Play the demo, telling of it line by line. Nothing of it is left when this ends, whichever way it ends.

    Raises LabError when something did not turn out as it should, and what `Lab.up` and `Datapath.load` raise.
    """
    processes.need_root()
    start = time.monotonic()
    # Nothing is half built or half taken down when Ctrl-C comes: it acts while the story is told.
    with interrupts.deferred() as interruptible:
        lab = _new_lab()
        stage = Stage(lab, tell)
        try:
            with interruptible():
                _show_lab(lab, tell, time.monotonic() - start)
            with _load(stage) as datapath, interruptible():
                failed = _play(stage, datapath)
        finally:
            lab.down()
            stage.close()
    tell("title", f"The lab is down, and nothing of it is left: {time.monotonic() - start:.1f} s in all")
    if failed:
        raise LabError(
            f"the demo did not show {' and '.join(failed)}", hint="`pydatapath doctor` finds what is missing"
        )


def _new_lab() -> Lab:
    """A lab with a name that no other has."""
    taken = {lab.name for lab in labs()}
    for name in ("demo", *(f"demo{number}" for number in range(2, 100))):
        if name not in taken:
            with contextlib.suppress(Conflict):  # another demo was quicker
                return Lab.up(LabSpec(name))
    raise Conflict("labs demo to demo99 are all there", hint="`pydatapath lab list` shows them, `lab down` ends them")


def _show_lab(lab: Lab, tell: Tell, seconds: float) -> None:
    tell("title", f"A cluster of {len(lab.nodes)} nodes on this machine, made of network namespaces: {seconds:.1f} s")
    for line in drawing.tree(lab):
        tell("line", line)
    tell("why", "A switch, nodes with a bridge each and routes between them, pods on the bridges.")


def _load(stage: Stage) -> Datapath:
    """Load the datapath on the first node, under an instance name of its own, and start the servers."""
    start = time.monotonic()
    datapath = Datapath.load(Options(node_name=NODE_NAME), stage.lab.name, stage.node.netns)
    stage.tell("title", f"The datapath on {stage.node.name}, compiled and loaded: {time.monotonic() - start:.1f} s")
    for one in datapath.status().interfaces:
        programs = ", ".join(f"{program['name']} ({program['hook']})" for program in one.programs)
        stage.tell("line", f"{one.role:6}  {one.name:5}  {programs}")
    stage.tell("why", "eBPF programs now meet every packet that a pod, the node itself or another node sends.")
    stage.start(stage.client, chapters.LOCALHOST, "app")
    stage.start_backends(*stage.backends)
    return datapath


def _play(stage: Stage, datapath: Datapath) -> list[str]:
    """All chapters, also after one that failed; gives the titles of those."""
    stage.tell("title", "A service, as a Kubernetes manifest writes it")
    for line in MANIFEST.read_text().splitlines():
        if not line.startswith("#"):
            stage.tell("line", line)
    for outcome in stage.apply(datapath):
        stage.tell("ok", outcome)
    failed = []
    for number, chapter in enumerate(chapters.CHAPTERS, start=1):
        stage.tell("title", f"{number}. {chapter.title}")
        try:
            chapter.play(stage, datapath)
        except (Failed, OSError) as error:
            stage.tell("failed", str(error))
            failed.append(f"{number} ({chapter.title.lower()})")
    return failed
