"""The outer optimizer: clipping, cosine, pull, averaging, and a state that goes on to the bit."""

import pytest
import torch

from nfopt.errors import NfoptError
from nfopt.meta.outer import OuterConfig, OuterOptimizer

START = torch.tensor([1.0, -2.0, 0.0, 0.0])
PULLED = torch.tensor([False, False, True, True])


def gradients(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return list(torch.randn(32, 4, generator=draw)[:count])


def after(config: OuterConfig, steps: int) -> OuterOptimizer:
    optimizer = OuterOptimizer(config, START, PULLED)
    for step, gradient in enumerate(gradients(steps)):
        optimizer.step(gradient, step)
    return optimizer


def test_only_the_norm_of_a_long_gradient_is_clipped() -> None:
    config = OuterConfig(clip=0.5, betas=(0.0, 0.999))
    for scale, kept in ((10.0, 0.5), (0.1, 0.1)):
        optimizer = OuterOptimizer(config, START, PULLED)
        norm = optimizer.step(scale * torch.tensor([0.6, 0.0, 0.8, 0.0]), 0)
        assert norm == pytest.approx(scale)
        mean = optimizer.tensors()["adam/exp_avg"]
        torch.testing.assert_close(mean, kept * torch.tensor([0.6, 0.0, 0.8, 0.0]))


def test_the_rate_falls_along_a_cosine_from_the_first_to_the_final_one() -> None:
    config = OuterConfig(outer_steps=10, learning_rate=0.5, final_learning_rate=0.1)
    rates = [config.rate(step) for step in range(13)]
    assert rates[0] == 0.5
    assert rates[5] == pytest.approx(0.3)
    assert rates[10] == rates[12] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11], reverse=True)


def test_the_pull_shrinks_what_was_zero_at_the_start_and_nothing_else() -> None:
    free, pulled = after(OuterConfig(), 20), after(OuterConfig(pull=10.0), 20)
    assert torch.equal(free.theta[:2], pulled.theta[:2])
    assert (pulled.theta[2:].abs() < free.theta[2:].abs()).all()


def test_the_average_lies_between_the_thetas_and_lags_behind() -> None:
    optimizer = OuterOptimizer(OuterConfig(averaging=0.9), START, PULLED)
    for step in range(30):
        optimizer.step(torch.ones(4), step)
    assert (optimizer.average > optimizer.theta).all()
    assert (optimizer.average < START).all()


def test_a_state_that_was_stored_goes_on_to_the_same_bits() -> None:
    config = OuterConfig(pull=1.0)
    whole, first = after(config, 8), after(config, 5)
    second = OuterOptimizer(config, torch.zeros(4), PULLED)
    second.load({name: value.clone() for name, value in first.tensors().items()})
    for step, gradient in enumerate(gradients(8)[5:], start=5):
        second.step(gradient, step)
    for name, value in whole.tensors().items():
        assert torch.equal(value, second.tensors()[name])


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NfoptError, match="outer step 3"):
        OuterOptimizer(OuterConfig(), START, PULLED).step(torch.tensor([1.0, float("nan"), 0.0, 0.0]), 3)


@pytest.mark.parametrize(
    "bad", [{"outer_steps": 0}, {"learning_rate": 0.0}, {"clip": 0.0}, {"pull": -1.0}, {"averaging": 1.0}]
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(NfoptError):
        OuterConfig(**bad)  # pyright: ignore[reportArgumentType]
