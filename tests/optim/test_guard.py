"""The guard's pure parts, and what they do to a training."""

import pytest
import torch

from nfopt.optim import guard
from nfopt.optim.directions import MomentumRates, liveness
from nfopt.optim.moments import SCALAR_STATE, weigh
from tests.optim.loops import build
from tests.optim.models import mlp


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_trust_falls_from_one_to_zero_as_the_gradient_grows() -> None:
    usual, step = vector(0, 0, 0, 0), vector(100, 100, 100, 100)
    current = vector(1.0, guard.DAMP_FROM, (guard.DAMP_FROM + guard.DAMP_TO) / 2, guard.DAMP_TO + 1)
    assert torch.allclose(guard.trust(usual, current, step), vector(1, 1, 0.5, 0))


def test_the_first_steps_are_never_anomalous() -> None:
    usual, current, step = vector(0.0), vector(50.0), vector(3.0)
    assert guard.trust(usual, current, step) == 1
    assert guard.clip_factor(usual, current, step) == 1


def test_from_the_fifth_step_on_an_absurd_gradient_is_clipped_but_the_rule_still_trusted() -> None:
    usual, current, step = vector(0.0), vector(guard.DAMP_TO + 3.0), vector(float(guard.CLIP_AFTER + 1))
    assert torch.allclose(guard.clip_factor(usual, current, step).log(), vector(-3.0))
    assert guard.trust(usual, current, step) == 1


def test_clipping_brings_a_gradient_down_to_the_bound() -> None:
    factor = guard.clip_factor(vector(0.0), vector(guard.DAMP_TO + 3.0), vector(100.0))
    assert torch.allclose(factor.log(), vector(-3.0))


def test_the_usual_norm_follows_slow_changes_but_not_one_outlier() -> None:
    usual = vector(0.0)
    for step in range(200):
        usual = guard.update_usual(usual, vector(0.01 * step), vector(float(step)))
    assert 1.5 < float(usual) < 2.0
    jumped = guard.update_usual(usual, vector(100.0), vector(200.0))
    assert float(jumped - usual) <= (1 - guard.MEMORY) * guard.DAMP_FROM + 1e-12


def test_the_log_norm_of_a_zero_gradient_is_finite() -> None:
    assert guard.log_norm(torch.zeros(5)).isfinite().all()


def test_a_gradient_of_zero_says_nothing_of_the_usual_and_the_first_other_one_sets_it() -> None:
    silent, loud = guard.log_norm(torch.zeros(1, dtype=torch.float64)), vector(-3.0)
    usual = vector(0.0)
    for step in range(50):
        usual = guard.update_usual(usual, silent, vector(float(step)))
        assert guard.trust(usual, loud, vector(float(step))) == 1
        assert guard.clip_factor(usual, loud, vector(float(step))) == 1
    usual = guard.update_usual(usual, loud, vector(50.0))
    assert usual == loud
    assert guard.update_usual(usual, silent, vector(51.0)) == loud
    assert guard.trust(usual, loud + 5, vector(52.0)) == 0


def test_a_layer_that_wakes_up_late_moves_at_once_like_the_others() -> None:
    moved = {}
    for silent_steps in (0, 50):
        model = mlp()
        optimizer = build(model, total_steps=None, checkpoint="nominal", example_inputs=torch.zeros(2, 5))
        generator = torch.Generator().manual_seed(0)
        for step in range(53):
            for name, param in model.named_parameters():
                param.grad = torch.randn(param.shape, generator=generator)
                if name.startswith("2.") and step < silent_steps:
                    param.grad.zero_()
            before = model[2].weight.detach().clone()
            optimizer.step()
        moved[silent_steps] = float((model[2].weight.detach() - before).norm())
    assert 0.5 < moved[50] / moved[0] < 2.0


@pytest.mark.parametrize("when", [0, 4])
def test_an_absurd_early_gradient_does_not_make_all_later_ones_look_small(when: int) -> None:
    rates = MomentumRates()
    state = {f"w/{key}": torch.zeros(()) for key in SCALAR_STATE}
    for step in range(15):
        square = torch.tensor([1e8 if step == when else 1.0])
        numbers = weigh(square, state, ("w",), rates)
        state = numbers.state(("w",))
    assert float(liveness(numbers.power, numbers.peak)) > 0.5
    # A gradient that is large for some time is no accident, and is remembered once the first steps are over.
    for step in range(40):
        numbers = weigh(torch.tensor([100.0 if step < 20 else 0.01]), state, ("w",), rates)
        state = numbers.state(("w",))
    assert float(liveness(numbers.power, numbers.peak)) < 0.3
