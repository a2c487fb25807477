"""Stochastic rounding to bfloat16: unbiased, so that an average kept in it does not stall."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError

_DROPPED_BITS = 16


def round_at_random(
    value: Float[Tensor, "..."], generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Round to one of the two nearest bfloat16 numbers, to the nearer one more often: the mean is `value`.

    Rounding to nearest loses every change below 1/512 of a number, and so most of what a slow average takes
    in. A random number below one unit of the last place is added before the low bits are cut off.

    Args:
        value: float32; finite. float64 is rounded to float32 first.
        generator: source of the rounding, on the same device.
    """
    bits = value.to(torch.float32).view(torch.int32)
    noise = torch.empty_like(bits).random_(1 << _DROPPED_BITS, generator=generator)
    kept = (bits + noise) & -(1 << _DROPPED_BITS)
    return kept.view(torch.float32).to(torch.bfloat16)


@dataclass
class Rounding:
    """How one step's momenta are rounded: the same for the same step, so that runs repeat and ranks agree.

    Attributes:
        dtype: torch.bfloat16, or None to leave them as they are.
        step: number of the step.
    """

    dtype: torch.dtype | None
    step: int
    _generator: torch.Generator | None = field(default=None, repr=False)

    def __call__(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return `value` as it is kept."""
        if self.dtype is None:
            return value
        if self._generator is None:
            self._generator = torch.Generator(value.device).manual_seed(self.step)
        return round_at_random(value, self._generator)


def check_half(option: str, dtype: torch.dtype | None) -> None:
    """Check an option of the optimizer that asks for half precision.

    Raises:
        OptimizerError: it is neither None nor torch.bfloat16.
    """
    if dtype is not None and dtype is not torch.bfloat16:
        raise OptimizerError(
            f"{option} is {dtype!r}; give torch.bfloat16, or None for float32. Float16's range is too "
            "small for gradients without a scale."
        )
