"""Writes docs/rules.md: every rule, the tests that carry its number, and its state.

    python tools/rules.py            writes it
    python tools/rules.py --check    writes nothing; exits 1 and says why where it is not what it would write

What must hold, and the state of what no test holds, stand in docs/rules.toml. Tests are read and not imported. A test
carries a rule if the number stands in its name (test_S50_S52_...), or at the beginning of a case's name by which pytest
shows it: Case("S38 ..."), pytest.param(..., id="S38 ...") or ids=["S38 ..."], in the test's own decorators or in a list
that they name. What never runs, is expected to fail or does nothing carries no rule.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RULE = re.compile(r"[SCNF][1-9][0-9]*")
PARTS = {"S": "Services", "C": "Choices", "N": "NAT and flows", "F": "Faults"}
STATES = {"later": "later", "not-ours": "not ours", "partly": "tested; partly"}
SHOWN = 3  # tests of a rule that the table names
ROWS = {"Case", "case"}  # what makes a case whose first argument is its name
FOLLOWED = {*ROWS, "param", "parametrize"}  # calls that keep all cases that they are given
NEVER_RUN = {"skip", "xfail"}
CHOSEN = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.Subscript, ast.IfExp, ast.Lambda)
HEAD = """\
# Rules and their tests

What must hold, rule by rule, and the tests that say so. `make rules` makes this file of the tests themselves
([tools/rules.py](../tools/rules.py)), and a test fails where it is old. A rule is tested if a test carries its number
in its name, or in a case's name: that is in brackets here. Words and states stand in [rules.toml](rules.toml). *Later*
is what is not there yet, or not tested by its number; *not ours* is how others do it, and we for a reason do not. Tests
of `unit/test_reference*.py` are of the model that says what the programs must do.
"""

Names = Mapping[str, ast.expr]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Wrong(Exception):
    """One sentence: what is wrong with a file."""


class Rule(NamedTuple):
    """What must hold; `state` is a key of STATES, or empty where tests say all, `why` its reason."""

    must: str
    state: str = ""
    why: str = ""


class Carrier(NamedTuple):
    """A test that carries a rule, as pytest names it from tests/ on; `case`: by the name of a case only."""

    case: bool
    place: str

    def shown(self, number: str) -> str:
        """As the table has it."""
        return f"`{self.place}[{number} …]`" if self.case else f"`{self.place}`"


Carriers = Mapping[str, list[Carrier]]


# docs/rules.toml


def rules_of(path: Path) -> dict[str, Rule]:
    """The rules by their numbers, in the file's order. Raises Wrong."""
    try:
        found = {number: rule_of(number, fields) for number, fields in tomllib.loads(path.read_text()).items()}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Wrong(f"{path.name}: {error}") from error
    whole = {f"{part}{count}" for part in PARTS for count in range(1, 1 + sum(one[0] == part for one in found))}
    if missing := sorted(whole - found.keys()):
        raise Wrong(f"{path.name}: {missing[0]} is missing, though higher numbers are there")
    return found


def rule_of(number: str, fields: object) -> Rule:
    """One rule of the file. Raises Wrong."""
    if not RULE.fullmatch(number):
        raise Wrong(f"rules.toml: {number} is not a rule's number, such as S1, C1, N1 or F1")
    if not isinstance(fields, dict) or not all(value and isinstance(value, str) for value in fields.values()):
        raise Wrong(f"rules.toml: {number} must have texts: must, and later, not-ours or partly")
    states = fields.keys() - {"must"}
    if "must" not in fields or len(states) > 1 or not states <= STATES.keys():
        raise Wrong(f"rules.toml: {number} must have `must`, and of {', '.join(STATES)} one at most")
    state = next(iter(states), "")
    return Rule(fields["must"], state, fields.get(state, ""))


# The tests


def carriers_below(folder: Path) -> dict[str, list[Carrier]]:
    """The tests that carry each rule: those first that do by their own names. Raises Wrong."""
    found: dict[str, list[Carrier]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError) as error:
            raise Wrong(f"{path.relative_to(folder.parent)} is not Python: {error}") from error
        for name, number, case in carried_in(tree):
            place = f"{path.relative_to(folder).as_posix()}::{name}"
            found.setdefault(number, []).append(Carrier(case, place))
    return {number: sorted(carriers) for number, carriers in found.items()}


def carried_in(tree: ast.Module) -> Iterator[tuple[str, str, bool]]:
    """(test, rule's number, whether by a case's name) of one file, each once."""
    names = names_of(tree)
    everywhere = [names["pytestmark"]] if "pytestmark" in names else []
    for name, function, decorators in tests_of(tree):
        around = list(reached([*decorators, *everywhere], names))
        if not does_something(function) or any(is_never_run(node) for node in around):
            continue
        own = {word for word in function.name.split("_") if RULE.fullmatch(word)}
        cases = {number for node in around for text in case_names(node) for number in leading_numbers(text)}
        yield from ((name, number, False) for number in own)
        yield from ((name, number, True) for number in cases - own)


def tests_of(tree: ast.Module) -> Iterator[tuple[str, Function, list[ast.expr]]]:
    """(name, function, decorators) of every test that pytest collects from a file."""
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("test_"):
            yield node.name, node, node.decorator_list
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            for inner in node.body:
                if isinstance(inner, Function) and inner.name.startswith("test_"):
                    yield f"{node.name}::{inner.name}", inner, [*node.decorator_list, *inner.decorator_list]


