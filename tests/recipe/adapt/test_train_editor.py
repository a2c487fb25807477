import pytest

from nfopt.editing import METHODS
from nfopt.editing.editor import read_editor, read_statistics_editor
from nfopt.errors import NfoptError
from nfopt.meta import editor_trainer
from nfopt.recipe import load_recipe, recipe_faults, run_recipe

SMALL = """
kind: train_editor
data: {name: digits, n_train: 331, n_val: 31}
nets:
  conv: {model: {name: cnn, options: {channels: [3, 5]}}, train: 2, val: 1, total_steps: 3}
  plain: {model: {name: mlp, options: {hidden: [7]}}, train: 2, val: 1, total_steps: 3}
domains: [contrast:3]
tasks: {images: [5], test_images: 11}
editor: {rounds: 2, channels: 3, element_channels: 2, layers: 1}
training:
  {total_steps: 4, nets: 2, check_every: 2, check_batches: 2, checkpoint_every: 1, uses: [images, labels]}
device: cpu
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "editor.yaml").write_text(SMALL)
    return lambda name: load_recipe(tmp_path / "editor.yaml", [f"output={tmp_path / name}"])


def test_a_training_that_was_killed_goes_on_to_the_same_editor(recipe, tmp_path, monkeypatch):
    whole = run_recipe(recipe("whole"))
    assert whole.result.results["summary"]["history"][0][0] == 0
    original = editor_trainer.EditorTrainer._step

    def killed(trainer, step):
        if step == 3:
            raise KeyboardInterrupt
        return original(trainer, step)

    monkeypatch.setattr(editor_trainer.EditorTrainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe("stopped"))
    steps = []
    monkeypatch.setattr(
        editor_trainer.EditorTrainer, "_step", lambda t, step: (steps.append(step), original(t, step))[1]
    )
    resumed = run_recipe(recipe("stopped"), resume=True)
    assert steps == [3]
    assert resumed.result.results == whole.result.results
    loaded = read_editor(tmp_path / "stopped" / "checkpoint.safetensors")
    assert loaded.uses == ("images", "labels")
    assert (tmp_path / "stopped" / "training.png").stat().st_size > 0


def test_a_recipe_with_statistics_writes_an_editor_for_nf_bn(tmp_path):
    text = SMALL.replace(
        "editor: {rounds: 2, channels: 3, element_channels: 2, layers: 1}", "statistics: {width: 5}"
    )
    text = text.replace(
        "  plain: {model: {name: mlp, options: {hidden: [7]}}, train: 2, val: 1, total_steps: 3}\n", ""
    )
    text = text.replace(", uses: [images, labels]", ", objective: error")
    (tmp_path / "editor.yaml").write_text(text)
    run_recipe(load_recipe(tmp_path / "editor.yaml", [f"output={tmp_path / 'out'}"]))
    method = METHODS["nf-bn"](checkpoint=str(tmp_path / "out" / "checkpoint.safetensors"))
    assert read_statistics_editor(method.checkpoint).editor.config.width == 5


def test_nets_of_several_data_sets_teach_one_editor(tmp_path):
    # Colour-free pictures of another size beside the recipe's own, each noted with its hash.
    own = "data: {name: digits, n_train: 211, n_val: 31, resize: 5}, total_steps: 3}"
    text = SMALL.replace(
        "{hidden: [7]}}, train: 2, val: 1, total_steps: 3}", f"{{hidden: [7]}}}}, train: 2, val: 1, {own}"
    )
    assert own in text
    (tmp_path / "mixed.yaml").write_text(text)
    outcome = run_recipe(load_recipe(tmp_path / "mixed.yaml", [f"output={tmp_path / 'mixed'}"]))
    assert len(outcome.result.results["summary"]["history"]) == 3
    resolved = (tmp_path / "mixed" / "resolved.yaml").read_text()
    assert "digits of plain" in resolved


def test_the_plan_counts_what_would_be_done(recipe):
    plan = "\n".join(recipe("plan").plan())
    assert "train 2 + 1 nets conv: cnn, 3 steps" in plan
    assert "shown images, labels" in plan and "contrast:3" in plan


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rounds: 2", "round: 2", "Did you mean 'rounds'"),
        ("rounds: 2", "rounds: 0", "rounds of the editor is 0"),
        ("uses: [images, labels]", "uses: []", "at least one"),
        ("contrast:3", "contrst:3", "Did you mean 'contrast'"),
        ("nets: 2, check", "nets: 0, check", "nets of an editor's training is 0"),
    ],
)
def test_faults_are_said_with_what_was_meant(tmp_path, old, new, says):
    assert old in SMALL
    (tmp_path / "bad.yaml").write_text(SMALL.replace(old, new, 1))
    faults = recipe_faults(tmp_path / "bad.yaml")
    assert says in str(faults[0])


def test_a_share_that_leaves_no_images_is_refused(tmp_path):
    (tmp_path / "none.yaml").write_text(SMALL + "nets_share: 1.0\n")
    with pytest.raises(NfoptError, match="leaves none on one side"):
        run_recipe(load_recipe(tmp_path / "none.yaml", [f"output={tmp_path / 'none'}"]))
