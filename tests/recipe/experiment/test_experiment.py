import json
from pathlib import Path

import pytest

from nfopt.errors import NfoptError, RecipeError
from nfopt.experiments import READERS, ExperimentError
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.experiment.report import Cell, Report, table
from nfopt.zoo import load_zoo, save_zoo
from tests.experiments.toys import siren_zoo

RECIPE = """
kind: experiment
zoo: {{file: {zoo}}}
task: {{name: regression, fact: frequency}}
readers: [mlp_permuted, mlp_aligned, dws_canonical, role_tied]
parameters: 500
fit: {{total_steps: 4, batch_size: 7, evaluations: 2}}
lrs: [1e-3, 1e-2]
seeds: [0, 1]
device: cpu
"""
CARD = {"architecture": {"inputs": 2, "hidden": [5, 3], "outputs": 1, "omega_0": 30.0}}


@pytest.fixture
def recipe(tmp_path):
    zoo = siren_zoo(40)
    zoo.card.update(CARD)
    zoo.facts["amplitude"] = 1 + zoo.facts["frequency"].sin()
    save_zoo(tmp_path / "toy.safetensors", zoo)
    (tmp_path / "small.yaml").write_text(RECIPE.format(zoo=tmp_path / "toy.safetensors"))
    return tmp_path / "small.yaml"


def run(recipe, *overrides, output="out", **options):
    loaded = load_recipe(recipe, [f"output={recipe.parent / output}", *overrides])
    return run_recipe(loaded, **options)


def test_every_reader_is_tuned_and_scored_alike(recipe):
    outcome = run(recipe)
    cells = outcome.result.results["cells"]
    assert [cell["reader"] for cell in cells] == ["mlp_permuted", "mlp_aligned", "dws_canonical", "role_tied"]
    for cell in cells:
        assert len(cell["scores"]) == 2 and cell["lr"] in (1e-3, 1e-2)
        assert [fit["steps"] for fit in cell["fits"]] == [[2, 4], [2, 4]]
        assert [fit["scores"]["test"]["mse"] for fit in cell["fits"]] == list(cell["scores"])
    shown = outcome.result.tables[0]
    assert outcome.result.results["floor"]["what"] in shown.notes[0]
    assert len(shown.rows) == 4 and all(len(row) == len(shown.columns) for row in shown.rows)
    assert [row[3] == "" for row in shown.rows] == [False, False, False, True]
    for name in ("scores.png", "found.png"):
        assert (outcome.folder / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((outcome.folder / "results.json").read_text())["metric"] == "mse"


def test_the_rate_is_chosen_on_the_validation_side_with_the_first_seed(recipe):
    outcome = run(recipe, "readers=[mlp]", "seeds=[3]")
    pieces = [
        json.loads(file.read_text())["fit"] for file in sorted((outcome.folder / "pieces").glob("mlp-*.json"))
    ]
    cell = outcome.result.results["cells"][0]
    best = min(pieces, key=lambda fit: fit["scores"]["val"]["mse"])
    assert len(pieces) == 2
    assert cell["scores"] == (best["scores"]["test"]["mse"],) and cell["fits"][0]["steps"] == best["steps"]


class StoppedError(Exception):
    pass


def test_a_stopped_run_ends_with_the_same_numbers(recipe):
    whole = run(recipe, output="whole").result.results

    def hear(progress):
        if progress.task.startswith("dws_canonical, lr 0.01") and progress.done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(recipe, output="parts", progress=hear)
    again = run(recipe, output="parts", resume=True).result.results
    for one, other in zip(whole["cells"], again["cells"], strict=True):
        assert one["scores"] == other["scores"] and one["lr"] == other["lr"]


def test_scores_against_the_number_of_training_nets_have_a_column_each(recipe):
    outcome = run(recipe, "train_nets=[3, 11]", "readers=[mlp, statnn]")
    assert outcome.result.tables[0].columns[2:4] == ("3\nnets", "11\nnets")
    assert {cell["nets"] for cell in outcome.result.results["cells"]} == {3, 11}
    with pytest.raises(ExperimentError, match="99 training nets are asked for, but the zoo has 14"):
        run(recipe, "train_nets=[99]", "readers=[mlp]", output="more")


@pytest.mark.parametrize(
    ("task", "metric", "picture"),
    [
        ("{name: classification}", "accuracy", None),
        ("{name: ranking}", "tau", "found.png"),
        ("{name: embedding, dimensions: 3}", "mse", "points.png"),
        ("{name: editing, edit: erode, size: 5}", "mse", "before.png"),
    ],
)
def test_every_task_runs_and_draws_what_the_best_reader_sees(recipe, task, metric, picture):
    outcome = run(recipe, f"task={task}", "readers=[mlp, role_tied]", "seeds=[0]", "lrs=[1e-3]")
    assert outcome.result.results["metric"] == metric
    names = {"scores.png", picture} - {None}
    assert {file.name for file in outcome.result.files} == names
    for name in names:
        assert (outcome.folder / name).read_bytes().startswith(b"\x89PNG")


def test_titles_say_which_edit_it_is(recipe):
    task = "task={name: editing, edit: erode, size: 5, nets: 2}"
    title = run(recipe, task, "readers=[mlp]", "seeds=[0]", "lrs=[1e-3]").result.tables[0].title
    assert title.startswith("editing (erode, mean of 2 nets) on ")
    assert run(recipe, "readers=[mlp]", output="plain").result.tables[0].title.startswith("regression on ")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("readers=[dwss]", "Did you mean 'dws'"),
        ("readers=[dws, dws]", "must be distinct"),
        ("readers=[]", "at least 1"),
        ("reference=np", "is not among the readers"),
        ("task.name=regresion", "regression"),
        ("task={name: editing, edit: dilatee}", "Did you mean 'dilate'"),
        ("task.facts=3", "Did you mean 'fact'"),
        ("fit.total_stepps=3", "Did you mean 'total_steps'"),
        ("seeds=[0, 0]", "must be distinct"),
        ("train_nets=[]", "at least one"),
        ("lrs=[1e-3, 1e-3]", "must be distinct"),
    ],
)
def test_every_kind_of_fault_is_found(recipe, override, part):
    faults = recipe_faults(recipe, [override])
    assert len(faults) == 1
    assert part in str(faults[0])


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["zoo.file=nowhere.safetensors"], "there is no nowhere"),
        (["task.fact=frequence"], "Did you mean 'frequency'"),
        (["task={name: editing, size: 5}", "readers=[statnn]"], "no equivariant head"),
    ],
)
def test_what_only_the_zoo_can_tell_is_an_error_for_people(recipe, overrides, part):
    with pytest.raises(NfoptError, match=part):
        run(recipe, *overrides)


