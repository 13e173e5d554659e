"""The table of rules and tests: it is what the tests make of it, and no lie gets into it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

RULES = """
S1.must = "A service is served"
S2.must = "Its ports are apart"
C1.must = "A pod reaches itself"
C1.later = "IPv6"
N1.must = "A mapping holds"
N1.not-ours = "it's netfilter's"
"""
TESTS = """
def test_S1_S2_a_service_is_served():
    assert True
"""
ROWS = """
import pytest
from bed import Case

def case(why): ...

ROWS = [Case("S2 a case of a list"), case("a second")]
MORE = [*ROWS, Case("S1 S2, a number and what is none"), Case(f"C1 made {1}")]
ONCE_MORE = [Case("N1 a list that no test names")]

@pytest.mark.parametrize("row", MORE)
def test_rows(row):
    assert row

class TestMore:
    @pytest.mark.parametrize("row", [pytest.param(1, id="N1 what pytest shows"), pytest.param("C1 a value")])
    def test_params(self, row):
        assert row

@pytest.mark.parametrize("row", [1, 2], ids=["N1", "the other"])
def test_ids(row):
    assert Case("C1 made while the test runs")

@pytest.mark.parametrize("row", [ROWS[1], *(row for row in [Case("C1 perhaps")] if row.odd), *some(Case("C1 perhaps"))])
def test_chosen(row):
    assert row
"""
IDLE = """
import pytest

@pytest.mark.skip(reason="later")
def test_C1_skipped():
    assert True

@pytest.mark.xfail
class TestC:
    def test_C1_fails(self):
        assert False

def test_C1_nothing():
    \"\"\"Only words.\"\"\"

def test_C1_gives_up():
    pytest.skip("later")
    assert True

def helper_C1():
    assert True

@pytest.mark.skipif(True, reason="this machine cannot")
def test_S1_runs_where_it_can():
    assert True
"""


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    """The tool, which is no package."""
    spec = importlib.util.spec_from_file_location("rules", ROOT / "tools" / "rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository whose rules and tests fit."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "docs" / "rules.toml").write_text(RULES)
    (tmp_path / "tests" / "unit" / "test_a.py").write_text(TESTS)
    return tmp_path


def carried(rules: ModuleType, tree: Path, text: str) -> dict[str, list[str]]:
    """Which tests of one more file carry which rule, in brackets where by a case's name."""
    (tree / "tests" / "unit" / "test_a.py").write_text(text)
    found = rules.carriers_below(tree / "tests")
    return {
        number: [f"[{one.place.partition('::')[2]}]" if one.case else one.place.partition("::")[2] for one in carriers]
        for number, carriers in sorted(found.items())
    }


