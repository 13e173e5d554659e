"""What a benchmark's samples become: medians and quartiles, tables, a file that is checked, and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.document import SCHEMA_FILE, faults, read
from bench.markdown import BEGIN, END, replaced
from bench.measures import METRICS, Metric
from bench.plot import STYLE, draw, main
from bench.report import Results, Sample, Spread, shown
from bench.terminal import WIDTH, tables, text
from bench.words import unit

CASES = {"bridge": "plain", "ours": "by us", "theirs": "by them"}
SIZES = (1, 100, 10_000)


def run(*, sizes: tuple[int, ...] = (), rounds: int = 4) -> Results:
    """Theirs is twice as slow as the bridge, ours as fast; round 4 is twice as fast for all."""
    made = Results(CASES, ["bridge", "absent"], {"rounds": rounds, "duration": 3}, {"cpu": "one"}, comparison="made-up")
    for number in range(1, rounds + 1):
        for case, slower in (("bridge", 1), ("ours", 1), ("theirs", 2)):
            for size in sizes or (0,):
                fast = 1000.0 * number / slower
                values = {"conn_per_s": fast, "tcp_p50_us": 1000 / fast}
                parameters = {"services": size} if size else {}
                made.samples.append(Sample(number, case, "conn", 1.5, 0.0, values, parameters=parameters))
    return made


def test_quartiles_lie_around_the_median() -> None:
    """As numpy's default has them; of one value they are that value."""
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert Spread.of([]) is None
    assert Spread(2.5, 1.75, 3.25, 4).quartiles() == "-30% +30%"


def test_ratios_are_taken_within_a_round_and_above_one_is_better() -> None:
    """Also where less is better: half the speed and twice the latency are both 0.5, without any spread."""
    made = run()
    for metric in made.judged:
        assert made.ratio("theirs", "bridge", metric) == Spread(0.5, 0.5, 0.5, 4)


def test_a_figures_unit_is_the_end_of_its_key() -> None:
    """A rate is no time."""
    units = {"gbit_per_s": "Gbit/s", "conn_per_s": "1/s", "first_s": "s", "tcp_p50_us": "us", "flow_ns": "ns"}
    units |= {"streams_gbit_per_s": "Gbit/s", "cpu_per_conn_us": "us", "retransmits": ""}
    assert {key: unit(key) for key in units} == units
    assert shown((("endpoints", 1000), ("services", 1))) == "1,000 endpoints, 1 service"


