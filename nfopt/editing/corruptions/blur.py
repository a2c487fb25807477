"""Blur: defocus and motion. Severities of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nfopt.editing.corruptions.corruption import Images, by_side, corruption, uniform

_WIDE = 8


@corruption("defocus")
def defocus(images: Images, severity: int, generator: torch.Generator) -> Images:
    """The image of a point is a disk with a softened edge."""
    radius, softness = by_side(
        images,
        severity,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    )
    return filtered(images, _disk(radius, softness).to(images))


@corruption("motion")
def motion(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Each image smears along a direction of its own, within 45 degrees of the horizontal.

    A point leaves a trace on one side of it, half of a normal curve; shifts are whole pixels.
    """
    reach, deviation = by_side(
        images,
        severity,
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    )
    count, _, height, width = images.shape
    angles = uniform((count,), -math.pi / 4, math.pi / 4, generator, images)
    number = torch.arange(count, device=images.device)[:, None, None]
    weights = [math.exp(-0.5 * (step / deviation) ** 2) for step in range(2 * reach + 1)]
    blurred = torch.zeros_like(images)
    for step, weight in enumerate(weights):
        down, right = (step * angles.sin()).round().long(), (step * angles.cos()).round().long()
        rows = (torch.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + right[:, None]).clamp(0, width - 1)
        shifted = images.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        blurred += weight / sum(weights) * shifted
    return blurred


def filtered(images: Images, kernel: Float[Tensor, "side side"]) -> Images:
    """Return each channel filtered, the edges mirrored where the image is large enough for that."""
    reach = kernel.shape[0] // 2
    count, channels, height, width = images.shape
    mode = "reflect" if reach < min(height, width) else "replicate"
    single = functional.pad(images.reshape(count * channels, 1, height, width), (reach,) * 4, mode=mode)
    return functional.conv2d(single, kernel[None, None]).reshape(images.shape)


def _disk(radius: float, softness: float) -> Float[Tensor, "side side"]:
    """Return a disk on the pixel grid, softened by a normal curve over 3 pixels (5 for wide disks)."""
    reach = math.ceil(radius)
    line = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).float()
    soft = 1 if radius <= _WIDE else 2
    curve = torch.exp(-0.5 * (torch.arange(-soft, soft + 1) / softness) ** 2)
    curve = curve / curve.sum()
    kernel = torch.outer(curve, curve)[None, None]
    return functional.conv2d((disk / disk.sum())[None, None], kernel, padding=2 * soft)[0, 0]