def test_the_table_is_what_the_tests_make_of_it(rules: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Of this repository: every rule has a test or says why not, and docs/rules.md is up to date (`make rules`)."""
    assert rules.main(["--check"]) == 0, capsys.readouterr().err


def test_every_test_that_the_page_about_NAT_names_is_there(rules: ModuleType) -> None:
    """In the file that stands before it, or whose letters do: "t `test_a`, `test_b`" are of traffic/test_nat.py."""
    text = (ROOT / "docs" / "nat.md").read_text()
    files = {letters: file for file, letters in re.findall(r"`(tests/\S+\.py)` \((\w+)\)", text)}
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    named = re.compile(r"(?:\b(\w{1,2}) )?`(?:(\w+/test_\w+\.py)(?:::)?)?(test_\w+)?`")
    absent, seen = [], 0
    for row in rows:
        file = ""
        for letters, path, name in named.findall(row.rsplit(" | ", 1)[-1]):
            file = f"tests/{path}" if path else files.get(letters, letters) or file
            there = ROOT / file
            seen += 1
            if not there.is_file() or (name and name not in {one for one, *_ in rules.tests_of(parsed(there))}):
                absent.append(f"{file}::{name}")
    assert not absent
    assert seen == len(re.findall(r"\btest_\w+`|/test_\w+\.py`", "\n".join(rows)))  # none is written in another way
    assert seen > 50


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_every_rule_is_there(rules: ModuleType) -> None:
    """All of the services, the choices, of NAT and flows, and the faults, in their order."""
    parts = {"S": 108, "C": 14, "N": 108, "F": 32}
    numbers = [f"{part}{number}" for part, most in parts.items() for number in range(1, most + 1)]
    assert list(rules.rules_of(ROOT / "docs" / "rules.toml")) == numbers


def test_what_is_written_passes_the_check(rules: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has each rule with its tests and state, and the counts; written again it is the same."""
    assert rules.main([], tree) == 0
    assert capsys.readouterr().out == "4 rules: 2 tested (0 of them partly), 1 later, 1 not ours.\n"
    text = (tree / "docs" / "rules.md").read_text()
    test = "`unit/test_a.py::test_S1_S2_a_service_is_served`"
    assert [line for line in text.splitlines() if line.startswith(("| S", "| C", "| N", "4 rules"))] == [
        "4 rules: 2 tested (0 of them partly), 1 later, 1 not ours.",
        f"| S1 | A service is served | {test} | tested |",
        f"| S2 | Its ports are apart | {test} | tested |",
        "| C1 | A pod reaches itself |  | later: IPv6 |",
        "| N1 | A mapping holds |  | not ours: it's netfilter's |",
    ]
    assert rules.main(["--check"], tree) == 0
    assert rules.main([], tree) == 0
    assert (tree / "docs" / "rules.md").read_text() == text


def test_more_than_three_tests_are_counted(rules: ModuleType, tree: Path) -> None:
    """Those that carry the number in their own names come first, and partly says what they leave out."""
    (tree / "docs" / "rules.toml").write_text('S1.must = "A | B"\nS1.partly = "no B"\n')
    (tree / "tests" / "test_a.py").write_text(
        'import pytest\n@pytest.mark.parametrize("row", [1], ids=["S1 one"])\ndef test_a(row):\n    assert row\n'
    )
    (tree / "tests" / "unit" / "test_a.py").write_text("".join(f"def test_S1_{x}(): assert 1\n" for x in "dcb"))
    assert rules.main([], tree) == 0
    tests = "<br>".join(f"`unit/test_a.py::test_S1_{x}`" for x in "bcd")
    line = rf"| S1 | A \| B | {tests}<br>+1 | tested; partly: no B |"
    assert line in (tree / "docs" / "rules.md").read_text().splitlines()


def test_a_case_counts_where_its_name_begins_with_the_number(rules: ModuleType, tree: Path) -> None:
    """In the test's own decorators or in lists that they name; not what is chosen from them, or made by running it."""
    assert carried(rules, tree, ROWS) == {
        "N1": ["[TestMore::test_params]", "[test_ids]"],
        "S1": ["[test_rows]"],
        "S2": ["[test_rows]"],
    }


def test_what_never_runs_carries_nothing(rules: ModuleType, tree: Path) -> None:
    """Skipped, expected to fail, empty or no test; a skip with a condition is CI's to judge."""
    assert carried(rules, tree, IDLE) == {"S1": ["test_S1_runs_where_it_can"]}
    assert carried(rules, tree, f"import pytest\npytestmark = pytest.mark.skip\n{TESTS}") == {}


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        pytest.param(
            "tests/unit/test_b.py",
            "def test_N9_x(): assert 1\n",
            "tests/unit/test_b.py::test_N9_x carries N9, which docs/rules.toml does not know",
            id="a number that nobody knows",
        ),
        pytest.param(
            "tests/unit/test_b.py",
            "def test_C1_x(): assert 1\n",
            "C1 is said to be later, and tests/unit/test_b.py::test_C1_x carries it",
            id="later, and tested",
        ),
        pytest.param(
            "tests/unit/test_b.py",
            "def test_N1_x(): assert 1\n",
            "N1 is said to be not ours, and tests/unit/test_b.py::test_N1_x carries it",
            id="not ours, and tested",
        ),
        pytest.param(
            "tests/unit/test_a.py",
            "def test_S2_x(): assert 1\n",
            "S1 has neither a test nor a state in docs/rules.toml",
            id="a test that is gone",
        ),
        pytest.param(
            "docs/rules.toml",
            RULES.replace("later", "partly"),
            "C1 is said to be tested partly, and no test carries it",
            id="partly, and not tested",
        ),
        pytest.param(
            "docs/rules.toml",
            f'{RULES}N3.must = "x"\n',
            "rules.toml: N2 is missing, though higher numbers are there",
            id="a gap",
        ),
        pytest.param(
            "docs/rules.toml",
            'X1.must = "x"\n',
            "rules.toml: X1 is not a rule's number, such as S1, C1, N1 or F1",
            id="no rule's number",
        ),
        pytest.param(
            "docs/rules.toml",
            f'{RULES}S2.done = "yes"\n',
            "rules.toml: S2 must have `must`, and of later, not-ours, partly one at most",
            id="no such state",
        ),
        pytest.param(
            "docs/rules.toml",
            f'{RULES}S2.later = ""\n',
            "rules.toml: S2 must have texts: must, and later, not-ours or partly",
            id="a state without a reason",
        ),
        pytest.param("tests/unit/test_b.py", "def (", "tests/unit/test_b.py is not Python: ", id="no Python"),
        pytest.param(
            "docs/rules.md",
            "# Rules\n",
            "docs/rules.md is not what the tests make of it: `make rules` writes it anew",
            id="written by hand",
        ),
        pytest.param(
            "tests/unit/test_b.py",
            "def test_S1_x(): assert 1\n",
            "docs/rules.md is not what the tests make of it: `make rules` writes it anew",
            id="a new test",
        ),
    ],
)
def test_every_kind_of_lie_is_found(
    rules: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, sentence: str
) -> None:
    """One sentence, exit code 1; and nothing that does not fit is written."""
    assert rules.main([], tree) == 0
    before = (tree / "docs" / "rules.md").read_text()
    capsys.readouterr()
    (tree / file).write_text(text)
    assert rules.main(["--check"], tree) == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1
    if "make rules" not in sentence:
        assert rules.main([], tree) == 1
        assert (tree / "docs" / "rules.md").read_text() == before
