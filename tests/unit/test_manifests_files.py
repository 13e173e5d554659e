"""Files, folders and standard input to objects, and the one sentence for each that is refused."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from measuring import measured
from rows import tell
from samples import SERVICE, SLICE, Edit, at, edited, named, port, refusal

from pydatapath.documents import documents
from pydatapath.errors import Refused
from pydatapath.manifests import Loaded, read


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, *items: object) -> None:
    Path(path).write_text(yaml.safe_dump_all(items), encoding="utf-8")


def keys(loaded: Loaded) -> list[str]:
    return [found.key for found in loaded.objects]


class TestRead:
    def test_files_folders_and_their_order(self, folder: Path) -> None:
        """Paths in the order given; a folder gives its manifests by name, nothing hidden, nothing deeper."""
        write("z.yaml", named("first"))
        Path("d/deeper").mkdir(parents=True)
        write("d/b.yml", named("b"), SLICE)
        write("d/a.yaml", named("a"))
        Path("d/c.json").write_text(json.dumps(named("c")))
        write("d/.hidden.yaml", named("hidden"))
        write("d/deeper/x.yaml", named("deeper"))
        Path("d/notes.txt").write_text("not a manifest")
        assert keys(read(["z.yaml", "d"])) == ["shop/first", "shop/a", "shop/b", "shop/web-abc", "shop/c"]

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`-` is standard input, YAML or JSON."""
        for text in (json.dumps(SERVICE), yaml.safe_dump(SERVICE)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            assert keys(read(["-"])) == ["shop/web"]

    def test_standard_input_that_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A daemon without standard input gets a sentence."""
        monkeypatch.setattr(sys, "stdin", None)
        assert refusal(lambda: read(["-"])) == "standard input: holds no objects"

    def test_a_pipe_is_read_to_its_end(self, folder: Path) -> None:
        """`apply -f <(command)` hands over a pipe."""
        reader, writer = os.pipe()
        try:
            with os.fdopen(writer, "w") as stream:
                stream.write(json.dumps(SERVICE))
            assert keys(read([f"/dev/fd/{reader}"])) == ["shop/web"]
        finally:
            os.close(reader)

    @pytest.mark.parametrize(
        ("kind", "items"),
        [
            ("List", [SERVICE, SLICE]),
            ("List", [{"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE]}]),
            ("ServiceList", [{key: SERVICE[key] for key in ("metadata", "spec")}, SLICE]),
        ],
        ids=["List", "List of List", "ServiceList whose items do not say what they are"],
    )
    def test_lists_are_expanded(self, folder: Path, kind: str, items: list[object]) -> None:
        """A list gives its items, typed lists say the kind for those that do not."""
        write("all.yaml", {"apiVersion": "v1", "kind": kind, "items": items})
        assert keys(read(["all.yaml"])) == ["shop/web", "shop/web-abc"]

    def test_known_kinds_are_named_and_skipped(self, folder: Path) -> None:
        """What Kubernetes knows and we do not use, and what belongs to somebody else, is told by name."""
        write(
            "all.yaml",
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": "shop"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
            {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "web"}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "\x1b[31m", "namespace": "a\nb"}},
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "job-"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": "x"},
        )
        assert read(["all.yaml"]) == Loaded(
            [],
            [
                "Deployment default/web",
                "Pod shop/web-1",
                "Namespace shop",
                "Service.serving.knative.dev web",
                r"Secret 'a\nb'/'\x1b[31m'",
                "Job default/without a name",
                "ConfigMap default/without a name",
            ],
        )

    def test_no_object_twice(self, folder: Path) -> None:
        """The same object in two places is an error that names both."""
        write("a.yaml", SLICE, SERVICE)
        write("b.yaml", SERVICE)
        where = Path("a.yaml").read_text().splitlines().index("---") + 2
        assert refusal(lambda: read(["a.yaml", "b.yaml"])) == (
            f"b.yaml: Service shop/web: stands in a.yaml:{where} and again in b.yaml:1"
        )

    def test_a_service_and_a_slice_may_share_a_name(self, folder: Path) -> None:
        """Names are unique by kind."""
        write("a.yaml", SERVICE, named("web", SLICE))
        assert keys(read(["a.yaml"])) == ["shop/web", "shop/web"]

    def test_every_fault_is_told(self, folder: Path) -> None:
        """All at once, in the order of the files, so that all can be mended at once; beyond twenty they are counted."""
        bad = [edited(named(f"s{number}"), port(port=0)) for number in range(22)]
        write("bad.yaml", *bad[:5])
        write("more.yaml", *bad[5:])
        with pytest.raises(Refused) as caught:
            read(["bad.yaml", "more.yaml"])
        fault = "{}.yaml: Service shop/s{}: spec.ports[0].port: 0 is not a port (1 to 65535)"
        told = [fault.format("bad" if number < 5 else "more", number) for number in range(22)]
        assert [str(one) for one in caught.value.errors] == told
        assert list(caught.value.sentences) == [*told[:20], "and 2 more"]
        assert str(caught.value) == "; ".join([*told[:20], "and 2 more"])
        assert caught.value.hint == ""

    def test_what_is_good_is_taken_beside_what_is_bad(self, folder: Path) -> None:
        """With keep_going: of a list, of a file that ends in broken text, and of the files behind it."""
        listed = {
            "apiVersion": "v1",
            "kind": "List",
            "items": [named("a"), edited(named("b"), port(port=0)), named("c")],
        }
        write("1.yaml", listed)
        Path("2.yaml").write_text(f"{yaml.safe_dump(named('d'))}---\nmetadata: [\n---\n{yaml.safe_dump(named('e'))}")
        write("3.yaml", named("f"))
        found = read(["1.yaml", "2.yaml", "nothing.yaml", "3.yaml"], keep_going=True)
        assert keys(found) == ["shop/a", "shop/c", "shop/d", "shop/f"]
        assert [(str(fault).split(": ")[0], fault.key) for fault in found.faults] == [
            ("1.yaml", ("Service", "shop", "b")),
            ("2.yaml:20", None),
            ("nothing.yaml", None),
        ]

    @pytest.mark.parametrize(
        ("edit", "key"),
        [
            (at("spec", "clusterIP", value="x"), ("Service", "shop", "web")),
            (at("apiVersion", value="v9"), ("Service", "shop", "web")),
            (lambda document: document["metadata"].update(namespace=None, labels=7), ("Service", "default", "web")),
            (at("kind", value="Servce"), None),
            (at("kind", value=["Service"]), None),
            (at("metadata", value=None), None),
            (at("metadata", "name", value="a b"), None),
            (at("metadata", "namespace", value=7), None),
        ],
    )
    def test_a_fault_says_whose_it_is(self, folder: Path, edit: Edit, key: tuple[str, str, str] | None) -> None:
        """Kind, namespace and name, where these are good; else nobody knows which object is meant."""
        write("bad.yaml", edited(SERVICE, edit, port(port=0)))
        assert [fault.key for fault in read(["bad.yaml"], keep_going=True).faults] == [key]

    def test_the_collector_is_back_at_work(self, folder: Path) -> None:
        """Garbage collection rests while reading, and only then: after an error too, and never where it was off."""
        write("a.yaml", SERVICE)
        read(["a.yaml"])
        assert gc.isenabled()
        refusal(lambda: read(["nothing"]))
        assert gc.isenabled()
        gc.disable()
        try:
            read(["a.yaml"])
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_without_libyaml(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where PyYAML has no C parser the one in Python does: slower, and the same."""
        monkeypatch.delattr(yaml, "CSafeLoader")
        write("a.yaml", SERVICE, SLICE)
        assert keys(read(["a.yaml"])) == ["shop/web", "shop/web-abc"]
        Path("b.yaml").write_text("a: 1\nb: \x1b")
        assert refusal(lambda: read(["b.yaml"])) == "b.yaml:2: not YAML: special characters are not allowed"

    def test_yaml_is_imported_only_for_yaml(self) -> None:
        """`service list` and JSON manifests do not pay for PyYAML."""
        program = (
            "import sys; from pydatapath import manifests; "
            "list(manifests.documents('{\"a\": 1}', '-')); sys.exit('yaml' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


LAUGHS = "\n".join(
    ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)]
)

