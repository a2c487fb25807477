"""Estimators of the meta-gradient against meta-gradients known by hand."""

from dataclasses import replace

import pytest
import torch
from meta_toys import DescentOnQuadratic

from nfopt.errors import NfoptError
from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.estimator import ES, PES, Carry, Estimate, GradientEstimator
from nfopt.meta.unroll import InnerState, Unrolled

THETA = torch.tensor([0.1], dtype=torch.float64)


def whole_training(
    estimator: GradientEstimator, problem: DescentOnQuadratic, seed: int = 0
) -> tuple[torch.Tensor, list[Estimate]]:
    """Sum of the pieces' estimates: (instances,)."""
    draw = torch.Generator().manual_seed(seed)
    carry: Carry | None = estimator.begin(problem, THETA)
    estimates = []
    while carry is not None:
        estimate, carry = estimator.step(problem, THETA, carry, draw)
        estimates.append(estimate)
    return torch.stack([e.gradients[:, 0] for e in estimates]).sum(0), estimates


def z_score(samples: torch.Tensor, expected: float) -> float:
    return float((samples.mean() - expected) / (samples.std() / len(samples) ** 0.5))


def smoothed_gradient(problem: DescentOnQuadratic, sigma: float) -> float:
    """E over eps of the gradient at theta + eps, by Gauss-Hermite quadrature."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    values = [problem.full_gradient(float(THETA[0] + sigma * node)) for node in nodes]
    return float(np.dot(weights, values) / weights.sum())


def test_es_over_whole_trainings_agrees_with_the_gradient_of_the_smoothed_loss() -> None:
    problem = DescentOnQuadratic(instance_count=40_000)
    gradients, _ = whole_training(ES(sigma=0.1), problem)
    expected = smoothed_gradient(problem, 0.1)
    assert abs(z_score(gradients, expected)) < 4
    assert abs(expected - problem.full_gradient(0.1)) > 0.1  # the smoothing matters at this sigma
    assert abs(z_score(gradients, problem.full_gradient(0.1))) > 4


def test_pes_over_truncations_is_unbiased_where_truncated_es_is_biased() -> None:
    problem = DescentOnQuadratic(instance_count=60_000)
    sigma = 0.01
    persistent, _ = whole_training(PES(sigma=sigma, truncation=2), problem)
    truncated, _ = whole_training(ES(sigma=sigma, truncation=2), problem)
    expected = problem.full_gradient(0.1)
    assert abs(z_score(persistent, expected)) < 4
    assert abs(z_score(truncated, expected)) > 20


def test_truncated_es_agrees_with_the_truncated_gradient() -> None:
    problem = DescentOnQuadratic(instance_count=60_000)
    truncated, _ = whole_training(ES(sigma=0.01, truncation=2), problem)
    backprop, _ = whole_training(TruncatedBackprop(truncation=2), DescentOnQuadratic(instance_count=1))
    assert abs(z_score(truncated, float(backprop))) < 4


def test_backprop_over_the_whole_training_is_the_exact_gradient() -> None:
    problem = DescentOnQuadratic()
    gradients, _ = whole_training(TruncatedBackprop(truncation=None), problem)
    torch.testing.assert_close(gradients, torch.full_like(gradients, problem.full_gradient(0.1)))


@pytest.mark.parametrize("segment", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("truncation", [None, 4])
def test_backprop_in_segments_is_the_same_gradient(segment: int, truncation: int | None) -> None:
    whole, expected = whole_training(TruncatedBackprop(truncation, 1e9), DescentOnQuadratic())
    parts, found = whole_training(TruncatedBackprop(truncation, 1e9, segment), DescentOnQuadratic())
    torch.testing.assert_close(parts, whole)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.losses, other.losses)
        assert one.inner_steps == other.inner_steps


def test_backprop_scales_a_long_gradient_to_its_largest_norm() -> None:
    gradients, _ = whole_training(TruncatedBackprop(truncation=None, max_norm=0.5), DescentOnQuadratic())
    torch.testing.assert_close(gradients, torch.full_like(gradients, -0.5))


def test_backprop_lets_long_gradients_fade_with_their_length_and_leaves_short_ones() -> None:
    whole, _ = whole_training(TruncatedBackprop(truncation=None, max_norm=1e9), DescentOnQuadratic())
    length = float(whole.abs().max())
    for limit in (length / 3, length * 3):
        faded, _ = whole_training(TruncatedBackprop(None, limit, fade=True), DescentOnQuadratic())
        torch.testing.assert_close(faded, whole * min(1.0, limit / length) ** 2)


@pytest.mark.parametrize(
    "estimator", [ES(sigma=0.3), ES(sigma=0.3, truncation=2), PES(sigma=0.3, truncation=6)]
)
def test_antithetic_estimates_of_an_even_loss_are_zero(estimator: GradientEstimator) -> None:
    problem = DescentOnQuadratic(kind="even")
    draw = torch.Generator().manual_seed(1)
    theta = torch.zeros(1, dtype=torch.float64)
    estimate, _ = estimator.step(problem, theta, estimator.begin(problem, theta), draw)
    assert estimate.losses.min() > 0
    torch.testing.assert_close(estimate.gradients, torch.zeros_like(estimate.gradients))


@pytest.mark.parametrize(
    ("estimator", "copies"), [(ES(truncation=4), 8), (PES(truncation=4), 8), (TruncatedBackprop(4), 4)]
)
def test_pieces_cover_the_horizon_exactly(estimator: GradientEstimator, copies: int) -> None:
    _, estimates = whole_training(estimator, DescentOnQuadratic(horizon=6))
    assert [e.inner_steps // copies for e in estimates] == [4, 2]


def test_estimates_repeat_for_the_same_draw_and_differ_for_another() -> None:
    first, again, other = (whole_training(PES(), DescentOnQuadratic(), seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Broken(DescentOnQuadratic):
    """Copy 0 fails: a bounded penalty and a mark, as an objective gives them."""

    def run(self, theta, state, steps, *, differentiable=False) -> Unrolled:
        ran = super().run(theta, state, steps, differentiable=differentiable)
        failed = ran.failed.clone()
        failed[0] = True
        losses = torch.where(failed, torch.full_like(ran.losses, 9.0), ran.losses)
        return replace(ran, losses=losses, failed=failed)


@pytest.mark.parametrize("estimator", [ES(), PES(truncation=6)])
def test_a_failed_copy_is_counted_and_moves_the_estimate(estimator: GradientEstimator) -> None:
    broken, failures = whole_training(estimator, Broken())
    sound, _ = whole_training(estimator, DescentOnQuadratic())
    assert [e.failures for e in failures] == [1]
    assert not torch.isclose(broken[0], sound[0])
    torch.testing.assert_close(broken[1:], sound[1:])


def test_backprop_counts_an_instance_without_a_finite_gradient() -> None:
    class Exploding(DescentOnQuadratic):
        def run(self, theta, state, steps, *, differentiable=False) -> Unrolled:
            ran = super().run(theta, state, steps, differentiable=differentiable)
            scale = torch.ones_like(ran.losses)
            scale[1] = float("inf")
            return replace(ran, losses=ran.losses * scale)

    gradients, estimates = whole_training(TruncatedBackprop(6), Exploding())
    assert estimates[0].failures == 1
    assert torch.isfinite(gradients).all()
    assert gradients[1] == 0
    assert (gradients[[0, 2, 3]] != 0).all()


def test_segments_without_a_step_are_refused() -> None:
    with pytest.raises(NfoptError, match="segment"):
        TruncatedBackprop(segment=0)


@pytest.mark.parametrize("bad", [{"sigma": 0.0}, {"sigma": -1.0}, {"truncation": 0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(NfoptError, match="must be"):
        ES(**bad)  # pyright: ignore[reportArgumentType]


def test_a_carry_survives_its_tensors() -> None:
    state = InnerState({"a.b": torch.randn(3)}, {"a.b/slow": torch.randn(3), "step": torch.ones(3)}, 5)
    carry = Carry(state, torch.randn(3, 7))
    back = Carry.from_tensors(carry.tensors(), 5)
    assert back.state.step == 5
    assert back.perturbation is not None
    for name, value in carry.tensors().items():
        assert torch.equal(value, back.tensors()[name])
