import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from nfopt.checkpoints import save_checkpoint
from nfopt.editing import adapt
from nfopt.editing.editor import (
    NetForward,
    StatisticsConfig,
    StatisticsEditor,
    editor_checkpoint,
    read_editor,
    read_statistics_editor,
)
from nfopt.editing.model_state import state_of
from nfopt.editing.norms import statistics_of
from nfopt.errors import CheckpointError, EditingError
from tests.editing.editor.editor_nets import deep_normed, images, traced

CONFIG = StatisticsConfig(source_count=5.0, shift=0.3, scale=0.3, width=7, memory=3)


def awake_statistics(config=CONFIG, seed=5):
    """Return an editor in float64 that has something to say of every channel."""
    editor = StatisticsEditor(config, torch.Generator().manual_seed(seed)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    last = editor.channels[-1]
    with torch.no_grad():
        last.weight.copy_(torch.randn(last.weight.shape, generator=generator, dtype=torch.float64))
    return editor.requires_grad_(False)


def tensors_of(model):
    return {name: t.detach().clone() for name, t in state_of(model).items() if t.is_floating_point()}


@pytest.mark.parametrize("geometric", [False, True])
@torch.no_grad()
def test_a_fresh_editor_blends_layer_by_layer(geometric):
    model, shown = deep_normed(), images(13)
    config = dataclasses.replace(CONFIG, geometric=geometric)
    editor = StatisticsEditor(config).double().requires_grad_(False)
    edited = editor.edited(NetForward(model), tensors_of(model), shown)
    share = 13 / (13 + 5)
    inputs = shown
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean = torch.lerp(layer.running_mean, inputs.mean((0, 2, 3)), share)
            both = (layer.running_var + layer.eps, inputs.transpose(0, 1).flatten(1).var(1) + layer.eps)
            var = torch.lerp(*both, share) if not geometric else both[0] ** (1 - share) * both[1] ** share
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var - layer.eps)
        inputs = layer(inputs)
    for name in statistics_of(model):
        torch.testing.assert_close(edited[name], state_of(model)[name], rtol=1e-12, atol=1e-12)


def test_renumbering_the_neurons_renumbers_the_statistics():
    model, shown = deep_normed(), images()
    spec, tensors = traced(model, shown)
    editor, forward = awake_statistics(), NetForward(model)
    permutation = spec.sample(torch.Generator().manual_seed(1))
    found = editor.edited(forward, spec.act(permutation, tensors), shown)
    wanted = spec.act(permutation, editor.edited(forward, tensors, shown))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-10)


def test_the_order_of_the_images_does_not_matter():
    model, shown = deep_normed(), images(11)
    editor, forward, tensors = awake_statistics(), NetForward(model), tensors_of(model)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    one, other = (editor.edited(forward, tensors, x) for x in (shown, shown[order]))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-10)


def test_many_nets_side_by_side_are_edited_as_each_alone():
    models = [deep_normed(seed) for seed in range(3)]
    shown = torch.stack([images(5, seed) for seed in range(3)])
    states = [tensors_of(model) for model in models]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    editor = awake_statistics()
    together = editor.edited(NetForward(models[0], many=True), stacked, shown)
    for number, (model, state) in enumerate(zip(models, states, strict=True)):
        alone = editor.edited(NetForward(model), state, shown[number])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][number], value, rtol=1e-9, atol=1e-10)


def test_an_editor_that_speaks_changes_means_and_variances_and_nothing_else():
    model, shown = deep_normed(), images()
    tensors = tensors_of(model)
    edited = awake_statistics().edited(NetForward(model), tensors, shown)
    fresh = StatisticsEditor(CONFIG).double().requires_grad_(False)
    blended = fresh.edited(NetForward(model), tensors, shown)
    for name in tensors:
        if name in statistics_of(model):
            assert (edited[name] - blended[name]).abs().max() > 1e-3
        else:
            assert torch.equal(edited[name], tensors[name])


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3])
@pytest.mark.parametrize("count", [1, 2])
def test_statistics_are_finite_and_variances_positive_for_odd_images(scale, count):
    model = deep_normed()
    edited = awake_statistics().edited(NetForward(model), tensors_of(model), scale * images(count))
    for name in statistics_of(model):
        assert torch.isfinite(edited[name]).all()
        if name.endswith("running_var"):
            assert (edited[name] > -1e-5).all()


@pytest.mark.parametrize("shown", [torch.zeros(3, 2, 7, 7, dtype=torch.float64), images(7)])
def test_derivatives_reach_every_weight_and_are_finite(shown):
    model = deep_normed()
    editor, tensors = awake_statistics().requires_grad_(True), tensors_of(model)
    edited = editor.edited(NetForward(model), tensors, shown)
    logits, _ = NetForward(model)(edited, images(5, 9))
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])).backward()
    for parameter in editor.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0


def test_nf_bn_edits_by_its_checkpoint_and_is_undone_to_the_bit(tmp_path):
    model, shown = deep_normed().float(), images().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    editor = awake_statistics().float()
    place = tmp_path / "editor.safetensors"
    save_checkpoint(place, editor_checkpoint(editor, {}))
    edit = adapt(model, shown, "nf-bn", options={"checkpoint": str(place)}, gate=None)
    edit.apply(model)
    wanted = editor.edited(NetForward(model), {k: v for k, v in before.items() if v.ndim}, shown)
    for name in statistics_of(model):
        torch.testing.assert_close(model.state_dict()[name], wanted[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(model.state_dict()[name], before[name])
    edit.revert(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_bundled_editor_stays_between_source_and_target_and_nearer_the_target_the_more_images():
    model, tensors = deep_normed(), tensors_of(deep_normed())
    editor = read_statistics_editor("statistics").editor.double()
    name = "1.running_mean"
    shares = []
    for count in (3, 97):
        shown = images(count) + 1
        target = model[0](shown).mean((0, 2, 3)).detach()
        found = editor.edited(NetForward(model), tensors, shown)[name]
        share = (found - tensors[name]) / (target - tensors[name])
        assert (share > 0).all() and (share < 1).all()
        shares.append(share.mean())
    assert shares[0] < shares[1]


def test_nf_bn_of_a_model_without_batchnorm_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(98, 3))
    with pytest.raises(EditingError, match="BatchNorm"):
        adapt(model, images().float(), "nf-bn")


def test_a_checkpoint_of_the_other_kind_of_editor_is_refused():
    checkpoint = editor_checkpoint(awake_statistics(), {})
    assert read_statistics_editor(checkpoint).editor.config == CONFIG
    wrong = dataclasses.replace(checkpoint, config={**checkpoint.config, "width": 11})
    with pytest.raises(CheckpointError, match="do not fit"):
        read_statistics_editor(wrong)
    with pytest.raises(CheckpointError):
        read_editor(checkpoint)
    with pytest.raises(CheckpointError):
        read_statistics_editor("editor")


@pytest.mark.parametrize(
    "wrong", [{"source_count": 0.0}, {"width": 0}, {"memory": 1.5}, {"blend": -1.0}, {"geometric": 1.0}]
)
def test_bounds_that_make_no_sense_are_refused(wrong):
    with pytest.raises(EditingError, match=next(iter(wrong))):
        StatisticsConfig(**wrong)
