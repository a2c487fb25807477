"""Laws of stability: the scale of the loss means nothing, and no gradient whatever makes a step too large."""

from math import exp

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nfopt.optim import NFOptimizer, RuleConfig
from tests.optim.loops import INPUTS, RULE, TARGETS
from tests.optim.models import mlp

LARGEST_FACTOR = exp(2.0) * 2.0 * 2.0  # of the network's log step, row gain and column gain


def trained(loss_factor: float, steps: int) -> tuple[list[Tensor], NFOptimizer]:
    model = mlp().double()
    optimizer = NFOptimizer(model, total_steps=steps, checkpoint=RULE)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_factor * nn.functional.cross_entropy(model(INPUTS.double()), TARGETS)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer


@settings(max_examples=5, deadline=None)
@given(exponent=st.floats(-6.0, 6.0))
def test_the_scale_of_the_loss_changes_nothing(exponent: float) -> None:
    plain, _ = trained(1.0, 30)
    scaled, optimizer = trained(10.0**exponent, 30)
    for a, b in zip(plain, scaled, strict=True):
        assert float((a - b).abs().max()) < 1e-9
    assert optimizer.guard_report().last_step is None


@settings(max_examples=15, deadline=None)
@given(exponents=st.lists(st.integers(-18, 18), min_size=1, max_size=30), seed=st.integers(0, 2**20))
def test_no_sequence_of_finite_gradients_makes_a_step_larger_than_its_bound(
    exponents: list[int], seed: int
) -> None:
    model, config = mlp(), RuleConfig()
    optimizer = NFOptimizer(model, None, checkpoint=RULE, example_inputs=INPUTS)
    generator = torch.Generator().manual_seed(seed)
    for exponent in exponents:
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator) * 10.0**exponent
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            unit = config.matrix_step * old.shape[1] ** -0.5 if old.dim() == 2 else config.vector_step
            decay = config.matrix_step * config.weight_decay * exp(2.0) * old.square().mean().sqrt()
            moved = (new - old).square().mean().sqrt()
            assert moved.isfinite()
            assert moved <= LARGEST_FACTOR * unit + decay
    assert optimizer.guard_report().skipped == 0
