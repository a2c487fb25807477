"""Elementwise: what one step does to every element of a tensor, in plain PyTorch."""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError


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
        grad: the gradient g, in any floating dtype.
        slow: the slow momentum before the step, in any floating dtype.
        fast: the fast momentum before the step, in any floating dtype.
        mix: the numbers of the step, in the dtype of the arithmetic and of what is returned.
    """
    grad, slow, fast = (tensor.to(mix.factor.dtype) for tensor in (grad, slow, fast))
    grad = grad.nan_to_num(0.0, 0.0, 0.0).mul_(mix.factor)
    slow, fast = torch.lerp(slow, grad, mix.slow_weight), torch.lerp(fast, grad, mix.fast_weight)
    mixed = torch.addcmul(torch.addcmul(slow * mix.slow, fast, mix.fast), grad, mix.grad)
    return Folded(grad, slow, fast, mixed)


class Fold(Protocol):
    """`fold`, or what agrees with it."""

    def __call__(self, grad: Tensor, slow: Tensor, fast: Tensor, mix: Mix) -> Folded:
        """Take a gradient into its momenta, and mix the three."""
        ...


def fused_fold() -> Fold:
    """Return the Triton kernel that agrees with `fold`.

    Raises:
        OptimizerError: triton is not installed.
    """
    try:
        from nfopt.optim.elementwise_triton import fold as fused
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise OptimizerError("fused=True needs triton: pip install triton, or leave it out.") from error
    return fused
