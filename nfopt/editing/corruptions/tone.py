"""Tone: contrast, brightness and colour. The first two at ImageNet-C's and CIFAR-10-C's severities."""

import torch
from torchvision.transforms import v2

from nfopt.editing.corruptions.corruption import Images, by_side, corruption, uniform


@corruption("contrast")
def contrast(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Values move towards the mean of their channel."""
    kept = by_side(images, severity, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


@corruption("brightness")
def brightness(images: Images, severity: int, generator: torch.Generator) -> Images:
    """The brightest channel of a pixel gains, the others in proportion: hue and saturation stay."""
    gain = by_side(images, severity, (0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5))
    value = images.amax(1, keepdim=True)
    brighter = (value + gain).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp_min(1e-12)), brighter)


@corruption("colour_jitter")
def colour_jitter(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Brightness, contrast, saturation and hue of each image change by random amounts; ours, in no benchmark.

    Factors are uniform within 1 +- 0.15 severity, hue turns by at most 0.05 severity of half a circle. Images
    of one channel have no saturation and no hue.
    """
    spread = 0.15 * severity
    light, kept = (uniform((len(images), 1, 1, 1), 1 - spread, 1 + spread, generator, images) for _ in "12")
    images = (light * images).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + kept * (images - mean)).clamp(0, 1)
    if images.shape[1] != 3:
        return images
    saturation = uniform((len(images),), 1 - spread, 1 + spread, generator, images)
    hue = uniform((len(images),), -0.025 * severity, 0.025 * severity, generator, images)
    varied = [
        v2.functional.adjust_hue(v2.functional.adjust_saturation(image, float(s)), float(h))
        for image, s, h in zip(images, saturation, hue, strict=True)
    ]
    return torch.stack(varied)
