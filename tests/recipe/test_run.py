import json

import pytest
import yaml

from nfopt.errors import DuplicateNameError, RecipeError
from nfopt.recipe import JobResult, Recipe, Table, job, load_recipe, recipe_faults, run_recipe
from nfopt.recipe.run import markdown, provenance
from tests.recipe.toy_job import registered


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with registered(monkeypatch) as toy:
        yield toy


@pytest.fixture
def recipe(tmp_path):
    def write(text="kind: toy\nrepeats: 3\n", name="toy"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


def test_all_faults_of_a_recipe_are_said_at_once_each_with_its_line(toy, recipe):
    file = recipe("kind: toy\nrepaets: 3\ninner:\n  widht: 2\n  width: x\nrepeats: 1\nrepeats: 2\n")
    faults = [str(fault) for fault in recipe_faults(file)]
    assert len(faults) == 4
    assert [int(fault.split(":")[1]) for fault in faults] == [2, 4, 5, 7]
    assert any(f.startswith(f"{file}:2: repaets: is an unknown key. Did you mean 'repeats'?") for f in faults)
    assert any(
        f.startswith(f"{file}:4: inner.widht: is an unknown key. Did you mean 'width'?") for f in faults
    )
    assert any(f.startswith(f"{file}:5: inner.width: should be a valid integer") for f in faults)
    assert any(f.startswith(f"{file}:7: repeats: is given twice") for f in faults)
    with pytest.raises(RecipeError, match="has 4 faults"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("repeats: 3", "kind: must name a job"),
        ("kind: 3", "kind: must name a job"),
        ("kind: tou\nrepeats: 3", "Did you mean 'toy'"),
        ("kind: toy", "repeats: is missing"),
        ("kind: toy\nrepeats: true", "should be a valid integer, not True"),
        ("kind: toy\nrepeats: 0", "should be greater than or equal to 1, not 0"),
        ("kind: toy\nrepeats: 3\ninner: 4", "should be a mapping, not 4"),
        ("", "a recipe is a mapping"),
    ],
)
def test_a_faulty_recipe_is_refused_with_the_reason(toy, recipe, text, part):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(text))
    assert part in str(caught.value)


def test_an_override_on_an_unknown_path_gets_a_did_you_mean(toy, recipe):
    with pytest.raises(
        RecipeError, match=r"command line: inner.widht: is an unknown key. Did you mean 'width'"
    ):
        load_recipe(recipe(), ["inner.widht=5"])


def test_the_resolved_recipe_is_a_recipe_that_resolves_to_itself(toy, recipe):
    loaded = load_recipe(recipe(), ["inner.width=5"])
    again = load_recipe(recipe(loaded.resolved_yaml(), "again"))
    assert again.recipe == loaded.recipe
    assert again.recipe.inner.width == 5


def test_a_run_writes_results_tables_timing_and_a_resolved_recipe(toy, recipe):
    outcome = run_recipe(load_recipe(recipe()))
    assert json.loads((outcome.folder / "results.json").read_text()) == {"squares": [0, 1, 4]}
    assert json.loads((outcome.folder / "timing.json").read_text()) == {"seconds": 0.5}
    assert "| 2 | 4 |" in (outcome.folder / "tables.md").read_text()
    resolved = yaml.safe_load((outcome.folder / "resolved.yaml").read_text())
    assert resolved["inner"] == {"width": 3}
    assert resolved["provenance"]["data"] == {"toy": "abc"}
    assert set(resolved["provenance"]["versions"]) >= {"nfopt", "torch", "python"}


def test_the_resolved_recipe_of_a_run_runs_again_elsewhere_with_the_same_results(toy, recipe, tmp_path):
    first = run_recipe(load_recipe(recipe()))
    second = run_recipe(load_recipe(first.folder / "resolved.yaml", [f"output={tmp_path / 'again'}"]))
    assert (second.folder / "results.json").read_bytes() == (first.folder / "results.json").read_bytes()


def test_without_output_every_run_gets_a_folder_of_its_own(toy, recipe):
    names = [run_recipe(load_recipe(recipe())).folder.as_posix() for _ in range(3)]
    assert names == ["runs/toy", "runs/toy-2", "runs/toy-3"]


