"""Digital: pixelate and JPEG. Severities of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019)."""

import torch
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from nfopt.editing.corruptions.corruption import Images, by_side, corruption
from nfopt.errors import EditingError


@corruption("pixelate")
def pixelate(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Fewer pixels: averaged down, then each drawn as a block."""
    share = by_side(images, severity, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    height, width = images.shape[-2:]
    fewer = (max(int(height * share), 1), max(int(width * share), 1))
    return functional.interpolate(
        functional.interpolate(images, fewer, mode="area"), (height, width), mode="nearest-exact"
    )


@corruption("jpeg")
def jpeg(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Compressed as JPEG of a low quality and read again."""
    quality = by_side(images, severity, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    modes = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
    channels = images.shape[1]
    if channels not in modes:
        raise EditingError(f"JPEG has images of 1 or 3 channels, not of {channels}.")
    codes = (images.detach().cpu().float() * 255).round().to(torch.uint8)
    corrupted = torch.empty_like(images)
    for number, code in enumerate(codes):
        corrupted[number] = decode_jpeg(encode_jpeg(code.contiguous(), quality), modes[channels]) / 255  # pyright: ignore[reportOperatorIssue]
    return corrupted
