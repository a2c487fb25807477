from pathlib import Path

import pytest
import torch

from nfopt.errors import PruningError
from nfopt.models import build_model
from nfopt.pruning import PruningMask
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.prune.channels import load_pruned
from nfopt.recipe.prune.train import parts_of

MASK = """
kind: prune_mask
data: {name: digits, n_train: 101, n_val: 53}
model: {name: mlp, options: {hidden: [7, 5]}}
density: 0.3
batch_size: 13
score_batches: 2
total_steps: 3
device: cpu
masks:
  snip: {score: snip}
  imp: {score: imp, rounds: 2, exclude: ["5.*"]}
"""
TRAIN = """
kind: prune_train
data: {name: digits, n_train: 101, n_val: 53}
model: {name: mlp, options: {hidden: [7, 5]}}
densities: [0.5, 0.25]
optimizer: {name: adamw, lr: 1e-2}
total_steps: 10
batch_size: 13
score_batches: 2
seeds: [0, 1]
device: cpu
methods:
  snip: {score: snip, scope: layer}
  shuffled: {score: snip, scope: layer, control: shuffled}
  other: {score: snip, scope: layer, control: reinitialised}
  imp: {score: imp, rounds: 2, scope: layer}
  gradual: {when: gradual, scope: layer}
  linear: {when: gradual, shape: linear, scope: layer}
"""
CHANNELS = """
kind: prune_channels
data: {name: digits, n_train: 101, n_val: 53}
model: {name: cnn, options: {channels: [5, 7]}}
train_steps: 3
finetune_steps: 2
batch_size: 13
score: taylor
score_batches: 2
device: cpu
"""


def run(folder, text, *, name="small"):
    (folder / f"{name}.yaml").write_text(text)
    return run_recipe(load_recipe(folder / f"{name}.yaml", [f"output={folder / 'out'}"]))


def test_masks_are_saved_shown_by_layer_and_drawn(tmp_path):
    outcome = run(tmp_path, MASK)
    found = outcome.result.results["masks"]
    model = build_model("mlp", (1, 8, 8), 10, options={"hidden": [7, 5]})
    mask = PruningMask.load(outcome.folder / "masks" / "snip-0.3-seed0.safetensors", model)
    assert mask.kept_count == round(0.3 * (7 * 64 + 35 + 50))
    assert [row["kept"] for row in found["snip"]["layers"]] == [row.kept for row in mask.rows()]
    assert [row["name"] for row in found["imp"]["layers"]] == ["1.weight", "3.weight"]
    assert outcome.result.tables[0].rows[2][3] == "whole"
    assert outcome.result.tables[0].notes[-1] == "imp: 2 tensors are pruned exclude '5.*': 5.weight"
    assert (outcome.folder / "densities.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_is_trained_at_every_density_with_its_mask_kept(tmp_path):
    outcome = run(tmp_path, TRAIN)
    trainings = outcome.result.results["trainings"]
    assert len(trainings) == 2 * (1 + 2 * 6)
    for each in trainings:
        if each["method"] != "dense":
            for row in each["mask"]["layers"]:
                assert row["kept"] == round(each["density"] * row["total"])
    of = {(t["method"], t["density"], t["seed"]): t["curve"] for t in trainings}
    starts = {key: of[key, 0.5, 0]["val_loss"][0] for key in ("snip", "shuffled", "other")}
    assert len(set(starts.values())) == 3
    assert of["gradual", 0.5, 0]["val_loss"][0] == of["dense", 1.0, 0]["val_loss"][0]
    assert of["gradual", 0.25, 0]["val_loss"] != of["linear", 0.25, 0]["val_loss"]
    table = outcome.result.tables[0]
    assert [row[0] for row in table.rows] == [
        "dense",
        "snip",
        "shuffled",
        "other",
        "imp",
        "gradual",
        "linear",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    for name in ("accuracies.png", "densities.png"):
        assert (outcome.folder / name).read_bytes().startswith(b"\x89PNG")


def test_channels_are_removed_and_the_saved_net_is_the_one_that_was_tested(tmp_path):
    outcome = run(tmp_path, CHANNELS)
    results = outcome.result.results
    assert results["proof"]["passed"] and not results["held"]
    assert results["after"]["parameters"] < results["before"]["parameters"]
    assert [(g["size"], g["kept"]) for g in results["groups"]] == [(5, 2), (7, 4)]
    fresh = build_model("cnn", (1, 8, 8), 10, seed=3, options={"channels": [5, 7]})
    loaded = load_pruned(outcome.folder, fresh)
    assert sum(p.numel() for p in loaded.parameters()) == results["after"]["parameters"]
    assert loaded.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert (outcome.folder / "channels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", [MASK, TRAIN])
def test_a_pattern_that_matches_nothing_is_refused_before_any_work(tmp_path, text):
    text = text.replace("{score: snip", "{score: snip, exclude: [7.weight]", 1)
    with pytest.raises(PruningError, match=r"'7\.weight' matches no parameter"):
        run(tmp_path, text)
    assert not list((tmp_path / "out").rglob("pieces/*"))


@pytest.mark.parametrize(
    ("text", "override", "part"),
    [
        (MASK, "masks.snip.score=snipp", "Did you mean 'snip'"),
        (MASK, "masks.snip.scope=glob", "Did you mean 'global'"),
        (MASK, "masks.snip.scope='5:4'", "keeps N of every M"),
        (MASK, "masks.snip.scope=2:4", 'write scope: "2:4"'),
        (MASK, "density=1.5", "less than or equal to 1"),
        (MASK, "masks={}", "at least 1"),
        (TRAIN, "densities=[0.5, 0.5]", "must be distinct"),
        (TRAIN, "methods={dense: {}}", "cannot be called 'dense'"),
        (TRAIN, "methods.gradual.score=snip", "gradual pruning goes by magnitude"),
        (TRAIN, "methods.gradual.scope='2:4'", "has no scope 2:4"),
        (TRAIN, "methods.gradual.shape=cubik", "'cubic' or 'linear'"),
        (TRAIN, "methods.snip.shape=linear", "shape is a setting of gradual pruning"),
        (CHANNELS, "score=imp", "is no score of channels"),
        (CHANNELS, "scope=erk", "'layer' or 'global'"),
    ],
)
def test_every_kind_of_fault_is_found(tmp_path, text, override, part):
    (tmp_path / "small.yaml").write_text(text)
    faults = recipe_faults(tmp_path / "small.yaml", [override])
    assert len(faults) == 1
    assert part in str(faults[0])


@pytest.mark.parametrize("name", ["prune_mask", "prune_train", "prune_gradual", "prune_channels"])
def test_the_recipes_that_come_along_have_no_faults(name):
    assert not recipe_faults(Path(__file__).parents[3] / "recipes" / f"{name}.yaml")


def test_plans_say_what_would_be_done(tmp_path):
    for text, part in ((MASK, "30 %"), (TRAIN, "26 trainings of 10 steps"), (CHANNELS, "50 %")):
        (tmp_path / "small.yaml").write_text(text)
        loaded = load_recipe(tmp_path / "small.yaml")
        assert part in "\n".join(loaded.plan())
    (tmp_path / "small.yaml").write_text(TRAIN)
    assert len(parts_of(load_recipe(tmp_path / "small.yaml").recipe)) == 26
