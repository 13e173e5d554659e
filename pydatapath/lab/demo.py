"""The demo: a cluster comes up, packets reach a service in all the ways there are, and everything is gone again.

    run(lambda kind, text: print(text))

It looks at each result itself. What it shows is in pydatapath.lab.chapters, what it plays on in pydatapath.lab.stage.
"""

from __future__ import annotations

import contextlib
import time
from itertools import count

from pydatapath.datapath import Datapath
from pydatapath.errors import Conflict, LabError
from pydatapath.lab import chapters, drawing, interrupts, processes
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
    # Nothing is half built or half taken down when Ctrl-C comes: it acts in the chapters only.
    with interrupts.deferred() as interruptible:
        lab = _new_lab()
        stage = Stage(lab, tell)
        try:
            with interruptible():
                _show_lab(lab, tell, time.monotonic() - start)
            with _loaded(stage) as datapath, interruptible():
                failed = _play(stage, datapath)
        finally:
            lab.down()
            stage.close()
    tell("title", f"The lab is down again, and nothing is left of it: {time.monotonic() - start:.1f} s in all")
    if failed:
        raise LabError(f"the demo failed in {' and '.join(failed)}", hint="`pydatapath doctor` says what a host needs")


def _new_lab() -> Lab:
    """A lab with a name that no other has."""
    taken = {lab.name for lab in labs()}
    for number in count(1):
        name = f"demo{number if number > 1 else ''}"
        if name not in taken:
            # Somebody else's demo may have been quicker; only a hundred in vain are an error
            with contextlib.ExitStack() as last:
                if number < 100:
                    last.enter_context(contextlib.suppress(Conflict))
                return Lab.up(LabSpec(name))
    raise AssertionError("numbers have no end")