def test_a_document_is_as_the_schema_says_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Figures, medians, ratios, parameters."""
    made = run(sizes=SIZES)
    made.samples.append(Sample(1, "ours", "conn", 0.0, 0.0, error="it broke", parameters={"services": 1}))
    made.write_json(tmp_path / "run.json")
    document = read(tmp_path / "run.json")
    again = Results.of(document)
    assert text(again) == text(made)
    assert again.samples == made.samples
    figure = next(
        one for one in document["figures"] if one["case"] == "theirs" and one["parameters"] == {"services": 100}
    )
    assert (figure["metric"], figure["median"], figure["q1"], figure["rounds"]) == ("conn_per_s", 1250.0, 875.0, 4)
    assert figure["times_as_good_as"] == {"bridge": {"median": 0.5, "q1": 0.5, "q3": 0.5, "rounds": 4}}
    assert document["metrics"]["conn_per_s"] == {"title": "conn/s", "unit": "1/s", "better": 1, "digits": 0}


def _without(name: str) -> Any:
    return lambda made: made.pop(name)


def _sample(**changed: object) -> Any:
    return lambda made: made["samples"][0].update(changed)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(_without("baselines"), "it is damaged: it has no 'baselines'", id="a part is missing"),
        pytest.param(_sample(round="one"), 'damaged: samples[0].round is "one", not of type integer', id="a type"),
        pytest.param(_sample(round=True), "damaged: samples[0].round is true, not of type integer", id="a boolean"),
        pytest.param(_sample(values={"x": None}), "damaged: samples[0].values.x is null", id="a member of a map"),
        pytest.param(_without("samples"), "it is no result of a benchmark of ours", id="a foreign file"),
        pytest.param(
            lambda made: made.update(schema="other/1"), "its schema is other/1, and pydatapath-bench/1", id="schema"
        ),
    ],
)
def test_a_foreign_or_damaged_file_is_one_clear_sentence(
    damage: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the file's name; for `bench.plot`, exit code 2."""
    document = json.loads(json.dumps(run().document()))
    damage(document)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert main([str(path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"Error: {raised.value}\n"


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_what_is_no_json_or_no_object_is_no_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: it is no "):
        read(tmp_path / "run.json")


def test_a_schema_with_a_word_that_the_check_does_not_know_is_refused() -> None:
    """Else it would look as if it held."""
    with pytest.raises(ValueError, match="'minimum'"):
        list(faults(3, {"type": "integer", "minimum": 4}))
    assert not list(faults(json.loads(json.dumps(run().document())), json.loads(SCHEMA_FILE.read_text())))


def test_a_terminal_has_a_table_for_each_workload_with_each_cases_own_baselines() -> None:
    """Parameters are named in the line; a baseline that did not run is not named."""
    made = run(sizes=SIZES)
    made.beside = {"ours": ["bridge", "theirs"], "theirs": ["absent"]}
    made.samples.append(Sample(1, "bridge", "udp", 0.0, 0.0, {"udp_per_s": 5000.0}, parameters={"services": 1}))
    lines = text(made).splitlines()
    assert "conn, by services" in lines
    assert "udp, by services" in lines
    found = [" ".join(line.split()) for line in lines]
    assert "10,000 services: ours bridge theirs 2,500 -30% +30% 1.00 2.00 0.4 -25% +50% 1.00 2.00" in found
    assert "10,000 services: theirs - 1,250 -30% +30% - 0.8 -25% +50% -" in found
    assert "1 service: bridge 5,000" in found, "what it has not is no column"


def test_no_table_is_wider_than_a_terminal_and_no_figure_is_missing() -> None:
    """One workload with every figure that there is: as many tables as it takes."""
    made = run()
    names = [f"{case}-of-the-longest-{place}" for place, case in enumerate(CASES)]
    made.cases, made.known = dict.fromkeys(names, ""), METRICS
    made.beside = dict.fromkeys(names[2:], names[:2])
    values = {metric.key: 12345.6789 for metric in METRICS}
    made.samples = [Sample(number, case, "all", 0.0, 0.0, values) for case in names for number in (1, 2)]
    made_of = [*tables(made)]
    assert len(made_of) > 2
    assert all(table.width <= WIDTH for table in made_of)
    titles = [title for table in made_of for title in table.header if title in {one.title for one in METRICS}]
    assert titles == [metric.title for metric in METRICS]


def test_markdown_has_a_heading_a_picture_and_a_table_for_each_figure(tmp_path: Path) -> None:
    """Links lead from the page to the pictures; the machine, its settings and what failed are told."""
    made = run(sizes=SIZES)
    made.environment = {"cpu": "one", "versions": {"wrk": "4.1"}, "settings": {"streams": 8}}
    made.notes.append("ipvs is left out: this kernel has none")
    made.samples.append(Sample(1, "theirs", "conn", 0.0, 0.0, error="it broke", parameters={"services": 1}))
    made.write_json(tmp_path / "2026-11-30-120000-run.json")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    words = [str(tmp_path / "2026-11-30-120000-run.json"), "--out", str(tmp_path / "docs" / "pictures")]
    assert main([*words, "--markdown", str(page)]) == 0
    said = page.read_text()
    for line in (
        "### New TCP connections (1/s), by services: more is better",
        "| case | median | lower quartile | upper quartile | times as good, in the same round |",
        "| 1 service: `bridge` | 2,500 | 1,750 | 3,250 | - |",
        "| 10,000 services: `theirs` | 1,250 | 875 | 1,625 | 0.50 x `bridge` |",
        "**Machine.** cpu: one.",
        "**Versions.** wrk 4.1.",
        "**Settings.** 4 interleaved rounds, 3 s each. rounds: 4; duration: 3; streams 8.",
        "- `theirs`: by them",
        "- Note: ipvs is left out: this kernel has none",
        "- Failed: round 1 theirs conn (1 service): it broke",
    ):
        assert line in said.splitlines(), said
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", said)
    assert links == ["pictures/run-services-conn_per_s.svg", "pictures/run-services-tcp_p50_us.svg"]
    assert all((page.parent / link).is_file() for link in links)
    assert "absent" not in said
    assert str(tmp_path) not in said


def test_a_page_keeps_what_is_written_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what lies between the two comments is new; a page without them is refused and left alone."""
    run().write_json(tmp_path / "run.json")
    page, bare = tmp_path / "page.md", tmp_path / "bare.md"
    page.write_text(f"# By hand\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    bare.write_text("nothing\n")
    for _ in range(2):
        assert main([str(tmp_path / "run.json"), "--into", str(page)]) == 0
    said = page.read_text()
    assert said.startswith(f"# By hand\n\n{BEGIN}\n\n## Goals\n")
    assert said.endswith(f"\n\n{END}\n\nafter\n")
    assert "\nold\n" not in said
    capsys.readouterr()
    assert main([str(tmp_path / "run.json"), "--into", str(bare)]) == 2
    assert "the page has no single part between" in capsys.readouterr().err
    assert bare.read_text() == "nothing\n"


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_each_comment_once_and_in_order_is_refused(page: str) -> None:
    """Else what is written by hand between two of them would be lost."""
    with pytest.raises(ValueError, match="the page has no single part between"):
        replaced(page, "new")


def test_pictures_of_two_runs_of_one_comparison_do_not_take_each_others_names(tmp_path: Path) -> None:
    """Without dates in their names they would."""
    paths = [tmp_path / f"2026-11-{day}-120000-run.json" for day in (29, 30)]
    for path in paths:
        run().write_json(path)
    assert main([*map(str, paths), "--out", str(tmp_path / "out")]) == 0
    assert len([*(tmp_path / "out").iterdir()]) == 4


def _texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_one_size_is_bars_with_figures_and_ratios_beside_them(tmp_path: Path) -> None:
    """A picture for each figure, that says what is better; the same bytes every time."""
    run().write_json(tmp_path / "run.json")
    for folder in ("one", "two"):
        assert main([str(tmp_path / "run.json"), "--out", str(tmp_path / folder), "--png"]) == 0
    made = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert made == [f"run-{key}.{kind}" for key in ("conn_per_s", "tcp_p50_us") for kind in ("png", "svg")]
    for name in made:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    found = [text.strip() for text in _texts(tmp_path / "one" / "run-conn_per_s.svg")]
    for word in (*CASES, "new TCP connections (1/s): more is better", "2,500", "1,250", "0.50 x bridge", "conn/s"):
        assert word in found
    assert (
        "median and quartiles of 4 rounds; on the right: times as good as the case named there, in the same round"
        in found
    )
    latency = _texts(tmp_path / "one" / "run-tcp_p50_us.svg")
    assert "TCP latency, half the round trip, median (us): less is better" in latency


def test_several_sizes_are_a_curve_for_each_case(tmp_path: Path) -> None:
    """Every size is named at the axis, and cases differ by colour and by marker."""
    run(sizes=SIZES).write_json(tmp_path / "run.json")
    assert main([str(tmp_path / "run.json"), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "run-services-conn_per_s.svg",
        "run-services-tcp_p50_us.svg",
    }
    picture = tmp_path / "run-services-conn_per_s.svg"
    found = _texts(picture)
    for word in (*CASES, "1", "100", "10,000", "number of services", "conn/s"):
        assert word in found
    colours = set(re.findall(r"stroke: (#[0-9a-f]{6})", picture.read_text().lower()))
    assert {"#0072b2", "#d55e00", "#009e73"} <= colours


@pytest.mark.parametrize("sizes", [(), (0, 10_000, 100_000, 1_000_000), (1, 100, 1_000, 10_000, 50_000)])
def test_no_label_lies_on_another_one(sizes: tuple[int, ...]) -> None:
    """With the longest names and titles that there are, and all that a case has beside its bar."""
    import itertools

    import matplotlib as mpl
    from matplotlib.text import Text

    made = run()
    made.cases = {f"a-case-with-a-long-name-{number}": "" for number in range(7)}
    made.beside, made.samples = {case: [*made.cases][:2] for case in made.cases}, []
    metrics = [Metric(key, title, -1, 4) for key, title in (("tcp_p99_us", "tcp p99 us"), ("first_s", "first load s"))]
    made.known = metrics
    for number, (place, case), size in itertools.product(range(3), enumerate(made.cases), sizes or (None,)):
        values = {metric.key: 12345.6789 * (1 + number) * 3**place for metric in metrics}
        parameters = {} if size is None else {"services": size}
        made.samples.append(Sample(number, case, "all", 0.0, 0.0, values, parameters=parameters))
    with mpl.rc_context(STYLE):
        pictures = [*draw(made)]
        assert len(pictures) == len(metrics)
        for picture in pictures:
            picture.figure.draw_without_rendering()
            texts = [one for one in picture.figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
            boxes = [(one.get_text(), one.get_window_extent()) for one in texts]
            for (text, box), (other, another) in itertools.combinations(boxes, 2):
                assert not box.overlaps(another), (text, other)


def test_every_figure_has_its_own_key() -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)
