"""Goals: the figure that decides, and whether it is reached, is missed, or was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.goals import GOALS, Goal, beside, flat, main, table
from bench.measures import METRICS, Metric
from bench.report import Results, Sample

Places = Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]]
ONE = Metric("one_s", "one change s", -1, 4)
NS = Metric("random_flow_ns", "ns, any flow", -1, 0)


def run(comparison: str, places: Places | None = None, **cases: Mapping[str, float]) -> Results:
    """One round of each case's figures, at no size or at several."""
    found = places or {("", 0): cases}
    names = {case: "" for own in found.values() for case in own}
    made = Results(names, [], {}, {}, comparison=comparison, known=(*METRICS, NS, ONE))
    for (size, number), own in found.items():
        parameters = {size: number} if size else {}
        made.samples += [Sample(1, case, "all", 0, 0, values, parameters=parameters) for case, values in own.items()]
    return made


def goal(text: str) -> Goal:
    return next(one for one in GOALS if one.text == text)


VETH = goal("VIP local, to the bare veth pair")


def test_the_least_figure_decides_and_is_named() -> None:
    """Of rates and latencies alike; processor time and p99.9 are no workload of a goal."""
    made = run(
        "run",
        veth={"conn_per_s": 100.0, "tcp_p50_us": 10.0, "tcp_p999_us": 1.0, "cpu_per_conn_us": 1.0},
        **{"vip-local": {"conn_per_s": 99.0, "tcp_p50_us": 10.4, "tcp_p999_us": 9.0, "cpu_per_conn_us": 9.0}},
    )
    assert VETH.verdict([made]) == ("0.962 (tcp p50 us to veth), the least of 2", "reached")


def test_every_figure_that_misses_is_named_the_worst_first() -> None:
    names = {"conn_per_s": 90.0, "req_per_s": 80.0, "gbit_per_s": 100.0}
    made = run("run", veth=dict.fromkeys(names, 100.0), **{"vip-local": names})
    said = "0.800 (req/s to veth), 0.900 (conn/s to veth); 1 of 3 reached"
    assert VETH.verdict([made]) == (said, "not reached")


def test_a_goal_that_says_above_is_not_reached_by_as_good_as() -> None:
    snat = {"conn_per_s": 100.0}
    made = run("snat", **{"snat-pydatapath": snat, "snat-iptables": snat, "outside": snat})
    assert goal("SNAT, to MASQUERADE by iptables and by nftables").verdict([made])[1] == "not reached"
    assert goal("SNAT, to plain routing").verdict([made]) == ("1.000 (conn/s to outside)", "reached")


def test_what_another_comparison_has_says_nothing() -> None:
    """Nor does a case that did not run."""
    same = {"conn_per_s": 100.0}
    assert VETH.verdict([run("crowd", veth=same, **{"vip-local": same})]) == ("-", "not measured")
    assert VETH.verdict([run("run", veth=same)]) == ("-", "not measured")
    assert VETH.verdict([]) == ("-", "not measured")


def test_many_services_are_ten_thousand_of_them() -> None:
    """Faster than either form of iptables; what was measured at one service does not count."""
    few = {"pydatapath": {"conn_per_s": 1.0}, "iptables": {"conn_per_s": 100.0}}
    many = {
        "pydatapath": {"conn_per_s": 100.0},
        "iptables": {"conn_per_s": 10.0},
        "iptables-legacy": {"conn_per_s": 40.0},
    }
    made = run("crowd", {("services", 1): few, ("services", 10_000): many})
    found = goal("new connections beside 10,000 services, to iptables").verdict([made])
    assert found == ("2.500 (to iptables-legacy), the least of 2", "reached")


def test_one_change_is_held_against_the_whole_table_and_the_increment() -> None:
    """By our command and by our API, each by itself."""
    took = {"pydatapath": 0.1, "pydatapath-api": 0.01, "iptables-legacy-whole": 1.5, "nftables": 0.3}
    made = run("programming", {("services", 10_000): {name: {"one_s": one} for name, one in took.items()}})
    found = {one.text: one.verdict([made]) for one in GOALS if one.text.startswith("one change")}
    assert [verdict for _, verdict in found.values()] == ["not reached", "not reached", "reached", "reached"]
    assert [said for said, _ in found.values()] == [
        "15.0 (to iptables-legacy-whole)",
        "3.000 (to nftables)",
        "150.0 (to iptables-legacy-whole)",
        "30.0 (to nftables)",
    ]


def test_a_known_packet_is_held_against_a_time() -> None:
    """The cases that it is about, and no other."""
    took = {"redirect": 500.0, "known-tcp": 120.0, "known-udp": 200.0}
    places = {("", 0): {name: {"ipv4_ns": one} for name, one in took.items()}}
    wanted = goal("a known flow's packet, translated, in 150 ns: 150 by what it took")
    found = wanted.verdict([run("packet_costs", places)])
    assert found == ("0.750 (known-udp: 200); 1 of 2 reached", "not reached")


def test_flat_is_beside_the_plain_way_at_the_same_size() -> None:
    """A machine that is half as fast later is no slope; a figure that no plain way has is held against itself."""
    look = flat("pydatapath", "bridge", "flows", 1000)
    places = {
        ("flows", 0): {"bridge": {"conn_per_s": 100.0}, "pydatapath": {"conn_per_s": 100.0}},
        ("flows", 10): {"pydatapath": {"random_flow_ns": 100.0}},
        ("flows", 1000): {
            "bridge": {"conn_per_s": 50.0},
            "pydatapath": {"conn_per_s": 49.0, "random_flow_ns": 200.0},
        },
    }
    found = {seen.what: seen.value for seen in look(run("crowd", places))}
    assert found == {"conn/s at 1,000 flows": pytest.approx(0.98), "ns, any flow at 1,000 flows": pytest.approx(0.5)}


def test_flat_is_not_measured_where_the_largest_size_is_missing() -> None:
    same = {"bridge": {"conn_per_s": 1.0}, "pydatapath": {"conn_per_s": 1.0}}
    made = run("crowd", {("services", 1): same, ("services", 10_000): same})
    assert flat("pydatapath", "bridge", "services", 50_000)(made) == []
    assert len(flat("pydatapath", "bridge", "services", 10_000)(made)) == 1


def test_a_ratio_needs_both_in_one_round() -> None:
    made = run("run", veth={"conn_per_s": 100.0})
    made.cases = {**made.cases, "ours": ""}
    made.samples.append(Sample(2, "ours", "all", 0, 0, {"conn_per_s": 100.0}))
    assert beside("ours", ["veth"])(made) == []


def test_the_command_prints_every_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From several files; a foreign one is refused."""
    same = {"conn_per_s": 100.0}
    run("run", veth=same, **{"vip-local": same}).write_json(tmp_path / "a.json")
    run("snat", outside=same, **{"snat-pydatapath": same}).write_json(tmp_path / "b.json")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert said.count("  reached\n") == 2
    assert all(one.text in said for one in GOALS)
    (tmp_path / "c.json").write_text("{}")
    assert main([str(tmp_path / "c.json")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path / 'c.json'}: ")
    assert len(table([]).rows) == len(GOALS)
