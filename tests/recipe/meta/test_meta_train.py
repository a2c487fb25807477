"""Jobs `meta_train` and `evaluate_rule`: from a recipe to a checkpoint with its scores."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from nfopt.checkpoints import load_checkpoint
from nfopt.errors import NfoptError, RecipeError
from nfopt.meta.lesions import LESIONS
from nfopt.optim.controls import CONTROL_NAMES
from nfopt.optim.observations import TENSOR_FEATURES
from nfopt.optim.rule_checkpoint import CHECKPOINT_KIND, read_rule
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.folder import new_folder
from nfopt.recipe.job import RunContext
from nfopt.recipe.meta.meta_train import EstimatorOptions, MetaTrainRecipe, build_trainer
from nfopt.seeds import generator

RECIPES = Path(__file__).parents[3] / "recipes"
GRID = {"learning_rates": [0.004, 0.02], "weight_decays": [0.0], "momenta": [0.9], "cosine": [False]}
TASK = {
    "architecture": {"kind": "mlp", "widths": [7], "classes": 10, "image": [1, 8, 8]},
    "batch_images": 16,
    "train_images": 100,
    "validation_images": 50,
    "horizon": 12,
}
EVALUATION = {"seeds": 2, "every": 4, "adamw": GRID, "muon": GRID, "tasks": {"digits-mlp": TASK}}
TINY = {
    "kind": "meta_train",
    "family": {
        "sources": ["digits"],
        "kinds": [["mlp", 1.0]],
        "widths": [5, 7],
        "depths": [1, 1],
        "batch_images": [8, 8],
        "train_images": [50, 50],
        "horizon": [6, 9],
    },
    "objective": {"every": 3},
    "estimator": {"kind": "backprop", "truncation": 5},
    "slots": 2,
    "instances": 2,
    "outer": {"outer_steps": 3},
    "checkpoint_every": 1,
    "selection": {"tasks": 1, "instances": 1, "horizon_factor": 2, "every": 3},
}


def written(folder: Path, recipe: dict, **changes: object) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe | changes))
    return file


def test_a_recipe_gives_a_checkpoint_with_its_scores(tmp_path: Path) -> None:
    file = written(tmp_path, TINY, evaluation=EVALUATION)
    outcome = run_recipe(load_recipe(file, [f"output={tmp_path / 'out'}"]))
    checkpoint = load_checkpoint(outcome.folder / "checkpoint.safetensors", kind=CHECKPOINT_KIND)
    assert checkpoint.digest == outcome.result.results["digest"]
    assert checkpoint.card["recipe"]["outer"]["outer_steps"] == 3
    scores = checkpoint.card["heldout"]["digits-mlp"]
    assert sorted(scores) == ["adamw", "learned", "muon", "nominal"]
    assert scores["nominal"]["validation_minus_nominal"] == {"mean": 0.0, "error": 0.0}
    assert len(outcome.result.tables) == 2
    assert len((outcome.folder / "log.jsonl").read_text().splitlines()) == 3


class StoppedError(Exception):
    pass


def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_same_checkpoint(tmp_path: Path) -> None:
    loaded = {
        name: load_recipe(written(tmp_path, TINY), [f"output={tmp_path / name}"])
        for name in ("whole", "killed")
    }
    whole = run_recipe(loaded["whole"]).result

    def stop(progress) -> None:
        if progress.done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_recipe(loaded["killed"], progress=stop)
    assert run_recipe(loaded["killed"], resume=True).result.results == whole.results
    assert run_recipe(loaded["killed"], resume=True).was_complete


def test_a_recipe_of_two_processes_gives_the_numbers_of_one(tmp_path: Path) -> None:
    one, two = (
        run_recipe(load_recipe(written(tmp_path, TINY, processes=n), [f"output={tmp_path / str(n)}"]))
        for n in (1, 2)
    )
    assert one.result.results == two.result.results
    logs = [(outcome.folder / "log.jsonl").read_text().splitlines() for outcome in (one, two)]
    for line, other in zip(*logs, strict=True):
        assert json.loads(line)["gradient_norm"] == json.loads(other)["gradient_norm"]


def _launched(rank: int, port: int, file: Path, output: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    run_recipe(load_recipe(file, [f"output={output}"]))


@pytest.mark.slow
def test_two_processes_of_a_launcher_give_the_numbers_of_one(tmp_path: Path) -> None:
    file = written(tmp_path, TINY)
    one = run_recipe(load_recipe(file, [f"output={tmp_path / 'one'}"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_launched, (port, file, tmp_path / "two"), nprocs=2)
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["digest"] == one.result.results["digest"]


def test_a_launcher_and_processes_of_its_own_are_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(written(tmp_path, TINY, processes=2))
    context = RunContext(new_folder(tmp_path / "out", "tiny"))
    monkeypatch.setattr("nfopt.recipe.meta.meta_train.process_count", lambda: 2)
    with pytest.raises(RecipeError, match="processes=1"):
        loaded.job.run(loaded.recipe, context)


def test_meta_training_starts_from_a_checkpoint_of_the_same_rule_only(tmp_path: Path) -> None:
    first = run_recipe(load_recipe(written(tmp_path, TINY), [f"output={tmp_path / 'first'}"]))
    start = str(first.folder / "checkpoint.safetensors")
    went_on = load_recipe(written(tmp_path, TINY, start=start), [f"output={tmp_path / 'second'}"])
    assert run_recipe(went_on).result.results != first.result.results
    again = written(tmp_path, TINY, start=start, rule={"hidden": 5})
    with pytest.raises(RecipeError, match="start"):
        run_recipe(load_recipe(again, [f"output={tmp_path / 'other'}"]))


def test_a_rule_is_trained_without_the_parts_that_a_recipe_names(tmp_path: Path) -> None:
    parts = ("no row and column gains", "blind to gradients")
    recipe = load_recipe(written(tmp_path, TINY, without=parts)).recipe
    assert isinstance(recipe, MetaTrainRecipe)
    trainer = build_trainer(recipe, tmp_path / "again", tmp_path / "again")
    trainer.run()
    theta = trainer.settings.layout.unflatten(trainer.outer.theta)
    for part in parts:
        assert all(torch.equal(theta[name], value) for name, value in LESIONS[part](theta).items())
    assert theta["tensor_output_bias"].all() and theta["tensor_output"].any()
    whole = build_trainer(recipe.model_copy(update={"without": ()}), tmp_path / "again", tmp_path / "again")
    with pytest.raises(NfoptError, match="weights that are not learned"):
        whole.run()


def test_only_what_reads_the_named_features_is_learned(tmp_path: Path) -> None:
    changes = {"start": "default", "only_reading": ["last", "depth"], "rule": {}}
    recipe = load_recipe(written(tmp_path, TINY, **changes)).recipe
    assert isinstance(recipe, MetaTrainRecipe)
    trainer = build_trainer(recipe, tmp_path / "out", tmp_path / "out")
    start = trainer.outer.theta.clone()
    trainer.run()
    moved = trainer.settings.layout.unflatten(trainer.outer.theta != start)
    columns = [TENSOR_FEATURES.index(name) for name in ("depth", "last")]
    assert moved["tensor_output"][:, [4 + c for c in columns]].all()
    count = sum(int(value.sum()) for value in moved.values())
    assert 0 < count <= len(columns) * (len(CONTROL_NAMES) + 4 + 4)
    assert torch.equal(trainer.outer.average != start, trainer.outer.theta != start)


def test_an_evaluation_of_the_nominal_point_needs_no_checkpoint(tmp_path: Path) -> None:
    recipe = {"kind": "evaluate_rule", "checkpoint": "nominal", "evaluation": EVALUATION}
    outcome = run_recipe(load_recipe(written(tmp_path, recipe), [f"output={tmp_path / 'out'}"]))
    found = json.loads((outcome.folder / "results.json").read_text())
    assert sorted(found["tasks"]["digits-mlp"]["methods"]) == ["adamw", "muon", "nominal"]
    assert read_rule("nominal")[1] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": {"widht": [5, 7]}}, "Did you mean 'widths'"),
        ({"family": {"sources": ["cifar10"]}}, "held out"),
        ({"rule": {"rates": {"slwo": 0.9}}}, "Did you mean 'slow'"),
        ({"outer": {"outer_steps": 0}}, "must be positive"),
        ({"objective": {"every": 0}}, "every >= 1"),
        ({"variants": {"x": {"share": 0.5, "family": {"widht": [5, 7]}}}}, "Did you mean 'widths'"),
        ({"variants": {"x": {"share": 0.5, "family": {"sources": ["cifar10"]}}}}, "held out"),
        ({"only_reading": ["kernl"]}, "Did you mean 'kernel'"),
        ({"without": ["no tokns"]}, "Did you mean 'no tokens'"),
        ({"variants": {n: {"share": 0.7, "family": {}} for n in "ab"}}, "sum to 1.4"),
        ({"estimator": {"kind": "sgd"}}, "'es', 'pes' or 'backprop'"),
        ({"evaluation": EVALUATION | {"adamw": GRID | {"momenta": [0.8, 0.9]}}}, "equally large"),
        ({"evaluation": EVALUATION | {"tasks": {"t": TASK | {"horizn": 3}}}}, "Did you mean 'horizon'"),
    ],
)
def test_a_fault_anywhere_in_the_recipe_is_found(tmp_path: Path, change: dict, message: str) -> None:
    faults = recipe_faults(written(tmp_path, TINY | change))
    assert len(faults) == 1
    assert message in str(faults[0])


def test_a_variant_takes_its_share_of_the_tasks_and_is_otherwise_the_recipes_family(tmp_path: Path) -> None:
    variants = {"long": {"share": 0.5, "family": {"horizon": [11, 13], "most_epochs": 3}}}
    loaded = load_recipe(written(tmp_path, TINY, variants=variants))
    assert isinstance(loaded.recipe, MetaTrainRecipe)
    assert loaded.recipe.variants["long"].family == replace(
        loaded.recipe.family, horizon=(11, 13), most_epochs=3.0
    )
    horizons = [loaded.recipe.tasks().sample(generator(i)).horizon for i in range(40)]
    assert min(horizons) <= 9 < 11 <= max(horizons)
    assert any("50% of the tasks as long" in line for line in loaded.plan())
    again = tmp_path / "resolved.yaml"
    again.write_text(loaded.resolved_yaml())
    assert load_recipe(again).recipe == loaded.recipe


def test_several_unknown_keys_of_one_part_are_all_reported(tmp_path: Path) -> None:
    assert len(recipe_faults(written(tmp_path, TINY | {"family": {"a": 1, "b": 2}}))) == 2


@pytest.mark.parametrize("name", ["meta_train", "meta_train_smoke", "heldout"])
def test_the_shipped_recipes_have_no_faults_and_a_plan(name: str) -> None:
    loaded = load_recipe(RECIPES / f"{name}.yaml")
    assert loaded.plan()
    assert yaml.safe_load(loaded.resolved_yaml())["kind"] == loaded.recipe.kind


def test_every_estimator_of_the_schema_can_be_built() -> None:
    kinds = {type(EstimatorOptions(kind=kind).build()).__name__ for kind in ("es", "pes", "backprop")}
    assert kinds == {"ES", "PES", "TruncatedBackprop"}


def test_a_source_that_is_not_there_is_an_error_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NFOPT_DATA", raising=False)
    recipe = TINY | {"family": TINY["family"] | {"sources": ["mnist"]}}
    with pytest.raises(NfoptError, match="NFOPT_DATA"):
        run_recipe(load_recipe(written(tmp_path, recipe), [f"output={tmp_path / 'out'}"]))


@pytest.mark.slow
def test_the_smoke_recipe_runs(tmp_path: Path) -> None:
    outcome = run_recipe(load_recipe(RECIPES / "meta_train_smoke.yaml", [f"output={tmp_path / 'out'}"]))
    theta = load_checkpoint(outcome.folder / "checkpoint.safetensors", kind=CHECKPOINT_KIND).theta
    assert all(torch.isfinite(value).all() for value in theta.values())
