"""In which dtype and where the rule computes and keeps its state."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of state and arithmetic for a parameter's dtype: at least float32.

    Raises:
        OptimizerError: the dtype is complex or not floating.
    """
    if not dtype.is_floating_point:
        raise OptimizerError(
            f"parameters of dtype {dtype} cannot be optimised by nfopt; train real floating-point parameters "
            "(view complex ones with torch.view_as_real in the model)."
        )
    return torch.float32 if dtype.itemsize < 4 else dtype


def common_work_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the one dtype of state and arithmetic for parameters of several dtypes."""
    return reduce(torch.promote_types, [work_dtype(dtype) for dtype in dict.fromkeys(dtypes)])


def row_of(values: Sequence[float], like: Tensor) -> Float[Tensor, " values"]:
    """Return numbers of the host where `like` is, in its dtype, without waiting for the device.

    Args:
        values: the numbers; at least one.
        like: a tensor of the device.
    """
    if len(set(values)) == 1:
        return like.new_full((len(values),), values[0])
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
