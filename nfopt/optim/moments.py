"""Moments: the running averages of the gradients, kept out of harm's way by the guard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        scalars: the new scalar state, one by one: for each of SCALAR_STATE all tensors.
        step: steps taken, this one included, at least 1.
        power: mean square of each gradient, averaged at the fast momentum's rate, without bias: it has to
            notice in time when a gradient vanishes.
        peak: the largest power since the first few steps.
        trust: how far the learned part is trusted.
        factor: what the gradients are multiplied by: 1 as a rule, 0 in a skipped step.
        finite: whether all gradients of a copy are finite; else its step is skipped.
        intervened: where the guard damped the learned part, or the step is skipped.
        rates: the averages' decay rates.
    """

    scalars: Sequence[Float[Tensor, "*batch"]]
    step: Float[Tensor, "*batch tensors"]
    power: Float[Tensor, "*batch tensors"]
    peak: Float[Tensor, "*batch tensors"]
    trust: Float[Tensor, "*batch tensors"]
    factor: Float[Tensor, "*batch tensors"]
    finite: Bool[Tensor, "*batch"]
    intervened: Bool[Tensor, "*batch tensors"]
    rates: MomentumRates

    def state(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the new scalar state as a flat dictionary with keys "<tensor name>/<quantity>"."""
        keys = (f"{name}/{key}" for key in SCALAR_STATE for name in names)
        return dict(zip(keys, self.scalars, strict=True))

    @cached_property
    def weights(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The share of each average that this step's gradient replaces; 0 in a skipped step."""
        done = self.finite.to(self.factor.dtype)
        rates = {SLOW: self.rates.slow, FAST: self.rates.fast, SECOND: self.rates.second}
        return {key: (1 - rate) * done for key, rate in rates.items()}

    def clean(self, grad: Float[Tensor, "..."], position: int, dims: int) -> Float[Tensor, "..."]:
        """Return the gradient of the tensor at `position` as it enters: clipped, and 0 in a skipped step."""
        return grad.nan_to_num(0.0, 0.0, 0.0) * spread(self.factor[..., position], dims)

    def fold(
        self, average: Float[Tensor, "..."], value: Float[Tensor, "..."], key: str, dims: int
    ) -> Float[Tensor, "..."]:
        """Return a running average, SLOW, FAST or SECOND, with this step's value in it."""
        return torch.lerp(average, value, spread(self.weights[key], dims))


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
    finite = squares.amax(dim=-1) < torch.inf  # not for NaN either
    done = finite.to(squares.dtype)
    taking, taken_share = finite[..., None], done[..., None]
    laid = torch.stack([state[f"{n}/{key}"] for key in SCALAR_STATE for n in names], dim=-1)
    before = dict(zip(SCALAR_STATE, laid.split(len(names), dim=-1), strict=True))
    usual, step = before[USUAL], before[STEP]
    current = guard.log_norm(torch.where(taking, squares, 1.0))
    trust = guard.trust(usual, current, step)
    clip = guard.clip_factor(usual, current, step)
    gained = torch.where(taking, squares * clip.square(), before[POWER])
    taken = step + taken_share
    power = torch.lerp(before[POWER], gained, 1 - rates.fast)
    usual_now = torch.where(taking, guard.update_usual(usual, current, step), usual)
    # What the first steps' absurd gradients, which nothing could clip, would leave behind for good.
    ceiling = guard.early_power_ceiling(usual_now, gained, step)
    power = torch.minimum(power, ceiling)
    counted = taken.clamp(min=1.0)
    unbiased = power / (1 - rates.fast**counted)
    # The first steps' gradients are often many times as large as any later one, and no measure of arrival.
    peak = torch.where(step < guard.SETTLE_STEPS, unbiased, torch.maximum(before[PEAK], unbiased))
    damped = trust < 1
    after = {
        STEP: taken,
        USUAL: usual_now,
        POWER: power,
        PEAK: torch.where(taking, peak, before[PEAK]),
        SKIPPED: before[SKIPPED] + (1 - taken_share),
        DAMPED: before[DAMPED] + taken_share * damped,
    }
    return StepNumbers(
        scalars=torch.cat([after[key] for key in SCALAR_STATE], dim=-1).unbind(-1),
        step=counted,
        power=unbiased,
        peak=after[PEAK],
        trust=trust,
        factor=clip * taken_share,
        finite=finite,
        intervened=damped | ~taking,
        rates=rates,
    )
