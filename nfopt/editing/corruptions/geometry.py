"""Geometry: elastic (ImageNet-C, CIFAR-10-C), rotation and flip (ours): the same values at other places."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nfopt.editing.corruptions.corruption import Images, by_side, corruption, uniform


@corruption("elastic")
def elastic(images: Images, severity: int, generator: torch.Generator) -> Images:
    """A random affine map and a smooth random displacement, edges mirrored.

    Hendrycks & Dietterich (2019) interpolate after each of the two; here both act in one interpolation.
    Lengths are shares of the image's side. The displacement is smoothed white noise, which averages out the
    more, the more pixels there are: it is scaled to be what it is at their sides, 32 and 224.
    """
    size = 244 / 224  # the release's own unit
    reference = by_side(images, severity, (32,) * 5, (224,) * 5)
    strength, smoothness, affine = by_side(
        images,
        severity,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        (
            (2 * size, 0.7 * size, 0.1 * size),
            (2 * size, 0.08 * size, 0.2 * size),
            (0.05 * size, 0.01 * size, 0.02 * size),
            (0.07 * size, 0.01 * size, 0.02 * size),
            (0.12 * size, 0.01 * size, 0.02 * size),
        ),
    )
    count, _, height, width = images.shape
    side = max(height, width)
    places = _grid(height, width).to(images).expand(count, -1, -1, -1)
    moved = places.clone()
    if strength > 0:
        noise = uniform((count, 2, height, width), -1.0, 1.0, generator, images)
        smooth = _smoothed(noise, smoothness * side) * strength * side * (side / reference)
        moved = moved + smooth.movedim(1, -1)
    corners = _three_points(height, width).to(images)
    targets = corners + uniform((count, 3, 2), -affine * side, affine * side, generator, images)
    ones = torch.ones(count, 3, 1).to(images)
    # The map from the corrupted image's places back to the places that they show.
    back = torch.linalg.lstsq(torch.cat([targets, ones], 2), corners.expand(count, 3, 2)).solution
    homogeneous = torch.cat([moved, torch.ones_like(moved[..., :1])], -1)
    return _sampled(images, torch.einsum("nhwk,nkd->nhwd", homogeneous, back), "reflection")


@corruption("rotation")
def rotation(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Each image turns by a random angle within +- 10, 20, 30, 45 or 60 degrees; black outside."""
    largest = math.radians((10, 20, 30, 45, 60)[severity - 1])
    angles = uniform((len(images),), -largest, largest, generator, images)
    cosine, sine = angles.cos(), angles.sin()
    turn = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
    height, width = images.shape[-2:]
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2]).to(images)
    places = _grid(height, width).to(images) - middle
    return _sampled(images, torch.einsum("nde,hwe->nhwd", turn, places) + middle, "zeros")


@corruption("flip")
def flip(images: Images, severity: int, generator: torch.Generator) -> Images:
    """A fifth of the images for each severity is mirrored left to right: all of them at 5."""
    mirrored = uniform((len(images), 1, 1, 1), 0.0, 1.0, generator, images) < severity / 5
    return torch.where(mirrored, images.flip(-1), images)


def _grid(height: int, width: int) -> Float[Tensor, "height width 2"]:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns], -1).float()


def _three_points(height: int, width: int) -> Float[Tensor, "3 2"]:
    """Return three corners of a square about the middle, a third of the image away from it."""
    middle = torch.tensor([height // 2, width // 2], dtype=torch.float32)
    away = max(min(height, width) // 3, 1)
    return middle + away * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])


def _smoothed(
    fields: Float[Tensor, "images 2 height width"], deviation: float
) -> Float[Tensor, "images 2 height width"]:
    """Return the fields under a normal window, of weight 1 also where the image cuts it off."""
    for axis in (2, 3):
        line = torch.arange(fields.shape[axis], device=fields.device, dtype=fields.dtype)
        window = torch.exp(-0.5 * ((line[:, None] - line[None, :]) / deviation) ** 2)
        window = window * ((line[:, None] - line[None, :]).abs() <= 3 * deviation + 0.5)
        window = window / window.sum(1, keepdim=True)
        fields = (fields.movedim(axis, -1) @ window.T).movedim(-1, axis)
    return fields


def _sampled(images: Images, places: Float[Tensor, "images height width 2"], outside: str) -> Images:
    """Return the images read at fractional places (row, column), between pixels by bilinear interpolation."""
    height, width = images.shape[-2:]
    scale = torch.tensor([max(height - 1, 1), max(width - 1, 1)]).to(images)
    grid = (2 * places / scale - 1).flip(-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=True)
