"""Two runs of a benchmark compared: what differs is found, and noise is not."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bench.compare import Line, least_p, main, permutation_p
from bench.compare import compare as compare_runs
from bench.measures import METRICS
from bench.report import Results, Sample

CASES = ("bridge", "vip-pydatapath", "vip-iptables")
KEYS = {"conn_per_s": 17_000.0, "gbit_per_s": 45.0, "tcp_p50_us": 8.0, "udp_p99_us": 8.0}
ENVIRONMENT: dict[str, object] = {"kernel": "6.1", "machine": "x86_64", "cpu": "one", "cores": 2}


def run(
    seed: int,
    rounds: int = 7,
    noise: float = 0.02,
    machine: float = 1.0,
    slower: float = 1.0,
    at: dict[str, int] | None = None,
) -> dict[str, Any]:
    """A made-up run; `slower`: by how much our VIP is, in each figure; `at`: the parameters of all samples."""
    chance = Random(seed)
    made = Results({case: case for case in CASES}, ["bridge"], {}, ENVIRONMENT, comparison="made-up", known=METRICS)
    for number in range(1, rounds + 1):
        for case in CASES:
            worse = slower if case == "vip-pydatapath" else 1.0
            values = {
                key: middle * machine * chance.gauss(1, noise) * (worse if key.endswith("_us") else 1 / worse)
                for key, middle in KEYS.items()
            }
            made.samples.append(Sample(number, case, "all", 0.0, 0.0, values, parameters=at or {}))
    return made.document()


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Line]:
    return compare_runs(Results.of(before), Results.of(after))


def verdicts(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {one.verdict for one in compare(before, after)}


def test_a_datapath_that_is_slower_by_a_tenth_is_found_in_every_figure() -> None:
    """And nothing else; the other way round it is better."""
    before, after = run(1), run(2, slower=1.1)
    found = {(one.case, one.metric.key): one.verdict for one in compare(before, after)}
    assert {key: verdict for key, verdict in found.items() if verdict != "equal"} == {
        ("vip-pydatapath", key): "worse" for key in KEYS
    }
    assert {one.verdict for one in compare(after, before) if one.case == "vip-pydatapath"} == {"better"}


def test_two_runs_of_the_same_are_equal() -> None:
    """Of a hundred pairs at most some, for that is how sure a verdict is; also where one machine is half as fast."""
    wrong = sum(verdicts(run(seed), run(1000 + seed, machine=0.5)) != {"equal"} for seed in range(100))
    assert wrong <= 8


def test_a_difference_that_is_sure_and_tiny_is_none() -> None:
    """One per cent, without any noise."""
    assert verdicts(run(1, noise=1e-6), run(2, noise=1e-6, slower=1.01)) == {"equal"}


def test_a_case_is_compared_with_itself_at_the_same_parameters_alone() -> None:
    """Ten times as slow at 1,000 services as at one is no change; at one of two sizes that both have, it is one."""
    one, many = run(1, at={"services": 1}), run(2, at={"services": 1000}, slower=10.0)
    assert compare(one, many) == []
    before = {**one, "samples": one["samples"] + many["samples"]}
    more = run(4, at={"services": 1000}, slower=12.0)
    after = {**one, "samples": run(3, at={"services": 1})["samples"] + more["samples"]}
    found = {(line.case, line.at): line.verdict for line in compare(before, after)}
    assert found == {
        ("vip-pydatapath", (("services", 1),)): "equal",
        ("vip-iptables", (("services", 1),)): "equal",
        ("vip-pydatapath", (("services", 1000),)): "worse",
        ("vip-iptables", (("services", 1000),)): "equal",
    }


def test_a_case_is_compared_by_the_first_of_its_own_baselines_that_both_runs_have() -> None:
    """The bridge did not run in one of them; where nothing is left to compare with, that is said."""
    own = {"vip-pydatapath": ["bridge", "vip-iptables"], "vip-iptables": ["bridge"]}
    before, after = ({**run(seed, slower=slower), "beside": own} for seed, slower in ((1, 1.0), (2, 1.1)))
    after["cases"] = {name: text for name, text in after["cases"].items() if name != "bridge"}
    found = {(line.case, line.verdict) for line in compare(before, after)}
    assert found == {("vip-pydatapath", "worse")}
    with pytest.raises(ValueError, match="they have no case and its baseline in common"):
        compare(before, {**after, "beside": {"vip-pydatapath": []}})


def test_runs_of_different_benchmarks_are_not_compared() -> None:
    """Even where they have cases of one name."""
    with pytest.raises(ValueError, match="A is a run of made-up, B of snat"):
        compare(run(1), {**run(2), "comparison": "snat"})


def test_p_is_exact_for_few_rounds_and_estimated_for_many() -> None:
    """Two of the twenty ways to deal three and three differ as much; of many rounds none that was tried does."""
    assert permutation_p([1, 2, 3], [11, 12, 13]) == pytest.approx(0.1)
    assert permutation_p([1.0] * 30, [1.0] * 30) == pytest.approx(1.0)
    assert permutation_p([*range(30)], [*range(100, 130)]) < 0.0002


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 3), (7, 7), (2, 5), (30, 30)])
def test_the_least_p_is_that_of_rounds_which_lie_wholly_apart(first: int, second: int) -> None:
    """So that it is known beforehand whether anything could be sure."""
    apart = permutation_p([*range(first)], [*range(1000, 1000 + second)])
    assert least_p(first, second) == pytest.approx(apart)


def test_the_command_says_what_is_worse_and_ends_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0, 1, and 2 for what is no result."""
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json", "few.json")]
    for path, made in zip(paths, (run(1), run(2, slower=1.1), [], run(3, rounds=2)), strict=True):
        path.write_text(json.dumps(made))
    first, second, none, few = map(str, paths)
    assert main([first, second]) == 1
    assert "8 figures: 4 worse, 0 better" in capsys.readouterr().out
    assert main([second, first]) == 0
    assert main([first, few]) == 0
    assert "7 and 2 rounds are too few" in capsys.readouterr().out
    for bad in (none, str(tmp_path / "absent.json")):
        assert main([first, bad]) == 2
        assert capsys.readouterr().err.startswith(f"Error: {bad}: ")
