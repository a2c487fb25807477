"""The meta-gradient by backpropagation through inner training, truncated or whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.meta.estimator import Carry, Estimate, Unroll, check_truncation, piece_steps
from nfopt.meta.unroll import InnerState, Unrolled


@dataclass(frozen=True, slots=True)
class TruncatedBackprop:
    """Truncated backpropagation through time (Werbos 1990; for learned optimizers Andrychowicz et al. 2016).

    g_k = d L_k / d theta through the piece's own steps, second derivatives included. No variance from
    perturbations. With a truncation it is biased towards short-term gains, as influence through earlier
    pieces is cut (Wu et al. 2018); over long pieces gradients may explode (Metz et al. 2019), which bounded
    outputs and `max_norm` hold in check. Those that explode agree with each other and mislead: `fade` takes
    their say from them (tests/benchmarks/meta_optimum.md).
    An instance whose loss or gradient is not finite gives no gradient and is counted as failed.

    Attributes:
        truncation: inner steps per piece, or None for the whole training: the exact gradient.
        max_norm: each instance's gradient is scaled down to this norm.
        fade: scale a longer one down to max_norm^2 over its length instead: the longer, the less it counts.
        segment: inner steps whose graph is in memory at a time, or None for the whole piece. A longer piece
            is run without a graph first, and again segment by segment from its end (gradient checkpointing,
            Chen et al. 2016): the same gradient for about a third more time.
    """

    truncation: int | None = 50
    max_norm: float = 10.0
    segment: int | None = None
    fade: bool = False

    def __post_init__(self) -> None:
        check_truncation(self.truncation)
        if self.segment is not None and self.segment < 1:
            raise NfoptError(f"segment counts inner steps and must be >= 1 or None, not {self.segment}.")

    def begin(self, unroll: Unroll, theta: Tensor) -> Carry:
        """Return the carry at the start of a training."""
        return Carry(unroll.start())

    def step(
        self, unroll: Unroll, theta: Tensor, carry: Carry, draw: torch.Generator
    ) -> tuple[Estimate, Carry | None]:
        """Return the estimate from the next piece and the carry after it (see `GradientEstimator`)."""
        steps = piece_steps(self.truncation, unroll, carry.state.step)
        copies = theta.detach().expand(unroll.instance_count, -1).clone().requires_grad_()
        losses, failed, end, gradients = self._backpropagate(unroll, copies, carry.state, steps)
        failed = failed | ~torch.isfinite(gradients).all(1)
        gradients = torch.where(failed[:, None], torch.zeros_like(gradients), gradients)
        share = self.max_norm / gradients.norm(dim=1, keepdim=True).clamp(min=self.max_norm)
        gradients = gradients * (share.square() if self.fade else share)
        estimate = Estimate(gradients, losses, int(failed.sum()), len(failed), steps * len(failed))
        return estimate, None if end.step == unroll.horizon else Carry(end)

    def _backpropagate(
        self, unroll: Unroll, copies: Tensor, state: InnerState, steps: int
    ) -> tuple[Tensor, Tensor, InnerState, Tensor]:
        """Return losses and failures of the piece, the state after it, and the gradient of its losses."""
        segment = steps if self.segment is None else min(self.segment, steps)
        starts, pieces = [state], [segment] * (steps // segment) + [steps % segment] * (steps % segment > 0)
        for length in pieces[:-1]:
            starts.append(unroll.run(copies.detach(), starts[-1], length).state)
        losses = torch.zeros(len(copies), dtype=copies.dtype)
        failed = torch.zeros(len(copies), dtype=torch.bool)
        gradients, end, adjoint = torch.zeros_like(copies), None, None
        for start, length in zip(reversed(starts), reversed(pieces), strict=True):
            leaves = _leaves(start) if start is not state else start
            unrolled = unroll.run(copies, leaves, length, differentiable=True)
            end = end or unrolled.state.detached()
            gradient, adjoint = _pulled_back(unrolled, adjoint, copies, leaves, start is not state)
            gradients = gradients + gradient
            losses = losses + unrolled.losses.detach()
            failed = failed | unrolled.failed
        assert end is not None
        return losses, failed, end, gradients


def _leaves(state: InnerState) -> InnerState:
    """Return the state as leaves of a new graph; what is no real number has no gradient."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().requires_grad_(value.is_floating_point())

    return InnerState(
        {name: leaf(value) for name, value in state.params.items()},
        {name: leaf(value) for name, value in state.rule_state.items()},
        state.step,
    )


def _pulled_back(
    unrolled: Unrolled, adjoint: dict[str, Tensor] | None, copies: Tensor, start: InnerState, further: bool
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Backpropagate a segment's losses, and what comes from the segments after it, to its start.

    Args:
        unrolled: the segment, with its graph.
        adjoint: gradient of the later segments' losses in the state at this one's end; None after the last.
        copies: theta of every copy.
        start: the segment's start, as leaves if `further`.
        further: whether there is a segment before.

    Returns:
        The gradient in `copies`, and the one in the segment's start if `further`.
    """
    outputs, weights = [], []
    if unrolled.losses.requires_grad:
        outputs.append(unrolled.losses)
        weights.append(torch.ones_like(unrolled.losses))
    for name, value in unrolled.state.tensors().items():
        if adjoint is not None and name in adjoint and value.requires_grad:
            outputs.append(value)
            weights.append(adjoint[name])
    inputs = {"theta": copies}
    if further:
        inputs |= {name: value for name, value in start.tensors().items() if value.requires_grad}
    if not outputs:  # no evaluation in this segment nor after it
        return torch.zeros_like(copies), None
    found = torch.autograd.grad(outputs, list(inputs.values()), weights, allow_unused=True)
    gradients = {name: value for name, value in zip(inputs, found, strict=True) if value is not None}
    return gradients.pop("theta", torch.zeros_like(copies)), gradients
