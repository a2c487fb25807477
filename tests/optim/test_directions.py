"""Update directions: scale, equivariance and agreement with their textbook forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.optim import directions
from nfopt.optim.directions import MomentumRates
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace.incidence import MatrixLayout

RATES = MomentumRates()


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def layout_of(*shape: int) -> MatrixLayout:
    return MatrixLayout.of(PermutationSpec.uncoupled({"w": shape}).tensors["w"])


@given(seed=st.integers(0, 2**31), log_scale=st.floats(-8, 8))
def test_every_direction_has_rms_one_whatever_the_gradients_scale(seed: int, log_scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(3, 5, 2, 2, generator=generator) * 10**log_scale
    second = momentum.square() * (1 + torch.rand(3, 5, 2, 2, generator=generator))
    layout = layout_of(3, 5, 2, 2)
    for direction in (
        directions.adam(momentum, second, 4),
        directions.orthogonal([momentum], [layout])[0],
    ):
        assert rms(direction) == pytest.approx(1.0, rel=1e-4)


def test_a_zero_gradient_gives_zero_directions() -> None:
    zero = torch.zeros(3, 5)
    assert not directions.adam(zero, zero, 2).any()
    assert not directions.orthogonal([zero], [layout_of(3, 5)])[0].any()


def test_adam_matches_torch_adam_up_to_its_scale() -> None:
    param = torch.nn.Parameter(torch.zeros(3, 5, dtype=torch.float64))
    reference = torch.optim.Adam([param], lr=1.0, betas=(RATES.slow, RATES.second), eps=1e-30)
    slow = second = torch.zeros_like(param)
    for seed in range(4):
        grad = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        slow = torch.lerp(slow, grad, 1 - RATES.slow)
        second = torch.lerp(second, grad.square(), 1 - RATES.second)
        before = param.detach().clone()
        param.grad = grad
        reference.step()
    moved = before - param.detach()
    assert torch.allclose(directions.adam(slow, second, 2), directions.unit_rms(moved, 2), atol=1e-7)


def test_only_gradients_at_rounding_level_are_dead() -> None:
    power = torch.tensor([1.0, 1e-4, 1e-8, 1e-16, 0.0], dtype=torch.float64)
    alive = directions.liveness(power, power)
    assert torch.allclose(alive[:3], torch.ones(3, dtype=torch.float64), rtol=2e-4)
    assert bool((alive[3:] < 1e-3).all())
    assert torch.allclose(directions.liveness(1e-12 * power, 1e-12 * power), alive, rtol=1e-5)


def test_a_tensor_whose_gradient_vanishes_comes_to_rest() -> None:
    peak = torch.ones(5, dtype=torch.float64)
    threshold = directions.ARRIVED**2
    power = torch.tensor([1.0, threshold, 1e-2 * threshold, 1e-4 * threshold, 0.0], dtype=torch.float64)
    alive = directions.liveness(power, peak)
    expected = (1 + threshold) * torch.tensor([1 / (1 + threshold), 1 / 2, 1 / 101, 1 / 10001, 0.0])
    assert torch.allclose(alive, expected.double(), rtol=1e-5)


def test_weight_decay_is_weak_early_on_while_the_gradient_lives() -> None:
    alive = torch.tensor([1.04, 1.0, 0.5, 0.0], dtype=torch.float64)
    living = torch.tensor([1.0, 1.0, 1 - 1.4 * 0.5 / 0.9, 0.0], dtype=torch.float64)
    for step, young in ((0.0, 1.0), (400.0, 0.5), (800.0, 0.0), (5000.0, 0.0)):
        found = directions.decay_factor(alive, torch.full_like(alive, step))
        assert torch.allclose(found, 1 - 0.7 * young * living), step


def test_lookahead_is_the_nesterov_momentum_of_the_chosen_rate() -> None:
    grads = [
        torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)
    ]
    slow = fast = torch.zeros(3, dtype=torch.float64)
    for grad in grads:
        slow, fast = torch.lerp(slow, grad, 1 - RATES.slow), torch.lerp(fast, grad, 1 - RATES.fast)
    step = torch.tensor([3.0], dtype=torch.float64)
    for share, momentum, rate in ((0.0, slow, RATES.slow), (1.0, fast, RATES.fast)):
        expected = rate * momentum / (1 - rate**3) + (1 - rate) * grads[-1]
        weights = directions.lookahead_weights(torch.tensor([share], dtype=torch.float64), step, RATES)
        assert torch.allclose(weights[0] * slow + weights[1] * fast + weights[2] * grads[-1], expected)


def test_tensors_of_one_shape_are_orthogonalised_as_if_alone() -> None:
    momenta = [torch.randn(3, 5), torch.randn(7, 2), torch.randn(3, 5), torch.randn(3, 5, 1, 1)]
    layouts = [layout_of(*m.shape) for m in momenta]
    together = directions.orthogonal(momenta, layouts)
    for i, direction in enumerate(together):
        alone = directions.orthogonal([momenta[i]], [layouts[i]])[0]
        assert direction.shape == momenta[i].shape
        assert torch.allclose(direction, alone, atol=1e-5)
