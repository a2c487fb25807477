"""Job `race`: resumable, in pieces, with the same numbers however it is run."""

import json
from pathlib import Path

import pytest

from nfopt.errors import RecipeError
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.race.options import entrants, heats
from nfopt.recipe.race.race import plan_race
from nfopt.recipe.trial import Trial

RECIPES = Path(__file__).parents[3] / "recipes"
RECIPE = """
kind: race
tasks:
  small:
    data: {name: digits, n_train: 101, n_val: 53}
    model: {name: mlp, options: {hidden: [7]}}
    total_steps: [12, 24]
    batch_size: 13
    evaluations: 4
  noisy:
    data: {name: digits, n_train: 101, n_val: 53, label_noise: 0.2}
    model: {name: mlp, options: {hidden: [7]}}
    total_steps: [12]
    batch_size: 13
    evaluations: 4
seeds: [0, 1]
tuning_seeds: [7]
device: cpu
search: coordinate
references: [adamw, sgd]
candidate: nominal
ablations: [plain]
methods:
  nominal: {name: nfopt, checkpoint: nominal}
  plain: {name: adamw, lr: 1e-3}
  adamw: {name: adamw, label: AdamW, weight_decay: 0.0, tune: {lr: [1e-3, 3e-2], weight_decay: [0.0, 0.1]}}
  sgd: {name: sgd, tune: {lr: [1e-2, 0.1, 1e+38]}}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    (folder / "small.yaml").write_text(RECIPE)
    return run_recipe(load_recipe(folder / "small.yaml", [f"output={folder / 'out'}"]))


def tables(outcome):
    return {table.title: table for table in outcome.result.tables}


def test_every_method_is_reported_in_every_heat_on_seeds_that_nothing_was_chosen_by(whole):
    found = whole.result.results["heats"]
    assert list(found) == ["small-12", "small-24", "noisy-12"]
    for heat in found.values():
        assert list(heat["methods"]) == ["nominal", "plain", "adamw", "sgd"]
        assert heat["missing"] == {}
        for method in heat["methods"].values():
            assert [run["seed"] for run in method["runs"]] == [0, 1]
        assert [len(heat["methods"][key]["candidates"]) for key in ("adamw", "sgd")] == [3, 3]
    assert json.loads((whole.folder / "results.json").read_text()) == whole.result.results


def test_all_methods_start_at_the_same_loss_for_the_same_seed(whole):
    methods = whole.result.results["heats"]["small-12"]["methods"].values()
    starts = [[run["val_loss"][0] for run in method["runs"]] for method in methods]
    assert all(start == starts[0] for start in starts)


def test_a_setting_that_diverges_is_not_chosen(whole):
    for heat in whole.result.results["heats"].values():
        sgd = heat["methods"]["sgd"]
        assert [c["mean_final_val_loss"] is None for c in sgd["candidates"]] == [False, False, True]
        assert sgd["chosen"]["lr"] < 1


def test_tables_pictures_and_times_are_there_and_rows_fit_their_headings(whole):
    for table in whole.result.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert {path.name for path in whole.result.files} == {
        "loss_by_steps.png",
        "loss_by_time.png",
        "steps_to_target.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in whole.result.files)
    seconds = json.loads((whole.folder / "timing.json").read_text())["step_seconds"]["small-12"]
    assert set(seconds) == {"nominal", "plain", "adamw", "sgd", "forward+backward"}
    assert "Not there yet" not in tables(whole)


def test_the_reference_s_own_fraction_is_one(whole):
    (table,) = [t for title, t in tables(whole).items() if title.startswith("Steps to") and "AdamW" in title]
    column = table.columns.index("AdamW")
    assert {row[column] for row in table.rows} == {"1.00"}


def without_weights(outcome):
    return {key: value for key, value in outcome.result.results.items() if key != "weights"}


@pytest.mark.slow
def test_worker_processes_give_the_same_results(file, tmp_path, whole):
    spread = run_recipe(load_recipe(file, [f"output={tmp_path / 'two'}", "processes=2"]))
    assert spread.result.results == whole.result.results


class StopHereError(Exception):
    """Stands for a kill."""


def test_a_race_that_is_killed_and_resumed_ends_with_the_same_results(file, tmp_path, whole):
    loaded = load_recipe(file, [f"output={tmp_path / 'out'}"])
    for stop_at in (2, 9):
        finished = []

        def stop(progress, finished=finished, stop_at=stop_at):
            if progress.task != "race" and progress.done == progress.total:
                finished.append(progress.task)
                if len(finished) == stop_at:
                    raise StopHereError

        with pytest.raises(StopHereError):
            run_recipe(loaded, resume=True, progress=stop)
    assert run_recipe(loaded, resume=True).result.results == whole.result.results


def test_a_race_in_parts_names_what_is_missing_and_ends_as_the_whole(file, tmp_path, whole):
    out = f"output={tmp_path / 'out'}"
    part = run_recipe(load_recipe(file, [out, "only.tasks=[small-12]", "only.methods=[adamw, nominal]"]))
    heats_found = part.result.results["heats"]
    assert list(heats_found["small-12"]["methods"]) == ["nominal", "adamw"]
    assert heats_found["small-12"]["missing"] == {"plain": 2, "sgd": 5}
    assert [row[0] for row in tables(part)["Not there yet"].rows] == ["small-12", "small-24", "noisy-12"]
    verdicts = {row[0]: row[3] for row in tables(part)["Verdict on nominal"].rows}
    assert verdicts["steps to sgd's loss"] == "unknown"
    assert verdicts["steps to AdamW's loss"].endswith("so far")
    again = run_recipe(load_recipe(file, [out, "only.tasks=[]"]), resume=True)
    assert again.result.results == part.result.results
    rest = run_recipe(load_recipe(file, [out]), resume=True)
    assert rest.result.results == whole.result.results


def test_nothing_that_is_there_is_trained_again_when_a_method_or_a_task_is_added(file, tmp_path, monkeypatch):
    out = f"output={tmp_path / 'out'}"
    trained: list[str] = []
    run = Trial.run

    def counted(self, *arguments):
        trained.append(self.name)
        return run(self, *arguments)

    monkeypatch.setattr(Trial, "run", counted)
    run_recipe(load_recipe(file, [out, "only.tasks=[small-12]", "only.methods=[plain]"]))
    assert len(trained) == 2
    run_recipe(load_recipe(file, [out, "only.tasks=[small-12]", "methods.plain.label=other"]), resume=True)
    assert len(trained) == len(set(trained)) > 2


def test_settings_of_an_earlier_race_take_the_place_of_its_searches(file, tmp_path, whole):
    earlier = whole.result.results["heats"]["small-12"]["methods"]["adamw"]
    chosen = {name: earlier["chosen"][name] for name in earlier["tuned"]}
    settings = [f"settings.small-12.adamw.{name}={value}" for name, value in chosen.items()]
    part = [f"output={tmp_path / 'out'}", "only.tasks=[small]", "only.methods=[adamw]"]
    outcome = run_recipe(load_recipe(file, [*part, *settings]))
    found = outcome.result.results["heats"]
    again = found["small-12"]["methods"]["adamw"]
    assert {key: again[key] for key in ("chosen", "tuned", "runs")} == {
        key: earlier[key] for key in ("chosen", "tuned", "runs")
    }
    assert again["candidates"] == []
    assert len(found["small-24"]["methods"]["adamw"]["candidates"]) == 3
    (table,) = [table for title, table in tables(outcome).items() if title.startswith("small-12")]
    assert any("as found by an earlier race" in note for note in table.notes)
    plan = "\n".join(plan_race(load_recipe(file, [*part, *settings]).recipe))
    assert "1 methods, coordinate search, 2 trainings of 12 steps" in plan
    assert len(list((tmp_path / "out" / "pieces").glob("small-12-adamw-*"))) == 2


def test_another_device_is_another_experiment(file, tmp_path):
    out = f"output={tmp_path / 'out'}"
    run_recipe(load_recipe(file, [out, "only.tasks=[]"]))
    with pytest.raises(RecipeError, match="threads was 1"):
        run_recipe(load_recipe(file, [out, "only.tasks=[]", "threads=2"]), resume=True)


def test_other_weights_or_code_of_the_rule_are_trained_again_and_baselines_are_not(file, monkeypatch):
    recipe = load_recipe(file).recipe
    heat = heats(recipe)[0]
    before = {key: heat.trial(options, 0).name for key, options in recipe.methods.items()}
    monkeypatch.setattr("nfopt.recipe.optimizers._code_of_the_rule", lambda: "other code")
    after = {key: heat.trial(options, 0).name for key, options in recipe.methods.items()}
    assert {key for key in before if before[key] != after[key]} == {"nominal"}


def test_the_name_of_a_training_depends_on_all_that_its_numbers_do(file):
    loaded = load_recipe(file).recipe
    names = {heat.trial(loaded.methods["plain"], 0).name for heat in heats(loaded)}
    for override in ("tasks.small.batch_size=7", "tasks.small.evaluations=3", "tasks.small.data.n_val=51"):
        changed = load_recipe(file, [override]).recipe
        heat = heats(changed)[0]
        assert heat.trial(changed.methods["plain"], 0).name not in names


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (
            "methods.sgd.tune.lr=[0.1, 0.2]",
            "equally many settings; by coordinate search it is adamw 3, sgd 2",
        ),
        ("search=product", "by product search it is adamw 4, sgd 3"),
        ("tasks.small.search=product", "by product search it is adamw 4, sgd 3"),
        ("tuning_seeds=[1]", "must not hold a reported seed"),
        ("seeds=[0, 0]", "must be distinct"),
        ("references=[adam]", "Did you mean 'adamw'"),
        ("candidate=nominl", "Did you mean 'nominal'"),
        ("ablations=[plane]", "Did you mean 'plain'"),
        ("only.tasks=[smal]", "Did you mean 'small'"),
        ("only.methods=[plian]", "Did you mean 'plain'"),
        ("tasks={a b: {data: {name: digits}, model: {name: mlp}, total_steps: [3]}}", "is no name"),
        ("tasks.small.total_steps=[]", "at least 1"),
        ("planned=[0.5, 0.25]", "must rise"),
        ("planned=[1.0]", "less than 1"),
        ("settings.small-21.sgd.lr=0.1", "Did you mean 'small-24'"),
        ("settings.small-12.sdg.lr=0.1", "Did you mean 'sgd'"),
        ("settings.small-12.sgd.lr=-0.1", "greater than 0"),
    ],
)
def test_every_kind_of_fault_is_found(file, override, part):
    faults = recipe_faults(file, [override])
    assert any(part in str(fault) for fault in faults), faults


def test_the_plan_counts_trainings_and_says_what_is_left_out(file):
    recipe = load_recipe(file, ["only.tasks=[small]"]).recipe
    plan = "\n".join(plan_race(recipe))
    assert "noisy-12: not in this part" in plan
    assert "small-24: mlp on digits, 4 methods, coordinate search, 14 trainings of 24 steps" in plan
    assert f"{14 * 12 + 14 * 24} optimizer steps in all" in plan
    assert len(entrants(recipe)) == 8


def test_planned_lengths_are_trained_by_untuned_methods_and_shared_with_heats_of_that_length(file, tmp_path):
    setting = ["planned=[0.25, 0.5]", "only.tasks=[small]", f"output={tmp_path / 'out'}"]
    recipe = load_recipe(file, setting).recipe
    lengths = [(e.key, e.heat.total_steps) for e in entrants(recipe)]
    assert lengths.count(("plain", 6)) == 1 and ("nominal", 3) in lengths and ("sgd", 6) not in lengths
    assert (
        "small-24: mlp on digits, 4 methods, coordinate search, 14 trainings of 24 steps, 8 of"
        in "\n".join(plan_race(recipe))
    )
    outcome = run_recipe(load_recipe(file, setting))
    table = tables(outcome)["Steps to plan for, to end at the final validation loss of AdamW"]
    assert [row[0] for row in table.rows] == ["small-12", "small-24", "geometric mean"]
    shares = outcome.result.results["heats"]["small-24"]["methods"]["plain"]["steps_to_plan_for"]["adamw"]
    assert set(shares["fractions"]) <= {0.25, 0.5, 1.0, 2.0}
    # Half of 24 steps is the heat of 12 steps itself: the same trainings, which are there once.
    pieces = [path.name for path in (tmp_path / "out" / "pieces").iterdir()]
    assert len([name for name in pieces if name.startswith("small-12-nfopt")]) == 2


def test_the_smoke_race_runs(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    overrides = [f"output={tmp_path / 'out'}", "tasks.digits-mlp.total_steps=[12]"]
    outcome = run_recipe(load_recipe(RECIPES / "race_smoke.yaml", overrides))
    assert "Not there yet" not in tables(outcome)
    assert len(outcome.result.results["heats"]["digits-mlp-12"]["methods"]) == 7