def names_of(tree: ast.Module) -> Names:
    """What the names of a module stand for that are set once, at its top, and not added to."""
    values: dict[str, list[ast.expr]] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                values.setdefault(target.id, []).append(node.value)
    return {name: found[0] for name, found in values.items() if len(found) == 1}


def reached(expressions: Iterable[ast.AST], names: Names) -> Iterator[ast.AST]:
    """What certainly is part of these expressions: not what is chosen, left out or made of something by running it."""
    todo, seen = list(expressions), set[str]()
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.Name) and node.id in names.keys() - seen:
            seen.add(node.id)
            todo.append(names[node.id])
        elif isinstance(node, ast.Call) and called(node) not in FOLLOWED:
            todo.append(node.func)
        elif not isinstance(node, CHOSEN):
            todo.extend(ast.iter_child_nodes(node))


def called(call: ast.Call) -> str:
    """The last word of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def case_names(node: ast.AST) -> list[str]:
    """The names that a call gives to cases of a test."""
    if not isinstance(node, ast.Call):
        return []
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    texts: list[Any] = []
    if called(node) in ROWS:
        texts = node.args[:1]
    elif called(node) == "param":
        texts = [given.get("id")]
    elif called(node) == "parametrize" and isinstance(ids := given.get("ids"), ast.List):
        texts = ids.elts
    return [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]


def leading_numbers(text: str) -> Iterator[str]:
    """The numbers with which a case's name begins."""
    return takewhile(RULE.fullmatch, text.split())


def is_never_run(node: ast.AST) -> bool:
    """Whether this is pytest.mark.skip or pytest.mark.xfail; a skip with a condition is a failure where CI runs."""
    return isinstance(node, ast.Attribute) and node.attr in NEVER_RUN and ast.unparse(node.value) == "pytest.mark"


def does_something(function: Function) -> bool:
    """Whether a test has a statement beside its docstring, and none that skips it whatever happens."""
    calls = [one.value for one in function.body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)]
    if any(ast.unparse(one.func) in {f"pytest.{word}" for word in NEVER_RUN} for one in calls):
        return False
    idle = (isinstance(one, ast.Pass) or isinstance(getattr(one, "value", None), ast.Constant) for one in function.body)
    return not all(idle)


# What the two say together


def lies(rules: Mapping[str, Rule], carriers: Carriers) -> list[str]:
    """One sentence for each that does not fit."""
    found = [
        f"tests/{carriers[number][0].place} carries {number}, which docs/rules.toml does not know"
        for number in sorted(carriers.keys() - rules.keys())
    ]
    for number, rule in rules.items():
        tests = carriers.get(number, [])
        if not tests and not rule.state:
            found.append(f"{number} has neither a test nor a state in docs/rules.toml")
        elif not tests and rule.state == "partly":
            found.append(f"{number} is said to be tested partly, and no test carries it")
        elif tests and rule.state not in {"", "partly"}:
            found.append(f"{number} is said to be {STATES[rule.state]}, and tests/{tests[0].place} carries it")
    return found


def page(rules: Mapping[str, Rule], carriers: Carriers) -> str:
    """The text of docs/rules.md."""
    tables = []
    for part, title in PARTS.items():
        tables += [f"\n## {title} ({part})\n", "| rule | what must hold | tests | state |", "|---|---|---|---|"]
        tables += [
            line_of(number, rule, carriers.get(number, [])) for number, rule in rules.items() if number[0] == part
        ]
    return "\n".join([HEAD, counts(rules), *tables]) + "\n"


def counts(rules: Mapping[str, Rule]) -> str:
    """How many rules there are of each state, once nothing of them is a lie."""
    of = {state: sum(rule.state == state for rule in rules.values()) for state in ("", *STATES)}
    return (
        f"{len(rules)} rules: {of[''] + of['partly']} tested ({of['partly']} of them partly), "
        f"{of['later']} later, {of['not-ours']} not ours."
    )


def line_of(number: str, rule: Rule, tests: list[Carrier]) -> str:
    """One row of a table."""
    shown = [one.shown(number) for one in tests[:SHOWN]]
    if len(tests) > SHOWN:
        shown.append(f"+{len(tests) - SHOWN}")
    state = f"{STATES[rule.state]}: {rule.why}" if rule.state else "tested"
    cells = (number, rule.must.replace("|", r"\|"), "<br>".join(shown), state.replace("|", r"\|"))
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Writes or checks docs/rules.md below `root`; the exit code."""
    parser = argparse.ArgumentParser(description="Writes docs/rules.md: every rule, its tests, its state.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where something does not fit")
    check, table = parser.parse_args(arguments).check, root / "docs" / "rules.md"
    try:
        rules, carriers = rules_of(root / "docs" / "rules.toml"), carriers_below(root / "tests")
        wrong = lies(rules, carriers)
    except Wrong as error:
        wrong = [str(error)]
    else:
        text = page(rules, carriers)
        if check and not wrong and (not table.exists() or table.read_text() != text):
            wrong = ["docs/rules.md is not what the tests make of it: `make rules` writes it anew"]
        elif not check and not wrong:
            table.write_text(text)
            print(counts(rules))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
