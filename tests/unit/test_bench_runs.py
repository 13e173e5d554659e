"""How a benchmark is run: which cases, how long it may take, and a run that was stopped is taken up or refused."""

from __future__ import annotations

import datetime
import importlib
import io
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import bench.__main__ as names
from bench import snat
from bench.blocks import OVERHEAD_S, events
from bench.environment import environment
from bench.files import RESULTS, check_writable, result_path, save
from bench.options import check_resume, make_parser, settle
from bench.paths import Case, nothing
from bench.processes import BenchError
from bench.progress import Progress, duration
from bench.report import Results, Sample
from bench.resume import STOPPED, TOOK, complete_blocks, take_up, take_up_sizes
from bench.rounds import choose_cases, note_losses
from bench.run import COMPARISON, QUICK

CASES = ["veth", "bridge"]
ARGUMENTS = {"rounds": 3, "duration": 1, "cases": CASES, "measures": ["conn", "requests"], "pin": True, "backends": 2}
ENVIRONMENT = {"kernel": "6.1", "machine": "x86_64", "cpu": "one", "cores": 2, "versions": {"wrk": "4.1"}}


def sample(number: int, case: str, measure: str = "conn") -> Sample:
    return Sample(number, case, measure, float(number), 0.0, {"conn_per_s": 1000.0 + number})


def results(*samples: Sample, **more: Any) -> Results:
    return Results(
        dict.fromkeys(CASES, ""), ["veth"], {**ARGUMENTS, **more}, {**ENVIRONMENT, "load_average": (0.1, 0.2, 0.3)},
        samples=list(samples),
    )  # fmt: skip


def arguments(*words: str) -> Namespace:
    found = make_parser(COMPARISON).parse_args(words)
    settle(COMPARISON, found)
    return found


# Which cases and measures


def lacking(lack: str) -> Case:
    return Case("ipvs", "", nothing, lack=lambda: lack)


def test_a_case_that_cannot_run_here_is_left_out_and_the_reason_said() -> None:
    known = {"bridge": Case("bridge", "", nothing), "ipvs": lacking("this kernel has no IPVS")}
    cases, notes = choose_cases(known, None)
    assert [case.name for case in cases] == ["bridge"]
    assert notes == ["skipped ipvs: this kernel has no IPVS"]


def test_a_case_that_was_asked_for_by_name_and_cannot_run_is_an_error() -> None:
    with pytest.raises(BenchError, match="ipvs cannot run here: this kernel has no IPVS"):
        choose_cases({"ipvs": lacking("this kernel has no IPVS")}, ["ipvs"])
    assert choose_cases({"ipvs": lacking("")}, ["ipvs"])[1] == []


def test_a_preset_fills_in_what_the_user_left_open_and_nothing_else() -> None:
    quick, mine, full = (
        arguments("--quick"),
        arguments("--quick", "--rounds", "1", "--measures", "conn"),
        arguments("--full"),
    )
    assert (quick.rounds, quick.duration, tuple(quick.measures)) == (3, 1, QUICK)
    assert (mine.rounds, mine.duration, mine.measures) == (1, 1, ["conn"])
    assert full.rounds >= 7
    assert set(full.measures) == {*COMPARISON.measures} - {*COMPARISON.extra}
    assert (arguments().rounds, arguments().duration) == (5, 3)


def test_only_and_cases_are_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments("--only", "veth,vip-local").cases == arguments("--cases", "veth,vip-local").cases
    for words in (["--only", "bridges"], ["--only", ""], ["--rounds", "0"], ["--quick", "--full"]):
        with pytest.raises(SystemExit) as ended:
            arguments(*words)
        assert ended.value.code == 2
    assert "bridges: choose from veth, bridge, " in capsys.readouterr().err


def test_the_full_run_has_every_way_and_snat() -> None:
    assert {*snat.CASES} < {*COMPARISON.cases}
    assert {"veth", "bridge", "routed", "vip-local", "vip-remote", "remote-routed"} < {*COMPARISON.cases}
    assert {*COMPARISON.baselines} < {*COMPARISON.cases}


# How long it takes


def test_the_time_left_is_learnt_from_what_has_been_done() -> None:
    """Three of ten expected seconds took six: the other seven take fourteen."""
    now = [100.0]
    progress = Progress(10.0, io.StringIO(), lambda: now[0])
    assert progress.left_s == pytest.approx(10.0)
    progress.step(3.0)
    now[0] += 6.0
    assert progress.left_s == pytest.approx(14.0)
    assert str(progress) == " 30%, about 14 s left"
    progress.step(7.0)
    assert progress.left_s == pytest.approx(0.0)


