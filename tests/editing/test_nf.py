import copy

import pytest
import torch

from nfopt.checkpoints import save_checkpoint
from nfopt.editing import METHODS, adapt
from nfopt.editing.editor import EditorConfig, WeightEditor, editor_checkpoint
from nfopt.errors import EditingError, UnknownNameError
from tests.editing.nets import bits_of, mlp


@pytest.fixture
def own(tmp_path):
    """Return the path of an editor that proposes something, trained for images alone."""
    editor = WeightEditor(EditorConfig(rounds=2, channels=5, element_channels=3))
    with torch.no_grad():
        weight = editor.network.element_out.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(tmp_path / "own.safetensors", editor_checkpoint(editor, {"uses": ["images", "labels"]}))
    return str(tmp_path / "own.safetensors")


def test_an_edit_by_a_learned_editor_is_an_edit_like_others(digits, own):
    target, _ = digits.domain("contrast:3", 23)
    before = bits_of(digits.model)
    edit = adapt(digits.model, target.images, "nf", options={"checkpoint": own}, gate=None)
    assert bits_of(digits.model) == before
    notes = edit.history[0].notes
    assert notes["rounds"] == 2 and len(notes["editor"]) == 64
    assert len(edit.changed) > len(adapt(digits.model, target.images, "bn", gate=None).changed)
    edit.apply(digits.model)
    edit.revert(digits.model)
    assert bits_of(digits.model) == before


def test_a_scale_of_zero_changes_statistics_alone(digits, own):
    target, _ = digits.domain("contrast:3", 23)
    edit = adapt(digits.model, target.images, "nf", options={"checkpoint": own, "scale": 0.0}, gate=None)
    assert edit.changed and all(name.endswith(("mean", "var")) for name in edit.changed)


def test_labels_shape_the_edit_where_they_are_used_and_cannot_judge_it(digits, own):
    target, _ = digits.domain("contrast:3", 23)
    options = {"checkpoint": own, "uses": "labels"}
    with pytest.raises(EditingError, match="needs labels"):
        adapt(digits.model, target.images, "nf", options=options)
    edit = adapt(digits.model, target.images, "nf", options=options, labels=target.labels)
    (step,) = edit.history
    assert {c.name: c.passed for c in step.checks}["accuracy on the target"] is None
    plain = adapt(digits.model, target.images, "nf", options={"checkpoint": own}, labels=target.labels)
    assert plain.result != edit.result
    assert METHODS["nf"].needs == frozenset() and not METHODS["nf"].trains_on_labels


def test_the_edit_says_what_it_may_touch(digits, own):
    example = digits.source.images[:2]
    state = set(digits.model.state_dict())
    for uses in ("weights", "images"):
        touched = METHODS["nf"](uses=uses).touches(digits.model, example)
        statistics = [name for name in touched if name.endswith(("mean", "var"))]
        assert set(touched) <= state and bool(statistics) == (uses == "images")
    edit = adapt(digits.model, digits.source.images[:9], "nf", options={"checkpoint": own}, gate=None)
    assert set(edit.changed) <= set(METHODS["nf"](checkpoint=own).touches(digits.model, example))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"uses": "gradients"}, "uses of nf is"),
        ({"scale": -1.0}, "scale of nf is -1.0"),
        ({"uses": "weights", "checkpoint": "OWN"}, "was trained to look at images, labels"),
    ],
)
def test_options_that_do_not_go_are_refused(options, says, own):
    options = {key: own if value == "OWN" else value for key, value in options.items()}
    with pytest.raises(EditingError, match=says):
        METHODS["nf"](**options)
    with pytest.raises(UnknownNameError, match="nowhere"):
        METHODS["nf"](checkpoint="nowhere")


def test_a_net_without_batchnorm_is_edited_from_weights_or_images():
    model, pictures = mlp(), torch.randn(11, 7)
    for uses in ("weights", "images"):
        edit = adapt(copy.deepcopy(model), pictures, "nf", options={"uses": uses}, gate=None)
        assert bool(edit.changed) == (uses == "images")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_net_is_edited_in_its_own_precision(dtype, own):
    model, pictures = mlp().to(dtype), torch.randn(11, 7).to(dtype)
    edit = adapt(model, pictures, "nf", options={"checkpoint": own}, gate=None)
    assert edit.changed and all(bool(delta.any()) for delta in edit.delta(model).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
)
def test_models_of_timm_are_edited(name, own):
    import timm

    model = timm.create_model(name, num_classes=5).eval()
    pictures = torch.randn(5, 3, 224, 224)
    edit = adapt(model, pictures, "nf", options={"checkpoint": own}, gate=None)
    assert len(edit.changed) > 5
