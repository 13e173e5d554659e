"""The command line. Each command lives in a module of its own, which is imported only when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Any, Final

import click

from pydatapath.cli.target import Target, complain, unsaid
from pydatapath.errors import CompileError, DatapathError
from pydatapath.version import __version__

__all__ = ["cli", "main"]

# Command name to module and attribute: what is not called is not imported
COMMANDS: Final = {
    "load": "node:load",
    "unload": "node:unload",
    "status": "node:status",
    "repair": "node:repair",
    "doctor": "node:doctor",
    "apply": "objects:apply",
    "diff": "objects:diff",
    "delete": "objects:delete",
    "export": "objects:export",
    "node": "nodes:node",
    "service": "service:service",
    "backend": "backend:backend",
    "flow": "flow:flow",
    "nat": "nat:nat",
    "port-forward": "port_forward:port_forward",
    "lab": "lab:lab",
}
SUMMARIES: Final = {
    "load": "Load the datapath into the kernel, or exchange the one that is loaded.",
    "unload": "Take the datapath out of the kernel; the host is left as it was.",
    "status": "What is loaded, where, since when; how full the maps are; what drifted.",
    "repair": "Mend what status calls drift; what is as it should be stays.",
    "doctor": "Each thing this host needs, found or not, and what to do about it.",
    "apply": "Make Services, EndpointSlices and Nodes of Kubernetes manifests.",
    "diff": "What apply would change, as unified diffs of the manifests.",
    "delete": "Delete objects, by manifest or by kind and name.",
    "export": "What is applied, as manifests that apply takes back.",
    "node": "List the nodes that Node objects name.",
    "service": "List, show, add and delete services.",
    "backend": "List, add and remove backends of services.",
    "flow": "List and count the flows that are tracked.",
    "nat": "What leaves the cluster behind the node's address: its ports, and who has them.",
    "port-forward": "List, add and delete ports of the node that lead to a pod.",
    "lab": "A cluster made of network namespaces, to try it all without a second machine.",
}


class LazyGroup(click.Group):
    """A group whose commands are known by name, and imported when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a working day, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"pydatapath.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries stand here, so that `--help` need not import every command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="pydatapath")
@click.option(
    "--instance",
    default="default",
    envvar="PYDATAPATH_INSTANCE",
    metavar="NAME",
    help="Which datapath, where several are on one machine.",
)
@click.option(
    "--netns",
    default="",
    envvar="PYDATAPATH_NETNS",
    metavar="NAME|PATH|PID",
    help="The network namespace that is the node (default: the current one).",
)
@click.option("-v", "--verbose", is_flag=True, envvar="PYDATAPATH_VERBOSE", help="Say more; on errors, whole logs.")
@click.option("-q", "--quiet", is_flag=True, envvar="PYDATAPATH_QUIET", help="Say nothing but errors.")
@click.pass_context
def cli(ctx: click.Context, instance: str, netns: str, verbose: bool, quiet: bool) -> None:
    """Service load balancing in the kernel, by eBPF at tc hooks, steered by Kubernetes manifests.

    \b
    Examples:
      pydatapath doctor
      pydatapath load --bridge br0 --uplink eth0
      pydatapath apply -f web.yaml
      pydatapath service list
      pydatapath lab demo
    """
    if (ctx.obj or {}).get("process") and ctx.invoked_subcommand != "lab":  # a lab mounts, and runs what it is told
        from pydatapath.kernel import capabilities

        capabilities.keep_needed()
    ctx.obj = Target(instance, netns, verbose, quiet)
    if os.environ.get("NO_COLOR"):  # https://no-color.org; otherwise click decides: colours on a terminal only
        ctx.color = False


def main(arguments: list[str] | None = None) -> None:
    """The entry point: what we raise on purpose becomes one line `Error: ...`, and maybe `Hint: ...`; exit code 1."""
    context: dict[str, Any] = {"process": arguments is None}
    try:
        cli.main(args=arguments, prog_name="pydatapath", standalone_mode=True, obj=context)
    except DatapathError as error:
        complain(error)
        wanted = {"-v", "--verbose"} & set(sys.argv if arguments is None else arguments)
        if wanted and isinstance(error, CompileError) and error.log:
            click.echo(error.log, err=True)
        sys.exit(1)
    except (MemoryError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and _is_of_output(error):
            complain(unsaid(error))
        elif what := _short_of(error):
            complain(DatapathError(f"{what} for this command", hint="run the command again where it has more"))
        else:
            raise
        sys.exit(1)


def _is_of_output(error: OSError) -> bool:
    """Whether click has raised it, to whom all is given that is said."""
    return any(frame.f_globals.get("__name__") == "click.utils" for frame, _ in traceback.walk_tb(error.__traceback__))


def _short_of(error: Exception) -> str:
    """What there is not enough of, "" for another error. Of memory whoever is short: Python, the dynamic loader, the
    kernel for a process or a thread.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{os.strerror(number)}: the limit of file descriptors is too low"
    told = isinstance(error, MemoryError) or number == errno.ENOMEM
    if told or any(one in str(error) for one in ("failed to map segment", "can't start new thread")):
        return "there is not enough memory"
    return ""
