import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nfopt.cli import app
from nfopt.editing import Edit
from nfopt.errors import NfoptError
from nfopt.models import build_model
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.adapt.adapt import few_labels

SMALL = """
kind: adapt
data: {name: digits, n_train: 211, n_val: 53}
model: {name: cnn, options: {channels: [5, 7]}}
total_steps: 20
batch_size: 31
domains: [contrast:3, "rotation:2+gaussian:5"]
methods:
  bn: [{method: bn}]
  both: [{method: bn, options: {source_count: 8}}, {method: finetune, options: {steps: 3}}]
target_images: 23
kept_source: 29
shots: 2
seeds: [0, 1]
device: cpu
"""
FOLDER = """
kind: adapt_folder
model: {name: cnn, options: {channels: [5, 7]}}
weights: WEIGHTS
class_names: [cat, dog, owl]
side: 13
target: {folder: FOLDER, at_most: 8}
steps: [{method: bn}, {method: tent, options: {steps: 2}}]
gate: {one_class: null, max_logit_factor: null, max_confidence_drop: null, min_class_share: null}
device: cpu
"""


@pytest.fixture
def recipe(tmp_path):
    def load(text, *overrides):
        (tmp_path / "adapt.yaml").write_text(text)
        return load_recipe(tmp_path / "adapt.yaml", [f"output={tmp_path / 'out'}", *overrides])

    return load


@pytest.fixture
def own(tmp_path):
    """Return the text of a recipe for a saved model and nine pictures in three folders."""
    model = build_model("cnn", (3, 13, 13), 3, options={"channels": (5, 7)})
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    for number in range(9):
        folder = tmp_path / "pictures" / ("cat", "dog", "owl")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (17, 19, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return FOLDER.replace("WEIGHTS", str(tmp_path / "weights.safetensors")).replace(
        "FOLDER", str(tmp_path / "pictures")
    )


def test_every_edit_is_tested_saved_and_shown(recipe, tmp_path):
    outcome = run_recipe(recipe(SMALL))
    rows = outcome.result.results["edits"]
    assert len(rows) == 2 * 2 * 2
    assert {row["method"] for row in rows} == {"bn", "both"}
    assert all(row["before"] != row["after"] for row in rows)
    (table,) = outcome.result.tables
    assert [row[0] for row in table.rows] == ["contrast:3", "rotation:2+gaussian:5", "mean", "clean images"]
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 0
    saved = Edit.load(tmp_path / "out" / "edits" / "both-rotation2-gaussian5.safetensors")
    assert saved.method == "bn + finetune"
    state = load_file(tmp_path / "out" / "model-seed0.safetensors")
    back = saved.reverted_state(saved.edited_state(state, force=True))
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert run_recipe(recipe(SMALL), resume=True).was_complete


def test_the_same_recipe_gives_the_same_results(recipe, tmp_path):
    first = run_recipe(recipe(SMALL, "seeds=[1]")).result.results
    again = run_recipe(recipe(SMALL, "seeds=[1]", f"output={tmp_path / 'again'}")).result.results
    assert json.dumps(first) == json.dumps(again)


def test_the_plan_says_what_each_step_may_change(recipe, tmp_path):
    plan = "\n".join(recipe(SMALL).plan())
    assert "bn, step 1: bn; 4 of 14 tensors, 24 numbers (1.running_mean" in plan
    assert "both, step 2: finetune, 2 labels per class" in plan
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("contrast:3", "contarst:3", "Did you mean 'contrast'"),
        ("contrast:3", "contrast:9", "from 1 to 5"),
        ("method: bn}", "method: bm}", "Known: bn, bn-eb, eata, finetune, nf, nf-bn, shot-im, tent"),
        ("source_count: 8", "source_cuont: 8", "Did you mean 'source_count'"),
        ("source_count: 8", "source_count: -8", "at least 0"),
        ("steps: 3", "steps: many", "valid integer"),
        ("bn: [{method: bn}]", "bn: []", "needs at least one step"),
        ("[0, 1]", "[1, 1]", "must be distinct"),
        ("shots: 2", "gate: {max_sorce_drop: 1}", "Did you mean 'max_source_drop'"),
    ],
)
def test_faults_of_a_recipe_are_said_with_what_was_meant(tmp_path, old, new, says):
    assert old in SMALL
    (tmp_path / "bad.yaml").write_text(SMALL.replace(old, new, 1))
    faults = recipe_faults(tmp_path / "bad.yaml")
    assert len(faults) == 1 and says in str(faults[0])


def test_more_validation_images_than_there_are_is_an_error(recipe):
    with pytest.raises(NfoptError, match="53 validation images; target_images and kept_source need 130"):
        run_recipe(recipe(SMALL, "target_images=101"))


