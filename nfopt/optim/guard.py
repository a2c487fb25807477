"""The guard: what a step does about gradients that are not finite or far out of the ordinary.

It needs no loss and no synchronisation with the host: its decisions are tensors on the gradients' device.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MEMORY = 0.95
DAMP_FROM = 2.0  # nats above the usual gradient norm where the learned part begins to fade (x7)
DAMP_TO = 4.0  # nats where only the nominal optimizer is left (x55), and where gradients are clipped
SETTLE_STEPS = 10  # steps before "usual" means anything


def all_finite(grads: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """Return whether every element of every gradient is finite, as a 0-dim tensor.

    Squared norms are computed in at least float32; one that overflows counts as not finite.
    """
    norms = [
        grad.float().square().sum() if grad.dtype.itemsize < 4 else grad.square().sum() for grad in grads
    ]
    return torch.stack(norms).isfinite().all()


def log_norm(grad: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return log RMS(grad), bounded below so that a zero gradient stays finite."""
    return 0.5 * grad.square().mean().clamp(min=1e-37).log()


def update_usual(
    usual: Float[Tensor, "tensors"], current: Float[Tensor, "tensors"], step: Float[Tensor, "tensors"]
) -> Float[Tensor, "tensors"]:
    """Return the moving average of the log gradient norms, following outliers only as far as DAMP_FROM.

    Args:
        usual: the average so far; of no meaning at step 0.
        current: log norms of this step.
        step: steps taken before this one.
    """
    bounded = torch.where(step > SETTLE_STEPS, torch.minimum(current, usual + DAMP_FROM), current)
    weight = torch.maximum(1.0 / (step + 1.0), torch.full_like(step, 1.0 - MEMORY))
    return usual + weight * (bounded - usual)


def trust(
    usual: Float[Tensor, "tensors"], current: Float[Tensor, "tensors"], step: Float[Tensor, "tensors"]
) -> Float[Tensor, "tensors"]:
    """Return how far the learned part is trusted, from 1 (an ordinary gradient) to 0 (DAMP_TO above it)."""
    excess = current - usual
    faded = (1.0 - (excess - DAMP_FROM) / (DAMP_TO - DAMP_FROM)).clamp(0.0, 1.0)
    return torch.where(step > SETTLE_STEPS, faded, torch.ones_like(faded))


def clip_factor(
    usual: Float[Tensor, "tensors"], current: Float[Tensor, "tensors"], step: Float[Tensor, "tensors"]
) -> Float[Tensor, "tensors"]:
    """Return the factor that brings gradients above DAMP_TO down to it, 1 for all others."""
    over = (current - usual - DAMP_TO).clamp(min=0.0)
    return torch.where(step > SETTLE_STEPS, torch.exp(-over), torch.ones_like(over))
