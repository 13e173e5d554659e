"""Runs a command line of pydatapath as nobody: `python tests/as_nobody.py status`.

Everything is imported while we are root, so that it works wherever the checkout lies, also in a folder of root's own.
"""

import importlib
import os
import pkgutil
import sys

import pydatapath
from pydatapath.cli import main

NOBODY = 65534


def import_all() -> None:
    """Every module of the package; what is imported when it is called is there by then."""
    for module in pkgutil.walk_packages(pydatapath.__path__, "pydatapath."):
        importlib.import_module(module.name)


if __name__ == "__main__":
    import_all()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    main(sys.argv[1:])