def test_few_labels_are_the_first_of_each_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 1])
    assert few_labels(labels, 2).tolist() == [2, 0, 2, -1, 0, 1]


def test_a_folder_of_pictures_edits_ones_own_model(recipe, own, tmp_path):
    outcome = run_recipe(recipe(own))
    assert outcome.result.results["accepted"] is True
    edit = Edit.load(tmp_path / "out" / "edit.safetensors")
    assert edit.method == "bn + tent" and edit.history[0].images == 8
    base, edited = load_file(tmp_path / "weights.safetensors"), load_file(tmp_path / "out/edited.safetensors")
    found = edit.edited_state(base)
    assert all(torch.equal(found[name], tensor) for name, tensor in edited.items())
    assert (tmp_path / "out" / "scores.png").stat().st_size > 0


def test_a_refused_edit_writes_no_edited_weights(recipe, own, tmp_path):
    outcome = run_recipe(recipe(own, "gate.max_logit_factor=1.0"))
    assert outcome.result.results["accepted"] is False
    assert not (tmp_path / "out" / "edited.safetensors").exists()
    assert "REFUSED by the gate" in outcome.result.tables[0].notes


def test_labelled_pictures_are_shared_between_method_and_gate(recipe, own):
    steps = "steps=[{method: finetune, options: {steps: 2}}]"
    outcome = run_recipe(recipe(own, steps, "target.labelled=true", "gate.min_target_gain=null"))
    (step,) = outcome.result.results["steps"]
    assert step["images"] == 4 and step["labels"] == 4
    assert {"target", "held_out"} == set(step["data"])


def test_the_plan_of_a_folder_counts_its_pictures(recipe, own):
    plan = "\n".join(recipe(own).plan())
    assert "target: 9 pictures in" in plan and "8 of them used" in plan
    assert "step 2: tent; 8 of 14 tensors" in plan


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["target.folder=nowhere"], "there is no folder nowhere"),
        (["target.labelled=true", "class_names=[cat, dog]"], "unknown class 'owl'"),
        (["steps=[{method: finetune}]"], "set target.labelled: true"),
        (["class_names=[a, b]"], "is not a state of cnn with 2 classes"),
        (["weights=nowhere.safetensors"], "is not a state of cnn"),
        (["weights=null"], "comes without weights"),
    ],
)
def test_bad_input_to_the_folder_recipe_is_said(recipe, own, overrides, says):
    with pytest.raises(NfoptError, match=says):
        run_recipe(recipe(own, *overrides))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["target.folder=nowhere"], "there is no folder nowhere"),
        (["weights=nowhere.safetensors"], "is not a state of cnn"),
        (["class_names=[a, b]"], "is not a state of cnn with 2 classes"),
        (["steps=[{method: finetune}]"], "set target.labelled: true"),
        (["steps=[{method: tent, options: {include: [layer9]}}]"], "'layer9' matches none"),
        (["model={name: mlp, options: {hidden: [5]}}", "weights=null"], "bn edits BatchNorm, and"),
    ],
)
def test_the_plan_finds_what_would_stop_the_run(recipe, own, overrides, says):
    with pytest.raises(NfoptError, match=says):
        recipe(own, *overrides).plan()


def test_saved_edits_are_shown_applied_and_taken_back_on_the_command_line(recipe, own, tmp_path):
    run_recipe(recipe(own))

    def call(*arguments):
        return CliRunner().invoke(app, ["edit", *map(str, arguments)])

    edit, base = tmp_path / "out" / "edit.safetensors", tmp_path / "weights.safetensors"
    shown = call("show", edit)
    assert shown.exit_code == 0 and "by bn + tent" in shown.stdout and "step 2: tent" in shown.stdout
    assert call("apply", edit, base, "--out", tmp_path / "a.safetensors").exit_code == 0
    assert (
        call("revert", edit, tmp_path / "a.safetensors", "--out", tmp_path / "b.safetensors").exit_code == 0
    )
    first, back = load_file(base), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())
    other, damaged, content = tmp_path / "other", tmp_path / "damaged", edit.read_bytes()
    save_file({name: tensor + 1 for name, tensor in first.items()}, other)
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for arguments, says in (
        (
            ("apply", edit, tmp_path / "a.safetensors", "--out", tmp_path / "c"),
            "applied to this model already",
        ),
        (("apply", edit, other, "--out", tmp_path / "c"), "0.weight has other values"),
        (("revert", edit, base, "--out", tmp_path / "c"), "reverted to this model already"),
        (("apply", damaged, base, "--out", tmp_path / "c"), "is damaged"),
        (("apply", edit, base, "--out", tmp_path / "a.safetensors"), "exists; no file is written over"),
        (("apply", edit, tmp_path / "absent", "--out", tmp_path / "c"), "cannot be read"),
        (("show", base), "has the format None"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and says in result.stderr, result.output
