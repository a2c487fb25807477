"""Noise: gaussian, shot, impulse. Severities of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019)."""

import torch

from nfopt.editing.corruptions.corruption import Images, by_side, corruption, uniform


@corruption("gaussian")
def gaussian(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Normal noise on every value, as in low light."""
    deviation = by_side(images, severity, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return images + deviation * noise.to(images)


@corruption("shot")
def shot(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Poisson noise of counted photons: as many at full brightness as the severity says."""
    photons = by_side(images, severity, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    counts = torch.poisson(photons * images.to(generator.device, torch.float32), generator)
    return counts.to(images) / photons


@corruption("impulse")
def impulse(images: Images, severity: int, generator: torch.Generator) -> Images:
    """Salt and pepper: a share of the values is 0 or 1, half and half."""
    share = by_side(images, severity, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    draw = uniform(images.shape, 0.0, 1.0, generator, images)
    return torch.where(draw < share, (draw < share / 2).to(images), images)
