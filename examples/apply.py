"""Manifests are applied, as `kubectl apply` does: `python examples/apply.py NETNS FILE...`

Prints what differs, then what became of each object. `manifests.parse` takes a manifest that is a dict already.
"""

from __future__ import annotations

import sys

from pydatapath import Datapath, manifests


def main(netns: str, *files: str) -> None:
    """Raises Refused, with an error for each bad object, and does nothing then; NotLoaded where nothing is loaded."""
    objects = manifests.read(files).objects
    with Datapath.open(netns=netns) as datapath:
        differences, _ = datapath.diff(objects)
        print(*(one.diff for one in differences), sep="\n")
        print(*datapath.apply(objects), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
