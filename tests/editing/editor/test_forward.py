import copy

import pytest
import torch
from torch import nn

from nfopt.editing.editor import NetForward
from nfopt.editing.model_state import state_of, write_into
from tests.editing.editor.editor_nets import deep_normed, images, plain, traced
from tests.editing.nets import bits_of


@pytest.mark.parametrize("net", [deep_normed, plain])
def test_without_shares_it_is_the_module(net):
    model = net()
    _, tensors = traced(model, images())
    logits, norms = NetForward(model)(tensors, images())
    torch.testing.assert_close(logits, model(images()), rtol=1e-12, atol=1e-12)
    assert norms.measured == {} and norms.blended == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_blended_statistics_put_in_place_give_the_same_logits(share):
    model = deep_normed()
    _, tensors = traced(model, images())
    shares = {name: torch.full((1,), share, dtype=torch.float64) for name in ("1", "4")}
    logits, norms = NetForward(model)(tensors, images(), shares)
    edited = copy.deepcopy(model)
    write_into(edited, norms.blended)
    torch.testing.assert_close(edited(images()), logits, rtol=1e-10, atol=1e-10)
    moved = not torch.equal(edited(images()), model(images()))
    assert moved == (share > 0)


def test_with_the_images_alone_a_layer_sees_normal_channels():
    model = deep_normed()
    _, tensors = traced(model, images())
    _, norms = NetForward(model)(tensors, images(), {"1": torch.ones(1), "4": torch.ones(1)})
    inputs = model[0](images())
    torch.testing.assert_close(norms.blended["1.running_mean"], inputs.mean((0, 2, 3)))
    torch.testing.assert_close(norms.blended["1.running_var"], inputs.var((0, 2, 3)))


def test_many_nets_side_by_side_are_each_of_them_alone():
    nets = [deep_normed(seed) for seed in (1, 2, 3)]
    states = [traced(net, images())[1] for net in nets]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    pictures = torch.stack([images(seed=seed) for seed in (4, 5, 6)])
    shares = {"1": torch.tensor([[0.2], [0.5], [0.9]]).double(), "4": torch.rand(3, 7).double()}
    logits, norms = NetForward(nets[0], many=True)(stacked, pictures, shares)
    for i, state in enumerate(states):
        own = {name: share[i] for name, share in shares.items()}
        alone, seen = NetForward(nets[0])(state, pictures[i], own)
        torch.testing.assert_close(logits[i], alone)
        for name, value in seen.blended.items():
            torch.testing.assert_close(norms.blended[name][i], value)


def test_logits_are_differentiable_in_parameters_and_statistics():
    model = deep_normed()
    _, tensors = traced(model, images(5))
    names = ["1.running_mean", "1.running_var", "4.weight", "8.bias"]
    shares = {"1": torch.full((5,), 0.4, dtype=torch.float64)}

    def scores(*values):
        logits, _ = NetForward(model)({**tensors, **dict(zip(names, values, strict=True))}, images(5), shares)
        return logits

    leaves = [tensors[name].clone().requires_grad_(True) for name in names]
    assert torch.autograd.gradcheck(scores, leaves)


def test_the_module_is_as_it_was_and_keeps_no_hooks():
    model = deep_normed()
    before = bits_of(model)
    _, tensors = traced(model, images())
    NetForward(model)({n: t + 1 for n, t in tensors.items()}, images(), {"1": torch.ones(1)})
    assert bits_of(model) == before
    assert all(not part._forward_pre_hooks for part in model.modules())
    broken = nn.Sequential(model, nn.Linear(4, 3))
    with pytest.raises(RuntimeError):
        NetForward(broken)({}, images())
    assert all(not part._forward_pre_hooks for part in model.modules())


def test_a_norm_layer_that_does_more_than_normalise_computes_what_it_would():
    from timm.layers import BatchNormAct2d

    model = nn.Sequential(nn.Conv2d(2, 5, 3), BatchNormAct2d(5), nn.Flatten(), nn.Linear(125, 3))
    model = model.double()
    model(images())
    model.eval()
    logits, _ = NetForward(model)(state_of(model), images())
    torch.testing.assert_close(logits, model(images()))
