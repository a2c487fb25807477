from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nfopt.recipe.source import Document, parse, read_document


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def messages(document: Document) -> str:
    return "\n".join(str(fault) for fault in document.faults)


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-999, 999)
    | st.floats(-1e9, 1e9)
    | st.text("abc é:#'", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcd", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=3), TREES, max_size=4))
def test_any_tree_of_plain_values_is_read_back_as_it_was_dumped(tree):
    document = parse(yaml.safe_dump(tree), "here")
    assert document.values == tree
    assert not document.faults


@given(st.text(max_size=60))
def test_any_text_at_all_gives_values_or_faults_and_no_exception(text):
    document = parse(text, "here")
    assert document.faults or isinstance(document.values, dict)


def test_a_duplicate_key_is_a_fault_with_its_line():
    document = parse("a: 1\nb:\n  c: 2\n  c: 3\n", "here")
    assert messages(document) == "here:4: b.c: is given twice; keep one of them."


def test_a_number_with_an_exponent_and_no_point_is_a_number():
    assert parse("lr: 1e-3\nn: -2E+4", "here").values == {"lr": 0.001, "n": -20000.0}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1, 2", "here:1: is not valid YAML"),
        ("- 1\n- 2", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("a: &x {b: *x}", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("1: 2", "a key must be text"),
        ("[1, 2]: 3", "a key must be text"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("[" * 3000, "here"),
    ],
)
def test_what_is_no_recipe_is_one_clear_fault(text, part):
    document = parse(text, "here")
    assert part in messages(document)


def test_every_value_knows_its_line():
    document = parse("a:\n  b: 1\n  c: [2,\n    3]\n", "here")
    assert document.place_of(("a", "b")) == "here:2"
    assert document.place_of(("a", "c", 1)) == "here:4"
    assert document.place_of(("a", "missing")) == "here:1"


def test_the_including_file_wins_and_mappings_merge_key_by_key(tmp_path):
    file = write(
        tmp_path,
        main="include: [base.yaml, more.yaml]\na: {x: 1}\nl: [9]\n",
        base="a: {x: 0, y: 2}\nl: [1, 2]\nz: base\n",
        more="z: more\n",
    )
    document = read_document(file)
    assert document.values == {"a": {"x": 1, "y": 2}, "l": [9], "z": "more"}
    assert document.place_of(("a", "x")) == f"{file}:2"
    assert document.place_of(("a", "y")) == f"{tmp_path / 'base.yaml'}:1"
    assert document.place_of(("l", 1)) == f"{file}:3"


def test_includes_are_relative_to_the_including_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.yaml").write_text("include: ../leaf.yaml\nb: 2\n")
    file = write(tmp_path, main="include: sub/inner.yaml\n", leaf="a: 1\n")
    assert read_document(file).values == {"a": 1, "b": 2}


def test_a_circle_of_includes_is_a_fault(tmp_path):
    file = write(tmp_path, a="include: b.yaml\n", b="include: a.yaml\nx: 1\n")
    document = read_document(file)
    assert "goes round in a circle: a.yaml -> b.yaml -> a.yaml" in messages(document)


def test_one_file_may_be_included_twice_on_different_ways(tmp_path):
    file = write(
        tmp_path, a="include: [b.yaml, c.yaml]\n", b="include: d.yaml\n", c="include: d.yaml\n", d="x: 1\n"
    )
    document = read_document(file)
    assert document.values == {"x": 1}
    assert not document.faults


@pytest.mark.parametrize(
    ("text", "part"),
    [("include: gone.yaml", "there is no file"), ("include: {a: 1}", "a file or a list of files")],
)
def test_an_include_that_cannot_be_followed_is_a_fault(tmp_path, text, part):
    assert part in messages(read_document(write(tmp_path, main=text)))


def test_a_missing_and_a_binary_file_are_faults(tmp_path):
    assert "there is no such file" in messages(read_document(tmp_path / "gone.yaml"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in messages(read_document(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a.b=3", {"a": {"b": 3, "c": [1, 2]}}),
        ("a.c.1=7", {"a": {"b": 1, "c": [1, 7]}}),
        ("a.c=[]", {"a": {"b": 1, "c": []}}),
        ("a={x: 1}", {"a": {"x": 1}}),
        ("new.deep.key=1e-3", {"a": {"b": 1, "c": [1, 2]}, "new": {"deep": {"key": 1e-3}}}),
        ("a.b=", {"a": {"b": None, "c": [1, 2]}}),
        ("a.b=x=y", {"a": {"b": "x=y", "c": [1, 2]}}),
    ],
)
def test_an_override_sets_one_value(tmp_path, override, values):
    document = read_document(write(tmp_path, main="a: {b: 1, c: [1, 2]}\n"), [override])
    assert document.values == values
    assert not document.faults


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("a.b", "is no override"),
        ("a..b=1", "is no override"),
        ("=1", "is no override"),
        ("a.b.c=1", "a.b is 1, which has no key 'c' to set"),
        ("a.c.5=1", "count from 0 to 1"),
        ("a.c.x=1", "count from 0 to 1"),
        ("a.b=[1", "is not valid YAML"),
    ],
)
def test_an_override_that_fits_nowhere_is_a_fault(tmp_path, override, part):
    document = read_document(write(tmp_path, main="a: {b: 1, c: [1, 2]}\n"), [override])
    assert part in messages(document)
    assert "command line" in messages(document)


def test_the_place_of_an_override_is_the_command_line(tmp_path):
    document = read_document(write(tmp_path, main="a: {b: 1}\n"), ["a.b=2"])
    assert document.place_of(("a", "b")) == "command line"