REFUSED_FILES = [
    ("empty.yaml", b"", "empty.yaml: holds no objects"),
    ("empty.json", b" \n", "empty.json: holds no objects"),
    ("comment.yaml", b"# nothing\n---\n---\n", "comment.yaml: holds no objects"),
    ("text.yaml", b"hello", "text.yaml:1: a map with apiVersion, kind and metadata is expected, not a string"),
    (
        "list.yaml",
        b"---\n---\n- 1",
        "list.yaml:3: a map with apiVersion, kind and metadata is expected, not a list",
    ),
    ("item.yaml", b"kind: List\nitem: []", "item.yaml:1: List: items: is missing"),
    ("null.yaml", b"kind: ServiceList\nitems:", "null.yaml:1: ServiceList: items: is missing"),
    ("items.yaml", b"kind: List\nitems: 7", "items.yaml:1: List: items: a list is expected, not a number"),
    ("item.yaml", b"kind: List\nitems: [{}]", "item.yaml:1: items[0]: kind: is missing"),
    ("syntax.yaml", b"a: 1\nb: [1\nc: 2", "syntax.yaml:3: not YAML: did not find expected ',' or ']'"),
    ("control.yaml", b"a: 1\nb: \x1b", "control.yaml:2: not YAML: control characters are not allowed"),
    ("syntax.json", b'{\n"kind": }', "syntax.json:2: not JSON: Expecting value"),
    ("rest.json", b"{} x", "rest.json:1: kind: is missing; rest.json:1: not JSON: Expecting value"),
    ("latin.yaml", b"a: 1\nb: \xff", "latin.yaml:2: not UTF-8 text (byte 0xff)"),
    ("utf16.yaml", "kind: Node".encode("utf-16-le"), "utf16.yaml:1: not YAML: control characters are not allowed"),
    ("twice.yaml", b"kind: Service\nkind: Service", "twice.yaml:2: the key 'kind' stands twice in one map"),
    ("twice.json", b'{"kind": 1, "kind": 2}', "twice.json: the key 'kind' stands twice in one map"),
    ("tag.yaml", b"a: !!python/none", "tag.yaml:1: the tag 'tag:yaml.org,2002:python/none' has no place in a manifest"),
    ("map.yaml", b"a: !x {}", "map.yaml:1: the tag '!x' has no place in a manifest"),
    ("nan.yaml", b"a: .nan", "nan.yaml:1: holds .nan, which is no number in JSON"),
    ("huge.yaml", b"a: 1.0e+999", "huge.yaml:1: holds '1.0e+999', which is no number in JSON"),
    ("nan.json", b'{"a": NaN}', "nan.json: holds NaN, which is no number in JSON"),
    ("huge.json", b'{"a": 1e400}', "huge.json:1: holds inf, which is no number in JSON"),
    ("long.json", b'{"a": %s}' % (b"9" * 5000), "long.json:1: holds a whole number of more than 64 bits"),
    ("long.yaml", b"a: %s" % (b"9" * 5000), "long.yaml:1: holds a whole number of more than 64 bits"),
    ("key.yaml", b"? [a]\n: b", "key.yaml:1: the key of a map is plain text"),
    ("alias.yaml", b"a: *b", "alias.yaml:1: the alias 'b' has no anchor before it"),
    ("knot.yaml", b"a: &a [*a]", "knot.yaml:1: the alias 'a' has no anchor before it"),
    ("merge.yaml", b"a: 1\n<<: 2", "merge.yaml:2: a map is expected under <<"),
    ("laughs.yaml", LAUGHS.encode(), "laughs.yaml:6: aliases stand for more than 2 MB of text"),
    ("deep.yaml", b"[" * 100_000, "deep.yaml:1: is nested deeper than 64 levels"),
    ("deeper.yaml", b"a: " + b"{a: " * 100_000, "deeper.yaml:1: is nested deeper than 64 levels"),
    ("deepest.yaml", b"- " * 100_000, "deepest.yaml:1: is nested deeper than 64 levels"),
    ("deep.json", b'{"a":' + b"[" * 100_000, "deep.json:1: is nested deeper than 64 levels"),
    ("flat.json", b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "flat.json:1: is nested deeper than 64 levels"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), REFUSED_FILES, ids=[name for name, *_ in REFUSED_FILES])
