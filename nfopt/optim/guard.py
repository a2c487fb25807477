"""The guard: what a step does about gradients that are not finite or far out of the ordinary.

It needs no loss and no synchronisation with the host: its decisions are tensors on the gradients' device.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MEMORY = 0.95
DAMP_FROM = 2.0  # nats above the usual gradient norm where the learned part begins to fade (x7)
DAMP_TO = 4.0  # nats where only the nominal optimizer is left (x55), and where gradients are clipped
CLIP_AFTER = 3  # steps before a gradient can be told to be absurd
SETTLE_STEPS = 10  # steps before "usual" means anything
EARLY_RATIO = 16.0  # of mean squares; gradients of single batches differ by less
TINY = 1e-37
SILENT = -42.0  # log norms below are those of gradients that are exactly zero, and say nothing of the usual


def log_norm(mean_square: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the log RMS of gradients from their mean squares; a zero gradient stays finite."""
    return 0.5 * mean_square.clamp(min=TINY).log()


def update_usual(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the moving average of the log gradient norms, following outliers only as far as DAMP_FROM.

    A gradient of exactly zero (a branch that is switched off, a layer behind one of zeros) does not enter,
    and the first that is not zero sets the average.

    Args:
        usual: the average so far, per tensor; of no meaning at step 0.
        current: log norms of this step.
        step: steps taken before this one.
    """
    bounded = torch.where(_known(usual, step), torch.minimum(current, usual + DAMP_FROM), current)
    weight = (step + 1.0).reciprocal().clamp(min=1.0 - MEMORY)
    averaged = torch.where(usual > SILENT, usual + weight * (bounded - usual), current)
    return torch.where((current > SILENT) | (step == 0), averaged, usual)


def trust(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return how far the learned part is trusted, from 1 (an ordinary gradient) to 0 (DAMP_TO above it)."""
    excess = current - usual
    faded = (1.0 - (excess - DAMP_FROM) / (DAMP_TO - DAMP_FROM)).clamp(0.0, 1.0)
    return torch.where(_known(usual, step), faded, 1.0)


def clip_factor(
    usual: Float[Tensor, "..."], current: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the factor that brings gradients above DAMP_TO down to it, 1 for all others."""
    over = (current - usual - DAMP_TO).clamp(min=0.0)
    return torch.where((step > CLIP_AFTER) & (usual > SILENT), torch.exp(-over), 1.0)


def early_power_ceiling(
    usual: Float[Tensor, "..."], gained: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the largest mean square that a tensor's gradients may be remembered with in the first steps.

    While an absurd gradient passes for a usual one, it would be taken for the largest, beside which all later
    ones look as if the tensor had arrived. So for SETTLE_STEPS steps nothing above DAMP_TO of the usual, nor
    above EARLY_RATIO of this step's mean square, is remembered. Later the usual may fall far below the
    largest, and that tells that a tensor has arrived.

    Args:
        usual: the moving average of the log norms, this step included.
        gained: mean squares of this step's gradients.
        step: steps taken before this one.
    """
    ceiling = torch.minimum(torch.exp(2.0 * (usual.clamp(max=40.0) + DAMP_TO)), EARLY_RATIO * gained)
    return torch.where(step < SETTLE_STEPS, ceiling, torch.inf)


def _known(usual: Float[Tensor, "..."], step: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Whether enough gradients were seen for one to be out of the ordinary."""
    return (step > SETTLE_STEPS) & (usual > SILENT)