def test_a_zoo_without_a_side_is_refused(recipe):
    zoo = siren_zoo(40)
    save_zoo(recipe.parent / "toy.safetensors", zoo.subset(zoo.side != 2), overwrite=True)
    with pytest.raises(ExperimentError, match="0 for testing"):
        run(recipe)


def test_a_run_with_another_zoo_is_not_continued(recipe):
    run(recipe, "readers=[mlp]")
    (recipe.parent / "out" / "results.json").unlink()
    save_zoo(recipe.parent / "toy.safetensors", siren_zoo(40, seed=5), overwrite=True)
    with pytest.raises(RecipeError, match="content"):
        run(recipe, "readers=[mlp]", resume=True)


def test_the_plan_counts_the_fits(recipe):
    lines = "\n".join(load_recipe(recipe).plan())
    assert "12 fits of 4 steps" in lines and READERS["role_tied"].label in lines


def cell(reader, scores, nets=None):
    return Cell(reader, reader, 10, 3, nets, 0.1, False, scores, scores, (), 1.0)


def test_differences_are_paired_by_seed():
    report = Report("tau", True, "b", "", (cell("a", (0.3, 0.5)), cell("b", (0.2, 0.4))), {})
    shown = table(report, ())
    # Both spread by .1, yet a is ahead by .1 with either seed.
    assert shown.rows[0][2:4] == ("0.400±0.100", "+0.100±0.000")
    assert report.best(None) == "a"


def test_fits_without_a_score_are_counted_and_never_averaged():
    report = Report("mse", False, "b", "", (cell("a", (0.3, None)), cell("b", (0.2, 0.4))), {})
    shown = table(report, ())
    assert "(1 of 2)" in shown.rows[0][2] and any("diverged" in note for note in shown.notes)
    nothing = Report("mse", False, "b", "", (cell("a", (None, None)), cell("b", (0.2, 0.4))), {})
    assert table(nothing, ()).rows[0][2] == "diverged"
    assert nothing.best(None) == "b"


RECIPES = Path(__file__).parents[3] / "recipes"
FAMILY = sorted(
    path.stem for start in ("inr_", "sine_", "generalization_") for path in RECIPES.glob(f"{start}*.yaml")
)


@pytest.mark.parametrize("name", FAMILY)
def test_the_recipes_have_no_faults_and_say_what_they_would_do(name):
    plan = "\n".join(load_recipe(RECIPES / f"{name}.yaml").plan())
    assert "fits of" in plan and "make" in plan


SMOKE = [name for name in FAMILY if name.endswith("smoke")]


@pytest.mark.parametrize(
    "name", [name if name == "sine_smoke" else pytest.param(name, marks=pytest.mark.slow) for name in SMOKE]
)
def test_the_smoke_recipes_make_their_zoo_and_run(tmp_path, name):
    outcome = run_recipe(load_recipe(RECIPES / f"{name}.yaml", [f"output={tmp_path / 'out'}", "device=cpu"]))
    results = outcome.result.results
    assert all(cell["scores"][0] is not None for cell in results["cells"])
    assert (outcome.folder / "zoo.safetensors").is_file()
    assert load_zoo(outcome.folder / "zoo.safetensors").digest == results["zoo"]["digest"]


def test_a_zoo_is_read_or_made_never_both_and_never_neither(recipe):
    faults = recipe_faults(recipe, ["zoo={}"])
    assert len(faults) == 1 and "either a file or a zoo to make" in str(faults[0])
    both = "zoo.make={nets: {family: inr_sines}, counts: {train: 3}}"
    assert "either a file or a zoo to make" in str(recipe_faults(recipe, [both])[0])


def test_scores_of_all_sizes_show_three_figures():
    cells = (cell("a", (9.5099, 9.5101)), cell("b", (0.000812, 0.000814)))
    rows = table(Report("mse", False, "b", "", cells, {}), ()).rows
    assert [row[2] for row in rows] == ["9.51±0.00", "0.000813±0.000001"]
    assert rows[0][3] == "+9.51±0.00"
    accuracies = Report("accuracy", True, "b", "", (cell("b", (0.51234, 0.51236)),), {})
    assert table(accuracies, ()).rows[0][2] == "51.2±0.0"
