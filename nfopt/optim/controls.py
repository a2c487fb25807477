"""Controls: what is done per tensor, row and column, within bounds around the nominal optimizer."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

CONTROL_NAMES = ("log_step", "fast_share", "log_decay")
NOMINAL = (0.0, 0.5, 0.0)
REACH = (2.0, 0.75, 2.0)
GAIN_REACH = log(2.0)


@dataclass(frozen=True)
class Controls:
    """What one step does.

    Attributes:
        log_step: [tensors] log factor on the nominal step, within +-2 (x1/7.4 to x7.4).
        fast_share: [tensors] share of the fast momentum, nominally 0.5, within -0.25 to 1.25.
        log_decay: [tensors] log factor on the weight decay, within +-2.
        gain: [entries] factor per row and per column, within 1/2 to 2.
    """

    log_step: Float[Tensor, "*batch tensors"]
    fast_share: Float[Tensor, "*batch tensors"]
    log_decay: Float[Tensor, "*batch tensors"]
    gain: Float[Tensor, "*batch entries"]


def controls_of(
    shares: Float[Tensor, "*batch tensors 3"],
    entry_shares: Float[Tensor, "*batch entries"],
    trust: Float[Tensor, "*batch tensors"],
    entry_trust: Float[Tensor, "*batch entries"],
) -> Controls:
    """Turn decisions in [-1, 1] into controls: nominal + trust x reach x decision.

    Zero decisions, or zero trust, give the nominal optimizer.
    """
    trusted = (trust[..., None] * shares).unbind(-1)
    values = [
        share * reach + nominal if nominal else share * reach
        for nominal, reach, share in zip(NOMINAL, REACH, trusted, strict=True)
    ]
    return Controls(*values, gain=torch.exp(entry_trust * GAIN_REACH * entry_shares))
