"""Masks of convolutional nets: a compromise of the magnitudes ahead, the learned flow and ERK."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

Worth = Mapping[str, Tensor]


def is_convolutional(parameters: Worth) -> bool:
    """Return whether more than half of the tensors are kernels, of three axes or more."""
    return 2 * sum(p.dim() > 2 for p in parameters.values()) > len(parameters)


def compromise(ahead: Worth, flow: Worth) -> dict[str, Tensor]:
    """Return the worth of every weight, whose ranks and whose shares both lie between those of two scores.

    Within a tensor, weights are ranked by p_ahead p_flow, the product of their places (1 for the best) by
    either score. The tensor's k-th weight is then worth 1 / sqrt(d_ahead d_erk): the densities at which the
    tensor gets a k-th weight if magnitudes ahead are ranked over all tensors, and if ERK shares out. At small
    densities, where magnitudes empty wide tensors, ERK holds them up.

    Args:
        ahead: magnitudes after the look ahead.
        flow: `neural_scores`, of the same tensors.
    """
    ranks = {name: places(values) * places(flow[name]) for name, values in ahead.items()}
    by_ahead, by_erk = admissions(ahead), admissions(erk_worth(ahead))
    worth = {}
    for name, rank in ranks.items():
        along = (by_ahead[name] * by_erk[name]).rsqrt()
        worth[name] = along[places(-rank) - 1]
    return worth


def erk_worth(tensors: Worth) -> dict[str, Float[Tensor, " elements"]]:
    """Return for each tensor of these shapes a worth of its k-th weight that shares out as `erk_counts` does.

    ERK's counts are one factor times the sum of a tensor's dimensions, rounded.
    """
    return {n: -(torch.arange(v.numel()) + 0.5) / max(sum(v.shape), 1) for n, v in tensors.items()}


def places(values: Tensor) -> Int[Tensor, "..."]:
    """Return the place of every element within its tensor: 1 for the largest, of equals the earlier first."""
    order = torch.sort(values.detach().cpu().flatten(), descending=True, stable=True).indices
    found = torch.empty_like(order)
    found[order] = torch.arange(1, len(order) + 1)
    return found.reshape(values.shape)


def admissions(worth: Worth) -> dict[str, Float[Tensor, " elements"]]:
    """Return for each tensor the densities, rising, at which it gets one weight more.

    All tensors are ranked together by `worth`.
    """
    everything = torch.cat([values.flatten().cpu().double() for values in worth.values()])
    densities = places(everything).double() / max(len(everything), 1)
    parts = densities.split([values.numel() for values in worth.values()])
    return {name: part.sort().values for name, part in zip(worth, parts, strict=True)}
