import copy
from dataclasses import replace

import pytest
import torch

from nfopt.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from nfopt.editing import adapt
from nfopt.editing.editor import EditorConfig, editor_checkpoint, read_editor
from nfopt.errors import CheckpointError, UnknownNameError
from nfopt.metrics import evaluate
from tests.editing.editor.editor_nets import awake

SMALL = EditorConfig(rounds=2, channels=5, element_channels=3)


def test_an_editor_comes_back_from_its_file(tmp_path):
    editor = awake(SMALL).float()
    save_checkpoint(tmp_path / "e.safetensors", editor_checkpoint(editor, {"uses": ["images"]}))
    loaded = read_editor(tmp_path / "e.safetensors")
    assert loaded.editor.config == SMALL and loaded.uses == ("images",)
    for name, value in editor.state_dict().items():
        assert torch.equal(loaded.editor.state_dict()[name], value)
    assert not any(weight.requires_grad for weight in loaded.editor.parameters())


def test_what_is_no_editor_is_refused():
    checkpoint = editor_checkpoint(awake(SMALL), {})
    with pytest.raises(CheckpointError, match="another version of the editor"):
        read_editor(replace(checkpoint, config={**checkpoint.config, "surprise": 1}))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        read_editor(replace(checkpoint, config={**checkpoint.config, "channels": 7}))
    with pytest.raises(UnknownNameError, match="no-such-editor"):
        read_editor("no-such-editor")


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    other = Checkpoint("update-rule", {"w": torch.ones(3)}, {}, {})
    save_checkpoint(tmp_path / "rule.safetensors", other)
    with pytest.raises(CheckpointError, match="update-rule"):
        read_editor(tmp_path / "rule.safetensors")


def test_the_nominal_editor_changes_no_weight_by_learning():
    editor = read_editor("nominal").editor
    assert not editor.network.element_out.weight.any()


def test_the_bundled_editor_is_intact_and_says_where_it_comes_from():
    loaded = read_editor("editor")
    assert set(loaded.uses) == {"images", "labels"} and len(loaded.digest) == 64
    assert load_checkpoint("editor", kind="weight-editor").card["recipe"]["kind"] == "train_editor"


def test_the_bundled_editor_is_ahead_of_statistics_on_corruptions_that_it_never_saw(digits):
    gains = []
    for domain in ("brightness:4", "pixelate:4", "motion:3"):
        target, test = digits.domain(domain, 64)
        scores = []
        for method, options in (("bn", {}), ("nf", {"checkpoint": "editor"})):
            net = copy.deepcopy(digits.model)
            adapt(net, target.images, method, options=options, gate=None).apply(net)
            scores.append(evaluate(net, test.images, test.labels).accuracy)
        gains.append(scores[1] - scores[0])
    assert sum(gains) / len(gains) > 0.01
