"""Elementwise: what one step does to every element of a tensor, in plain PyTorch."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Mix(NamedTuple):
    """What multiplies the elements of a gradient and of its momenta; all broadcast to the elements.

    Attributes:
        factor: on the gradient: below 1 where it is clipped, 0 in a skipped step.
        slow: of the slow momentum in the mixed one.
        fast: of the fast momentum.
        grad: of the gradient.
        slow_weight: of the gradient in the slow momentum.
        fast_weight: of the gradient in the fast momentum.
    """

    factor: Tensor
    slow: Tensor
    fast: Tensor
    grad: Tensor
    slow_weight: Tensor
    fast_weight: Tensor


class Folded(NamedTuple):
    """A gradient as it enters, the momenta with it in them, and their mixture."""

    grad: Tensor
    slow: Tensor
    fast: Tensor
    mixed: Tensor


def fold(
    grad: Float[Tensor, "..."], slow: Float[Tensor, "..."], fast: Float[Tensor, "..."], mix: Mix
) -> Folded:
    """Take a gradient into its momenta, and mix the three.

    g <- factor g, with 0 for what is not finite; m <- m + weight (g - m) for both momenta; the mixture is
    slow m_slow + fast m_fast + grad g.

    Args:
        grad: the gradient g.
        slow: the slow momentum before the step.
        fast: the fast momentum before the step.
        mix: the numbers of the step.
    """
    grad = grad.nan_to_num(0.0, 0.0, 0.0).mul_(mix.factor)
    slow, fast = torch.lerp(slow, grad, mix.slow_weight), torch.lerp(fast, grad, mix.fast_weight)
    mixed = torch.addcmul(torch.addcmul(slow * mix.slow, fast, mix.fast), grad, mix.grad)
    return Folded(grad, slow, fast, mixed)
