"""Moments: the running averages of the gradients, kept out of harm's way by the guard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nfopt.optim import guard
from nfopt.optim.decisions import DECISIONS, decisions_size
from nfopt.optim.directions import MomentumRates, spread

SLOW, FAST, SECOND = "slow", "fast", "second"
STEP, USUAL, POWER, PEAK = "step", "usual_log_grad", "power", "peak_power"
SKIPPED, DAMPED = "skipped", "damped"
MOMENTA = (SLOW, FAST)
TENSOR_STATE = (*MOMENTA, SECOND)  # the second moment only where it is needed
SCALAR_STATE = (STEP, USUAL, POWER, PEAK, SKIPPED, DAMPED)


@dataclass(frozen=True)
class StepNumbers:
    """What one step does to the running averages: one number per tensor.

    Attributes:
        scalars: the new scalar state, by key.
        step: steps taken, this one included, at least 1.
        power: mean square of each gradient, averaged at the fast momentum's rate, without bias: it has to
            notice in time when a gradient vanishes.
        peak: the largest power since the first few steps.
        trust: how far the learned part is trusted.
        factor: what the gradients are multiplied by: 1 as a rule, 0 in a skipped step.
        finite: whether all gradients of a copy are finite; else its step is skipped.
        rates: the averages' decay rates.
    """

    scalars: dict[str, Float[Tensor, "*batch tensors"]]
    step: Float[Tensor, "*batch tensors"]
    power: Float[Tensor, "*batch tensors"]
    peak: Float[Tensor, "*batch tensors"]
    trust: Float[Tensor, "*batch tensors"]
    factor: Float[Tensor, "*batch tensors"]
    finite: Bool[Tensor, "*batch"]
    rates: MomentumRates

    def state(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the new scalar state as a flat dictionary with keys "<tensor name>/<quantity>"."""
        return {
            f"{name}/{key}": value
            for key, values in self.scalars.items()
            for name, value in zip(names, values.unbind(-1), strict=True)
        }

    def weight(self, rate: float) -> Float[Tensor, "*batch"]:
        """Return the share of an average that this step's gradient replaces; 0 in a skipped step."""
        return (1 - rate) * self.finite.to(self.factor.dtype)

    def clean(self, grad: Float[Tensor, "..."], position: int, dims: int) -> Float[Tensor, "..."]:
        """Return the gradient of the tensor at `position` as it enters: clipped, and 0 in a skipped step."""
        return grad.nan_to_num(0.0, 0.0, 0.0) * spread(self.factor[..., position], dims)

    def fold(
        self, average: Float[Tensor, "..."], value: Float[Tensor, "..."], rate: float, dims: int
    ) -> Float[Tensor, "..."]:
        """Return a running average with this step's value in it."""
        return torch.lerp(average, value, spread(self.weight(rate), dims))


def looks_like_a_matrix(shape: Sequence[int]) -> bool:
    """Return whether a tensor of `shape` may be orthogonalised, which then needs no second moment."""
    return len(shape) > 1 and shape[0] > 1 and shape[1] > 1


def initial_state(
    param: Float[Tensor, "..."], dtype: torch.dtype, *, second: bool | None = None
) -> dict[str, Tensor]:
    """Return the state of one tensor before its first step, by key, in the dtype of the arithmetic.

    Args:
        param: the tensor.
        dtype: of the state.
        second: whether it needs a second moment; by default, unless it looks like a matrix.
    """
    wanted = not looks_like_a_matrix(param.shape) if second is None else second
    keys = (*MOMENTA, SECOND) if wanted else MOMENTA
    tensors = {key: torch.zeros_like(param, dtype=dtype) for key in keys}
    numbers = {key: torch.zeros((), dtype=dtype, device=param.device) for key in SCALAR_STATE}
    decisions = torch.zeros(decisions_size(param.shape), dtype=dtype, device=param.device)
    return tensors | numbers | {DECISIONS: decisions}


def weigh(
    squares: Float[Tensor, "*batch tensors"],
    state: Mapping[str, Tensor],
    names: tuple[str, ...],
    rates: MomentumRates,
) -> StepNumbers:
    """Decide what the gradients of one step do to the running averages.

    Args:
        squares: mean squares of the gradients.
        state: from `LearnedUpdateRule.init_state` or the step before.
        names: the tensors.
        rates: the averages' decay rates.
    """
    finite = squares.isfinite().all(dim=-1)
    done = finite.to(squares.dtype)
    before = {key: torch.stack([state[f"{n}/{key}"] for n in names], dim=-1) for key in SCALAR_STATE}
    usual, step = before[USUAL], before[STEP]
    current = guard.log_norm(torch.where(finite[..., None], squares, torch.ones_like(squares)))
    trust = guard.trust(usual, current, step)
    clip = guard.clip_factor(usual, current, step)
    gained = torch.where(finite[..., None], squares * clip.square(), before[POWER])
    taken = step + done[..., None]
    power = torch.lerp(before[POWER], gained, 1 - rates.fast)
    usual_now = torch.where(finite[..., None], guard.update_usual(usual, current, step), usual)
    # What the first steps' absurd gradients, which nothing could clip, would leave behind for good.
    ceiling = guard.early_power_ceiling(usual_now, gained, step)
    power = torch.minimum(power, ceiling)
    unbiased = power / (1 - rates.fast ** taken.clamp(min=1.0))
    # The first steps' gradients are often many times as large as any later one, and no measure of arrival.
    peak = torch.where(step < guard.SETTLE_STEPS, unbiased, torch.maximum(before[PEAK], unbiased))
    scalars = {
        STEP: taken,
        USUAL: usual_now,
        POWER: power,
        PEAK: torch.where(finite[..., None], peak, before[PEAK]),
        SKIPPED: before[SKIPPED] + (1 - done[..., None]),
        DAMPED: before[DAMPED] + done[..., None] * (trust < 1).to(done.dtype),
    }
    return StepNumbers(
        scalars=scalars,
        step=taken.clamp(min=1.0),
        power=unbiased,
        peak=scalars[PEAK],
        trust=trust,
        factor=clip * done[..., None],
        finite=finite,
        rates=rates,
    )