def test_a_folder_that_exists_is_not_written_into(toy, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="--resume"):
        run_recipe(load_recipe(recipe(), ["output=out"]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_file_in_the_place_of_the_folder_is_an_error(toy, recipe, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RecipeError, match="output="):
        run_recipe(load_recipe(recipe(), ["output=out/deeper"]))


@pytest.mark.parametrize("overrides", [[], ["output=out"]])
def test_a_stopped_run_that_is_resumed_computes_only_what_is_missing(toy, recipe, overrides):
    toy.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe(), overrides))
    toy.stop_at = None
    outcome = run_recipe(load_recipe(recipe(), overrides), resume=True)
    assert toy.computed == [0, 1, 2]
    assert outcome.result.results == {"squares": [0, 1, 4]}
    assert not outcome.was_complete


def test_a_complete_run_that_is_resumed_shows_its_results_without_work(toy, recipe):
    run_recipe(load_recipe(recipe()))
    outcome = run_recipe(load_recipe(recipe()), resume=True)
    assert toy.computed == [0, 1, 2]
    assert outcome.was_complete
    assert outcome.result.results == {"squares": [0, 1, 4]}


def test_resume_continues_the_newest_folder(toy, recipe):
    run_recipe(load_recipe(recipe()))
    run_recipe(load_recipe(recipe()))
    assert run_recipe(load_recipe(recipe()), resume=True).folder.as_posix() == "runs/toy-2"


@pytest.mark.parametrize("leftover", [None, ".resolved.123.partial.yaml"])
def test_resume_begins_afresh_when_there_is_nothing_to_resume(toy, recipe, tmp_path, leftover):
    if leftover:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / leftover).write_text("half")
    outcome = run_recipe(load_recipe(recipe(), ["output=out"]), resume=True)
    assert outcome.result.results == {"squares": [0, 1, 4]}
    assert not [path for path in outcome.folder.rglob("*") if "partial" in path.name]


def test_a_run_is_not_resumed_by_another_recipe(toy, recipe):
    run_recipe(load_recipe(recipe()))
    with pytest.raises(RecipeError, match="repeats was 3, is 4"):
        run_recipe(load_recipe(recipe("kind: toy\nrepeats: 4\n")), resume=True)


def test_a_run_is_not_resumed_on_other_data(toy, recipe, tmp_path):
    toy.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe()))
    file = tmp_path / "runs" / "toy" / "resolved.yaml"
    file.write_text(file.read_text().replace("toy: abc", "toy: xyz"))
    with pytest.raises(RecipeError, match="is not the one that the run"):
        run_recipe(load_recipe(recipe()), resume=True)


def test_a_run_that_is_resumed_by_other_code_says_so_in_its_provenance(toy, recipe, tmp_path, monkeypatch):
    toy.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe()))
    toy.stop_at = None
    now = provenance()
    monkeypatch.setattr("nfopt.recipe.run.provenance", lambda: now | {"code": "other"})
    with pytest.warns(UserWarning, match="was begun with other code"):
        run_recipe(load_recipe(recipe()), resume=True)
    written = yaml.safe_load((tmp_path / "runs" / "toy" / "resolved.yaml").read_text())["provenance"]
    assert written["code"] == now["code"]
    assert written["resumed_with"] == [{"code": "other"}]


def test_a_damaged_piece_is_an_error_that_says_the_way_out(toy, recipe, tmp_path):
    run_recipe(load_recipe(recipe()))
    (tmp_path / "runs" / "toy" / "pieces" / "piece-1.json").write_text("{")
    with pytest.raises(RecipeError, match="Delete it"):
        run_recipe(load_recipe(recipe()), resume=True)


def test_a_damaged_resolved_recipe_is_an_error(toy, recipe, tmp_path):
    run_recipe(load_recipe(recipe()))
    (tmp_path / "runs" / "toy" / "resolved.yaml").write_text("[1, 2")
    with pytest.raises(RecipeError, match="cannot be read"):
        run_recipe(load_recipe(recipe()), resume=True)


def test_a_piece_whose_name_is_no_file_name_is_a_bug(toy, recipe):
    outcome = run_recipe(load_recipe(recipe()))
    from nfopt.recipe.folder import OutputFolder

    for name in ("a/b", "..", "a b"):
        with pytest.raises(ValueError, match="a piece is named"):
            OutputFolder(outcome.folder).piece(name, lambda: 1)


def test_a_second_job_of_one_name_is_refused(toy):
    with pytest.raises(DuplicateNameError):
        job("toy", Recipe, plan=lambda recipe: [])(lambda recipe, context: JobResult({}))


def test_markdown_has_one_line_per_row_and_joins_headings():
    text = markdown(Table("t", ("a", "b\nc"), (("1", "2"), ("3", "4")), ("note",)))
    assert text.splitlines() == [
        "## t",
        "",
        "| a | b c |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 | 4 |",
        "",
        "- note",
    ]