def test_F25_a_bad_file_is_refused_in_one_sentence(folder: Path, name: str, data: bytes, message: str) -> None:
    """Broken and hostile text ends in a sentence with file and line: no other exception, no wait, no crash."""
    Path(name).write_bytes(data)
    assert refusal(lambda: read([name])) == message


def test_F24_F25_what_is_no_file_is_refused_at_once(folder: Path) -> None:
    """Devices are not read, a pipe without a writer is empty, a file of a terabyte is not begun."""
    os.mkfifo("pipe")
    Path("empty").mkdir()
    Path("lost.yaml").symlink_to("nowhere")
    with Path("huge.yaml").open("wb") as stream:
        stream.truncate(10**12)
    assert [refusal(lambda path=path: read([path])) for path in ("/dev/zero", "pipe", "empty", "lost.yaml")] == [
        "/dev/zero: neither a file nor a folder",
        "pipe: holds no objects",
        "empty: no .yaml, .yml or .json file in this folder",
        "lost.yaml: no such file or directory",
    ]
    assert refusal(lambda: read(["huge.yaml"])) == "huge.yaml: larger than 100 MB"
    done = measured([sys.executable, "-c", "from pydatapath.manifests import read; read(['huge.yaml'])"], timeout=60)
    assert done.stderr.endswith("Refused: huge.yaml: larger than 100 MB\n")
    tell(repeats=1)
    assert done.megabytes < 50


@pytest.mark.parametrize(
    ("path", "shown"), [("a\x1b[31m", r"'a\x1b[31m'"), ("a\0b", r"'a\x00b'"), ("", "''"), ("größe", "größe")]
)
def test_F26_a_hostile_file_name_is_quoted(folder: Path, path: str, shown: str) -> None:
    """A file's name is printed as it is unless a terminal would obey it."""
    assert refusal(lambda: read([path])) == f"{shown}: no such file or directory"


def test_keys_are_text_and_bom_and_json_streams_are_fine(folder: Path) -> None:
    """A key keeps its spelling, a byte order mark is nothing, JSON objects may follow each other."""
    assert list(documents("80: x\non: z", "x")) == [(1, {"80": "x", "on": "z"})]
    assert list(documents('{"a": 1}\n\n{"a": 2} null', "x")) == [(1, {"a": 1}), (3, {"a": 2})]
    assert list(documents("{a: 1}", "x")) == [(1, {"a": 1})]
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(SERVICE).encode())
    assert keys(read(["bom.yaml"])) == ["shop/web"]