def test_a_duration_is_said_in_minutes_where_seconds_would_be_many() -> None:
    assert [duration(one) for one in (0.2, 40, 99, 130, 2280)] == ["1 s", "40 s", "99 s", "2 min", "38 min"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_and_a_log_only_those_that_are_asked_for() -> None:
    log, terminal = io.StringIO(), Terminal()
    for output in (log, terminal):
        progress = Progress(10.0, output, lambda: 0.0)
        progress.show("a long one", line=True)
        progress.show("short", line=False)
        progress.say("failed")
    assert log.getvalue() == "  0%, about 10 s left: a long one\nfailed\n"
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("\rfailed\n")
    assert "short     \r" in terminal.getvalue(), "it covers the longer one before"


# A run that was stopped


def test_only_measures_that_every_case_had_are_kept() -> None:
    whole = [sample(1, "veth"), sample(1, "bridge")]
    torn = [sample(1, "veth", "requests"), sample(2, "bridge")]
    assert complete_blocks([*whole, *torn], CASES) == whole


def test_a_run_is_taken_up_where_it_was_stopped(tmp_path: Path) -> None:
    """Also where more rounds are wanted now, another patience, or what a preset said is said by hand."""
    path = tmp_path / "run.json"
    whole = [sample(1, case, measure) for measure in ("conn", "requests") for case in CASES]
    save(results(*whole, sample(2, "veth"), wait_quiet=5, preset="full"), path)
    wanted = {**ARGUMENTS, "rounds": 9, "wait_quiet": 0, "preset": None, "json": str(path), "resume": True}
    assert take_up(path, wanted, ENVIRONMENT) == whole
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"], "the file beside it is gone"


@pytest.mark.parametrize(
    ("setting", "surroundings", "complaint"),
    [
        ({"duration": 2}, {}, "duration was 1 and is 2"),
        ({"cases": ["veth"]}, {}, r"cases was \['veth', 'bridge'\] and is \['veth'\]"),
        ({"rounds": 2}, {}, "rounds was 3 and is 2"),
        ({"pin": False}, {}, "pin was True and is False"),
        ({}, {"kernel": "6.18"}, "kernel was 6.1 and is 6.18"),
        ({}, {"versions": {"wrk": "4.2"}}, "wrk was 4.1 and is 4.2"),
    ],
)
def test_another_run_is_not_taken_up(
    tmp_path: Path, setting: dict[str, Any], surroundings: dict[str, Any], complaint: str
) -> None:
    """Figures of two kinds in one table would be worse than none."""
    path = tmp_path / "run.json"
    save(results(sample(1, "veth")), path)
    with pytest.raises(BenchError, match=f"that was another run: {complaint}"):
        take_up(path, {**ARGUMENTS, **setting}, {**ENVIRONMENT, **surroundings})


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"samples": []}'])
def test_what_is_no_run_is_not_taken_up(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchError, match="cannot be taken up"):
        take_up(path, ARGUMENTS, ENVIRONMENT)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stops us while it is being written leaves the one before, and nothing beside it."""
    path = tmp_path / "run.json"
    save(results(sample(1, "veth")), path)
    before = path.read_text()

    def stopped(_self: Results, where: Path) -> None:
        where.write_text('{"half":')
        raise KeyboardInterrupt

    monkeypatch.setattr(Results, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        save(results(), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(before)["arguments"]["rounds"] == 3


def sized(size: int) -> Sample:
    return Sample(1, "veth", "conn", float(size), 0.0, {"conn_per_s": 1000.0}, parameters={"services": size})


def test_a_run_of_sizes_goes_on_at_the_first_one_that_is_not_finished(tmp_path: Path) -> None:
    """Notes of what was left out stay; those on the run that was stopped do not."""
    path = tmp_path / "run.json"
    made = results(sized(1), sized(100))
    made.finished, made.notes = [{"services": 1}], ["ipvs is left out", "here too", STOPPED, f"{TOOK}3 s"]
    save(made, path)
    again = results()
    again.notes = ["ipvs is left out"]
    take_up_sizes(path, again)
    assert again.samples == [sized(1)]
    assert again.finished == [{"services": 1}]
    assert again.notes == ["ipvs is left out", "here too", "taken up again after 1 sizes"]


@pytest.mark.parametrize("rounds", [2, 4])
def test_a_run_of_sizes_with_other_rounds_is_another_run(tmp_path: Path, rounds: int) -> None:
    """Else sizes would have different numbers of them."""
    save(results(sized(1)), tmp_path / "run.json")
    with pytest.raises(BenchError, match=f"rounds was 3 and is {rounds}"):
        take_up_sizes(tmp_path / "run.json", results(rounds=rounds))


def test_every_comparison_puts_its_result_into_one_folder_by_moment_and_name() -> None:
    """Unless it is told where."""
    moment = datetime.datetime(2026, 11, 30, 9, 5, 7, tzinfo=datetime.UTC)
    assert result_path("crowd", None, moment) == RESULTS / "2026-11-30-090507-crowd.json"
    assert result_path("crowd", Path("mine.json"), moment) == Path("mine.json")


def test_a_folder_that_is_not_there_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"absent/run\.json: cannot be written there"):
        check_writable(tmp_path / "absent" / "run.json")
    check_writable(tmp_path / "run.json")


def test_to_go_on_needs_a_file() -> None:
    with pytest.raises(BenchError, match="--resume needs --json FILE"):
        check_resume(arguments("--resume"))
    check_resume(arguments("--resume", "--json", "run.json"))


def test_every_baseline_of_a_case_is_a_case_of_the_same_comparison() -> None:
    """And what is plain has none but the plainer."""
    for case in COMPARISON.cases.values():
        assert {*case.beside} < {*COMPARISON.cases} - {case.name}, case.name
    assert COMPARISON.cases["vip-remote"].beside == ["remote-routed"]
    assert not COMPARISON.cases["veth"].beside
    assert {name for name, case in COMPARISON.cases.items() if "outside" in case.beside} == {*snat.CASES} - {"outside"}


def test_the_environment_names_every_tool_and_both_forms_of_iptables() -> None:
    """One that is not installed is "unknown", never a missing line."""
    found = environment()
    assert {"ipvsadm", "iptables-nft", "iptables-legacy", "nft", "wrk"} <= {*found["versions"]}
    assert {"wrk_connections", "net.core.bpf_jit_enable"} <= {*found["settings"]}
    assert {"cores", "kernel", "memory", "distribution"} < {*found}
    assert found["cpu"] != "unknown"


def test_losses_are_told_once_for_each_case() -> None:
    """A flood loses in every round, which are no news seven times over."""
    made = results(*(Sample(number, "veth", "udp-packets", 0.0, 0.0, {"udp_lost": 10.0 * number}) for number in (1, 2)))
    note_losses(made)
    assert made.notes == ["veth: udp_lost in 2 measurements, 20 at most"]


# The benchmarks' names


def test_every_benchmark_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert names.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in names.NAMES)
    assert names.main(["walk"]) == 2
    assert capsys.readouterr().err.startswith("Error: there is no benchmark walk: choose from run, ")


@pytest.mark.parametrize("word", [*names.NAMES])
def test_the_rest_of_the_line_is_the_benchmarks_own(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that takes no arguments reads the command line as well."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(SystemExit) as ended:
        names.main([word, "--help"])
    assert not ended.value.code
    assert word in capsys.readouterr().out


# One measure after the other


@pytest.mark.parametrize("asleep_s", [0.0, 0.4, 2.15])
@pytest.mark.parametrize("seconds", [1, 2, 5])
def test_no_two_measurements_work_at_once_and_nobody_waits_for_a_sleeping_tool(seconds: int, asleep_s: float) -> None:
    """However long a tool sleeps first, seven take seven times their work, its overhead, and one sleep."""
    found = events(7, seconds, asleep_s)
    at = {(what, index): when for when, what, index in found}
    assert len(at) == len(found) == 21
    for index in range(7):
        assert at["work", index] - at["start", index] == pytest.approx(asleep_s)
        assert at["end", index] - at["work", index] == pytest.approx(seconds)
    for index in range(6):
        assert at["end", index] <= at["work", index + 1]
    assert [event[2] for event in found if event[1] == "end"] == list(range(7))
    assert found[-1][0] <= asleep_s + 7 * (seconds + OVERHEAD_S)


def test_a_tool_that_does_not_sleep_is_started_when_the_one_before_has_ended() -> None:
    """For its end may be later than planned."""
    assert [what for _at, what, _index in events(3, 2, 0.0)] == ["start", "work", "end"] * 3


@pytest.mark.parametrize("name", ["run", "snat"])
def test_every_comparison_can_be_asked_for_its_options(name: str) -> None:
    """Also one that has no kinds of runs of its own."""
    comparison = importlib.import_module(f"bench.{name}").COMPARISON
    assert "--rounds" in make_parser(comparison).format_help()
