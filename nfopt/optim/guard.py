"""The guard: what a step does about gradients that are not finite or far out of the ordinary.

It needs no loss and no synchronisation with the host: its decisions are tensors on the gradients' device.
"""

import torch
from jaxtyping import Float
from torch import Tensor

MEMORY = 0.95
DAMP_FROM = 2.0  # nats above the usual gradient norm where the learned part begins to fade (x7)
DAMP_TO = 4.0  # nats where only the nominal optimizer is left (x55), and where gradients are clipped
SETTLE_STEPS = 10  # steps before "usual" means anything
TINY = 1e-37


def log_norm(mean_square: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the log RMS of gradients from their mean squares; a zero gradient stays finite."""
    return 0.5 * mean_square.clamp(min=TINY).log()


def update_usual(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the moving average of the log gradient norms, following outliers only as far as DAMP_FROM.

    Args:
        usual: the average so far, per tensor; of no meaning at step 0.
        current: log norms of this step.
        step: steps taken before this one.
    """
    bounded = torch.where(step > SETTLE_STEPS, torch.minimum(current, usual + DAMP_FROM), current)
    weight = torch.maximum(1.0 / (step + 1.0), torch.full_like(step, 1.0 - MEMORY))
    return usual + weight * (bounded - usual)


def trust(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return how far the learned part is trusted, from 1 (an ordinary gradient) to 0 (DAMP_TO above it)."""
    excess = current - usual
    faded = (1.0 - (excess - DAMP_FROM) / (DAMP_TO - DAMP_FROM)).clamp(0.0, 1.0)
    return torch.where(step > SETTLE_STEPS, faded, torch.ones_like(faded))


def clip_factor(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the factor that brings gradients above DAMP_TO down to it, 1 for all others."""
    over = (current - usual - DAMP_TO).clamp(min=0.0)
    return torch.where(step > SETTLE_STEPS, torch.exp(-over), torch.ones_like(over))
