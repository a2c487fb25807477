"""Image operators: what a net does to its images when its pixel-facing weights are changed by a linear map.

A layer that reads pixels computes W x. Mirroring, smoothing or greying the image first is W (A x) = (W A) x:
an edit of the weights alone. A A is its own transpose for each operator here, up to the borders.
"""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from nfopt.symmetry import PermutationSpec

OPERATORS = ("mirror", "smooth", "smoother", "level", "grey")
"""Left to right; a 3 x 3 binomial window; that window three times; mean over pixels; mean over colours."""


def image_operators(
    spec: PermutationSpec, name: str, weight: Tensor, image_shape: tuple[int, ...]
) -> dict[int, Tensor]:
    """Return A W for each operator that makes sense for a tensor, by its position in `OPERATORS`.

    A matrix whose inputs are the flattened image has all of them. A convolution of two dimensions has its
    kernel mirrored and smoothed; its colours are those of the image if it reads the image.

    Args:
        spec: the permutation spec of the net.
        name: name of the tensor.
        weight: [*nets, *shape].
        image_shape: channels, height and width of an image; anything else leaves matrices alone.
    """
    entry = spec.tensors[name]
    if entry.role == "linear" and len(entry.axes) == 2 and len(image_shape) == 3:
        if entry.axes[1].size != prod(image_shape) or _permuted(spec, name, 1):
            return {}
        moved = _operated(weight.unflatten(-1, image_shape), entry_colours=image_shape[0])
        return {k: value.flatten(-3) for k, value in moved.items()}
    if entry.role == "conv" and len(entry.axes) == 4 and min(entry.shape[2:]) > 1:
        reads_image = not _permuted(spec, name, 1) and len(image_shape) == 3
        colours = image_shape[0] if reads_image and entry.shape[1] == image_shape[0] else 1
        return _operated(weight, entry_colours=colours)
    return {}


def _permuted(spec: PermutationSpec, name: str, dim: int) -> bool:
    return any((name, dim) in places for group in spec.groups for places in [spec.occurrences[group]])


def _operated(pictures: Tensor, *, entry_colours: int) -> dict[int, Tensor]:
    """Return the operators applied to [..., colours, height, width]."""
    smooth = _smoothed(pictures)
    found = {
        0: pictures.flip(-1),
        1: smooth,
        2: _smoothed(_smoothed(smooth)),
        3: pictures.mean((-2, -1), keepdim=True).expand_as(pictures),
    }
    if entry_colours > 1:
        found[4] = pictures.mean(-3, keepdim=True).expand_as(pictures)
    return found


def _smoothed(pictures: Tensor) -> Tensor:
    """Return pictures under the window (1 2 1)/4 along both sides, edges repeated."""
    flat = pictures.reshape(-1, 1, *pictures.shape[-2:])
    line = torch.tensor([0.25, 0.5, 0.25]).to(pictures)
    window = (line[:, None] * line[None, :])[None, None]
    padded = functional.pad(flat, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, window).view_as(pictures)
