"""In which dtype the rule computes and keeps its state."""

from collections.abc import Iterable
from functools import reduce

import torch

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
