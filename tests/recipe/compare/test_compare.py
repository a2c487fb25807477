import json
from pathlib import Path

import pytest

from nfopt.errors import NfoptError, RecipeError
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.compare.compare import trainings

RECIPE = """
kind: compare
data: {name: digits, n_train: 101, n_val: 53}
model: {name: mlp, options: {hidden: [7, 5]}}
total_steps: 11
batch_size: 13
evaluate_every: 3
seeds: [0, 1]
device: cpu
optimizers:
  plain: {name: adamw, lr: 1e-3}
  tuned: {name: adamw, label: tuned one, tune: {lr: [1e-3, 3e-2]}}
  wild: {name: sgd, lr: 1e+38}
reference: tuned
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.yaml").write_text(RECIPE)
    return run_recipe(load_recipe(folder / "small.yaml", [f"output={folder / 'out'}"]))


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


def test_all_methods_begin_at_the_same_loss_for_the_same_seed(outcome):
    methods = outcome.result.results["methods"]
    starts = [[run["val_loss"][0] for run in method["runs"]] for method in methods.values()]
    assert starts[0] == starts[1] == starts[2]
    assert starts[0][0] != starts[0][1]


def test_the_tuned_method_is_the_candidate_with_the_lowest_mean_validation_loss(outcome):
    tuned = outcome.result.results["methods"]["tuned"]
    best = min(tuned["candidates"], key=lambda candidate: candidate["mean_final_val_loss"])
    assert tuned["chosen"] == best["options"]
    finals = [run["val_loss"][-1] for run in tuned["runs"]]
    assert best["mean_final_val_loss"] == pytest.approx(sum(finals) / 2)


def test_equal_options_are_trained_once(small):
    recipe = load_recipe(small).recipe
    assert len(trainings(recipe)) == 2 * 3  # plain is the tuned one's first candidate


def test_the_target_is_the_reference_s_own_final_loss_seed_by_seed(outcome):
    results = outcome.result.results
    runs = results["methods"]["tuned"]["runs"]
    assert results["target_val_loss"] == [run["val_loss"][-1] for run in runs]
    for run in runs:
        assert run["val_loss"][run["steps"].index(run["steps_to_target"])] <= run["val_loss"][-1]


def test_a_diverged_method_is_called_that_and_wins_nothing(outcome):
    wild = outcome.result.results["methods"]["wild"]
    assert wild["candidates"][0]["mean_final_val_loss"] is None
    assert all(run["diverged_at"] is not None for run in wild["runs"])
    row = next(row for row in outcome.result.tables[0].rows if row[0] == "wild")
    assert row[1] == "diverged"


def test_a_choice_at_the_edge_of_what_was_tried_is_said(outcome):
    assert any("at the edge" in note for note in outcome.result.tables[0].notes)


def test_the_picture_is_a_png_and_everything_else_is_written(outcome):
    assert (outcome.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((outcome.folder / "results.json").read_text()) == outcome.result.results
    assert set(json.loads((outcome.folder / "timing.json").read_text())["median_step_seconds"]) == {
        "plain",
        "tuned",
        "wild",
        "forward+backward",
    }


def test_every_cell_of_the_table_fits_its_heading_count(outcome):
    table = outcome.result.tables[0]
    assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.name=digit", "Did you mean 'digits'"),
        ("model.name=mpl", "Did you mean 'mlp'"),
        ("model.options={hiden: [3]}", "Its options: hidden, activation"),
        ("reference=tuend", "Did you mean 'tuned'"),
        ("seeds=[0, 0]", "must be distinct"),
        ("seeds=[]", "at least 1"),
        ("optimizers={}", "at least 1"),
        ("optimizers.plain.name=adam", "Did you mean 'adamw'"),
        ("optimizers.plain.lrr=3", "Did you mean 'lr'"),
        ("optimizers.tuned.tune={lr: [0.1, no]}", "valid number"),
        ("optimizers.tuend.lr=3", "Did you mean 'optimizers.tuned'"),
        ("device=gpu", "is no device"),
        ("total_step=3", "Did you mean 'total_steps'"),
    ],
)
def test_every_kind_of_fault_is_found(small, override, part):
    faults = recipe_faults(small, [override])
    assert len(faults) == 1
    assert part in str(faults[0])
    assert faults[0].place == "command line"


def test_faults_in_every_part_are_found_at_once(small):
    overrides = ["data.name=x", "model.name=y", "optimizers.plain.lr=-1", "total_steps=0", "seeds=[1, 1]"]
    assert len(recipe_faults(small, overrides)) == 5


def test_the_plan_counts_trainings_and_writes_nothing(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = "\n".join(load_recipe(small).plan())
    assert "6 different trainings of 11 steps each: 66 steps in all" in plan
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_absent_data_are_an_error_at_the_start(small, tmp_path, monkeypatch):
    monkeypatch.delenv("NFOPT_DATA", raising=False)
    from nfopt.errors import DataError

    loaded = load_recipe(small, ["data.name=mnist", f"output={tmp_path / 'out'}"])
    with pytest.raises(DataError, match="NFOPT_DATA"):
        run_recipe(loaded)


def test_a_cuda_device_where_there_is_none_is_an_error(small, tmp_path):
    loaded = load_recipe(small, ["device=cuda:99", f"output={tmp_path / 'out'}"])
    with pytest.raises(RecipeError, match="cuda:99 is not there"):
        run_recipe(loaded)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml")), ids=lambda f: f.stem
)
def test_every_recipe_of_the_repository_has_no_faults_and_a_plan(file):
    recipe = load_recipe(file)
    if file.stem == "adapt_folder":  # its pictures and weights are the user's
        with pytest.raises(NfoptError, match=r"model\.safetensors"):
            recipe.plan()
    else:
        assert recipe.plan()
