"""Estimators of the meta-gradient behind one interface, and those by evolution strategies: ES and PES.

Every estimator works on a carry (where each pair's inner training stands) and returns one gradient per pair
of copies; their mean is the estimate, and the means of two halves are independent estimates of their own.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.meta.unroll import InnerState, Unrolled


class Unroll(Protocol):
    """Inner training in pieces, as `TruncatedUnroll` does it."""

    @property
    def horizon(self) -> int:
        """Inner steps of a whole training."""
        ...

    @property
    def instance_count(self) -> int:
        """Number of instances."""
        ...

    def start(self) -> InnerState:
        """Return the state before the first step: one copy per instance."""
        ...

    def run(self, theta: Tensor, state: InnerState, steps: int, *, differentiable: bool = False) -> Unrolled:
        """Train copies (theta: copies x meta-parameters) for `steps` inner steps."""
        ...


@dataclass(frozen=True, eq=False)
class Carry:
    """What an estimator keeps from one piece of inner training to the next.

    Attributes:
        state: the inner training's copies.
        perturbation: PES: (instances, meta-parameters), the sum of all perturbations since the start.
    """

    state: InnerState
    perturbation: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under one flat naming, for a checkpoint."""
        kept = self.state.tensors()
        return kept if self.perturbation is None else kept | {"perturbation": self.perturbation}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], step: int) -> "Carry":
        """Rebuild a carry from `tensors`."""
        state = {name: value for name, value in tensors.items() if name != "perturbation"}
        return cls(InnerState.from_tensors(state, step), tensors.get("perturbation"))


@dataclass(frozen=True, eq=False)
class Estimate:
    """A meta-gradient estimate from one piece of inner training.

    Attributes:
        gradients: (instances, meta-parameters), one estimate per instance; finite always.
        losses: (instances,), each instance's meta-loss over the piece, its copies averaged.
        failures: copies whose loss was not finite; they count the objective's penalty.
        copies: copies in all.
        inner_steps: inner steps taken, summed over copies.
    """

    gradients: Tensor
    losses: Tensor
    failures: int
    copies: int
    inner_steps: int

    @property
    def void(self) -> bool:
        """Whether every copy failed, so that the estimate says nothing."""
        return self.failures == self.copies


class GradientEstimator(Protocol):
    """Estimates d meta-loss / d theta piece by piece of an inner training."""

    @property
    def truncation(self) -> int | None:
        """Inner steps per piece, or None for the whole training in one."""
        ...

    def begin(self, unroll: Unroll, theta: Tensor) -> Carry:
        """Return the carry at the start of a training."""
        ...

    def step(
        self, unroll: Unroll, theta: Tensor, carry: Carry, draw: torch.Generator
    ) -> tuple[Estimate, Carry | None]:
        """Return the estimate from the next piece, and the carry after it: None at the horizon's end.

        Args:
            unroll: the inner training.
            theta: (meta-parameters,), where the gradient is wanted.
            carry: as from `begin` or the last `step`.
            draw: source of the perturbations.
        """
        ...


def piece_steps(truncation: int | None, unroll: Unroll, step: int) -> int:
    """Return the inner steps of the piece that begins once `step` steps are done."""
    left = unroll.horizon - step
    return left if truncation is None else min(truncation, left)


def check_truncation(truncation: int | None) -> None:
    """Raise NfoptError unless `truncation` is None or at least 1."""
    if truncation is not None and truncation < 1:
        raise NfoptError(f"truncation counts inner steps and must be >= 1 or None, not {truncation}.")


def _check(sigma: float, truncation: int | None) -> None:
    if not sigma > 0:
        raise NfoptError(f"sigma is the perturbations' standard deviation and must be > 0, not {sigma}.")
    check_truncation(truncation)


def _antithetic(theta: Tensor, noise: Tensor) -> Tensor:
    return torch.cat([theta + noise, theta - noise])


def _pair_estimate(direction: Tensor, unrolled: Unrolled, sigma: float, steps: int) -> Estimate:
    plus, minus = unrolled.losses.chunk(2)
    gradients = ((plus - minus) / (2 * sigma**2))[:, None] * direction
    copies = len(unrolled.losses)
    failures = int(unrolled.failed.sum())
    return Estimate(gradients, (plus + minus) / 2, failures, copies, steps * copies)


