"""A lab that goes down takes the datapaths in it along: no pin and no record outlives its namespaces."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pydatapath import Datapath, instance
from pydatapath.cli import cli
from pydatapath.kernel import bpffs, links
from pydatapath.lab import Lab, LabSpec
from pydatapath.lab.instances import living_in
from pydatapath.node import Options

NAME = f"i{os.getpid()}"  # of this process, should two runs share /run/netns


def folders() -> set[Path]:
    return {*instance.RUN.rglob("*"), *(bpffs.BPFFS / "pydatapath").rglob("*")}


def test_down_unloads_what_is_loaded_on_its_nodes():
    """Whatever they are called; an instance elsewhere, even of the same name, stays."""
    before = folders()
    with Lab.up(LabSpec(f"{NAME}-stays", nodes=1, pods=1)) as other:
        Datapath.load(Options(), "default", other.node(1).netns).close()
        elsewhere = folders()
        with Lab.up(LabSpec(NAME)) as lab:
            Datapath.load(Options(), "default", lab.node(1).netns).close()
            # as a path: the records keep another name for the namespace than the lab does
            Datapath.load(Options(), "second", f"/run/netns/{lab.node(2).netns}").close()
            assert len(living_in([host.netns for host in lab.hosts])) == 2
            unloaded = {(one.name, one.netns) for one in lab.down()}
        assert unloaded == {("default", f"{NAME}-node1"), ("second", f"{NAME}-node2")}
        assert folders() == elsewhere
        with Datapath.open("default", other.node(1).netns) as datapath:
            assert datapath.status().drift == ()
    assert folders() == before


def test_the_command_says_what_it_unloads():
    name = f"{NAME}-cli"
    lab = Lab.up(LabSpec(name, nodes=1, pods=1))
    Datapath.load(Options(), "default", lab.node(1).netns).close()
    result = CliRunner().invoke(cli, ["lab", "down", "--name", name])
    assert result.output == f"instance default unloaded from {name}-node1\nlab {name}: down\n"


def test_down_never_unloads_a_datapath_of_the_machine_itself():
    """Should somebody have given a name of the lab to the namespace that we are in."""
    name = f"{NAME}-own"
    links.create_namespace(f"{name}-switch")
    subprocess.run(["ip", "netns", "attach", f"{name}-node1", str(os.getpid())], check=True)
    own = instance.here("machine", "")
    own.directory.mkdir(parents=True)
    try:
        assert living_in([f"{name}-node1"]) == []
        assert Lab.open(name).down() == []
        assert own.directory.exists()
    finally:
        own.remove()


@pytest.mark.parametrize("stray", ["default/no-number", "default/7", "a-file"])
def test_what_is_no_datapath_of_the_lab_is_left_alone(stray: str):
    path = instance.RUN / stray
    path.mkdir(parents=True)
    try:
        with Lab.up(LabSpec(f"{NAME}-stray", nodes=1, pods=1)) as lab:
            assert lab.down() == []
        assert path.exists()
    finally:
        path.rmdir()
        if path.parent != instance.RUN:
            path.parent.rmdir()
