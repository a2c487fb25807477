"""Networks over nets learn what the nets compute: their forward pass on given inputs, for nets never seen."""

import pytest
import torch
from torch import Tensor

from nfopt.nn import NeuralFunctional, NeuralFunctionalConfig
from nfopt.symmetry import PermutationSpec
from tests.nn.spec_bound import mlp


def random_nets(spec: PermutationSpec, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    nets = {}
    for name, entry in spec.tensors.items():
        scale = entry.shape[-1] ** -0.5 if len(entry.shape) > 1 else 0.5
        nets[name] = torch.randn(count, *entry.shape, generator=generator) * scale
    return nets


def outputs(nets: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What tanh MLPs compute: [nets, points x outputs]."""
    count = len(nets) // 2
    hidden = inputs.expand(len(nets["0.weight"]), *inputs.shape)
    for i in range(count):
        hidden = hidden @ nets[f"{i}.weight"].mT + nets[f"{i}.bias"][:, None]
        hidden = hidden.tanh() if i + 1 < count else hidden
    return hidden.flatten(1)


def explained(widths, points, steps, learning_rate=1e-2, batch=64, **options) -> float:
    """Share of the variance of unseen nets' outputs that a network explains; each step draws new nets."""
    spec, generator = mlp(*widths), torch.Generator().manual_seed(0)
    inputs = torch.randn(points, widths[0], generator=generator)
    unseen = random_nets(spec, 1000, generator)
    config = NeuralFunctionalConfig(outputs=points * widths[-1], **options)
    network = NeuralFunctional(spec, config, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    for _ in range(steps):
        nets = random_nets(spec, batch, generator)
        loss = (network(nets) - outputs(nets, inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    wanted = outputs(unseen, inputs)
    with torch.no_grad():
        errors = (network(unseen) - wanted).square().mean()
    return 1 - (errors / wanted.var()).item()


SMALL = {"channels": 16, "depth": 2, "head_hidden": 16}


@pytest.mark.parametrize("layer", ["dws", "hnp"])
def test_layers_that_see_the_coupling_learn_the_output_of_unseen_nets(layer):
    assert explained((2, 7, 1), 1, 300, layer=layer, **SMALL) > 0.9


def test_the_pointwise_ablation_does_not():
    assert explained((2, 7, 1), 1, 300, layer="pointwise", **SMALL) < 0.6


def test_permuted_inputs_need_a_position_to_be_told_apart():
    blind = explained((2, 7, 1), 1, 300, layer="np", norm=None, **SMALL)
    seeing = explained((2, 7, 1), 1, 300, layer="np", norm=None, position="learned", **SMALL)
    assert blind < 0.7 < seeing


def test_attention_learns_the_output_of_unseen_nets():
    assert explained((2, 7, 1), 1, 300, layer="attention", position="learned", **SMALL) > 0.8


@pytest.mark.slow
def test_a_dws_stack_learns_one_output_of_unseen_deep_nets():
    options = {"channels": 16, "depth": 3, "head_hidden": 16, "norm": None}
    assert explained((2, 7, 7, 1), 1, 600, 1e-2, 128, layer="dws", **options) > 0.9


@pytest.mark.slow
def test_a_dws_stack_learns_the_forward_pass_of_unseen_deep_nets_on_given_inputs():
    """Expressivity (Navon et al. 2023, on approximating the forward pass), on nets of two hidden layers."""
    options = {"channels": 32, "depth": 4, "head_hidden": 64, "norm": None}
    learned = explained((2, 7, 7, 1), 4, 2000, 5e-3, 128, layer="dws", **options)
    ablation = explained((2, 7, 7, 1), 4, 2000, 5e-3, 128, layer="pointwise", **options)
    assert learned > 0.9
    assert ablation < 0.6