@dataclass(frozen=True, slots=True)
class ES:
    """Antithetic evolution strategies (Salimans et al. 2017; Nesterov and Spokoiny 2017).

    g = eps (L(theta + eps) - L(theta - eps)) / (2 sigma^2), eps ~ N(0, sigma^2 I), one eps per instance:
    unbiased for the gradient of the smoothed loss E L(theta + eps) when a piece is the whole training
    (`truncation=None`). With a truncation it is biased, as it misses what theta did in earlier pieces: each
    piece starts from a training under the unperturbed theta. Variance: about (meta-parameters) |g|^2 per
    pair, whatever the length of the unroll.

    Attributes:
        sigma: standard deviation of the perturbations.
        truncation: inner steps per piece, or None for the whole training.
    """

    sigma: float = 0.01
    truncation: int | None = None

    def __post_init__(self) -> None:
        _check(self.sigma, self.truncation)

    def begin(self, unroll: Unroll, theta: Tensor) -> Carry:
        """Return the carry at the start of a training."""
        return Carry(unroll.start())

    def step(
        self, unroll: Unroll, theta: Tensor, carry: Carry, draw: torch.Generator
    ) -> tuple[Estimate, Carry | None]:
        """Return the estimate from the next piece and the carry after it (see `GradientEstimator`)."""
        steps = piece_steps(self.truncation, unroll, carry.state.step)
        count = unroll.instance_count
        noise = self.sigma * torch.randn(count, len(theta), generator=draw, dtype=theta.dtype)
        last = carry.state.step + steps == unroll.horizon
        # The unperturbed copies ride along only when there is a next piece to start.
        copies = _antithetic(theta, noise)
        if not last:
            copies = torch.cat([copies, theta.expand(count, -1)])
        unrolled = unroll.run(copies, carry.state.repeated(len(copies) // count), steps)
        pairs = replace(unrolled, losses=unrolled.losses[: 2 * count], failed=unrolled.failed[: 2 * count])
        estimate = _pair_estimate(noise, pairs, self.sigma, steps)
        return estimate, None if last else Carry(_rows(unrolled.state, slice(2 * count, None)))


@dataclass(frozen=True, slots=True)
class PES:
    """Persistent evolution strategies (Vicol, Metz and Sohl-Dickstein 2021, algorithm 2), antithetic.

    g_k = xi_k (L_k+ - L_k-) / (2 sigma^2), xi_k the sum of the pair's perturbations up to piece k: summed
    over the pieces it is unbiased for the gradient of the loss with independent perturbations in every piece,
    without the truncation bias of ES. Variance grows with the number of pieces when their losses are
    correlated. Both copies of a pair carry their own inner training across pieces.

    Attributes:
        sigma: standard deviation of the perturbations.
        truncation: inner steps per piece.
    """

    sigma: float = 0.01
    truncation: int = 50

    def __post_init__(self) -> None:
        _check(self.sigma, self.truncation)

    def begin(self, unroll: Unroll, theta: Tensor) -> Carry:
        """Return the carry at the start of a training."""
        return Carry(unroll.start().repeated(2), theta.new_zeros(unroll.instance_count, len(theta)))

    def step(
        self, unroll: Unroll, theta: Tensor, carry: Carry, draw: torch.Generator
    ) -> tuple[Estimate, Carry | None]:
        """Return the estimate from the next piece and the carry after it (see `GradientEstimator`)."""
        assert carry.perturbation is not None
        steps = piece_steps(self.truncation, unroll, carry.state.step)
        noise = self.sigma * torch.randn(carry.perturbation.shape, generator=draw, dtype=theta.dtype)
        accumulated = carry.perturbation + noise
        unrolled = unroll.run(_antithetic(theta, noise), carry.state, steps)
        estimate = _pair_estimate(accumulated, unrolled, self.sigma, steps)
        last = unrolled.state.step == unroll.horizon
        return estimate, None if last else Carry(unrolled.state, accumulated)


def _rows(state: InnerState, rows: slice) -> InnerState:
    return InnerState(
        {name: value[rows] for name, value in state.params.items()},
        {name: value[rows] for name, value in state.rule_state.items()},
        state.step,
    )
