"""The guard's pure parts."""

import torch

from nfopt.optim import guard


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
