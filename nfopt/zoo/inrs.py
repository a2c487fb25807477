"""Zoos of implicit neural representations: SIRENs fitted to one image each, or to one sine wave each."""

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from nfopt.data import ImageData, Split
from nfopt.seeds import generator
from nfopt.symmetry import PermutationSpec
from nfopt.zoo.machine import Machine
from nfopt.zoo.members import Members
from nfopt.zoo.siren import SirenConfig, grid
from nfopt.zoo.siren_fit import FitConfig, Fitted, fit_sirens, psnr_db
from nfopt.zoo.zoo import SIDES, Zoo, ZooError


def _ignore(done: int) -> None:
    pass


def image_inrs(
    data: ImageData,
    members: Members,
    *,
    seed: int,
    hidden: tuple[int, ...] = (32, 32),
    omega_0: float = 30.0,
    fit: FitConfig | None = None,
    views: int = 1,
    machine: Machine | None = None,
    report: Callable[[int], None] = _ignore,
) -> Zoo:
    """Fit SIRENs to images, one net to one image; the sides are those of the data set.

    The protocol of "Equivariant Architectures for Learning in Deep Weight Spaces" (Navon et al. 2023).

    Args:
        data: images of one channel with values in [0, 1], not standardised.
        members: member (side, number) holds image number // views of its side, in an order that `seed` draws.
        seed: seed of that order and of the initial parameters.
        hidden: widths of the hidden layers.
        omega_0: factor inside every sine.
        fit: learning rate and when to stop.
        views: nets for each image, from different initial parameters.
        machine: where to fit.
        report: hears how many nets are done.

    Returns:
        A zoo with the facts label, image [nets, 1, height, width], image_number (within its split), view,
        train_loss (mean squared error), psnr_db and steps.

    Raises:
        ZooError: a side has fewer images than its members need, or the images have several channels or other
            values.
    """
    machine, fit = machine or Machine(), fit or FitConfig()
    if views < 1:
        raise ZooError(f"each image needs at least one net: views is {views}.")
    splits = (data.train, data.val, data.test)
    image_number = torch.zeros(len(members), dtype=torch.long)
    images, labels = [], []
    for side, split in enumerate(splits):
        chosen = members.side == side
        image_number[chosen] = _image_numbers(split, members.number[chosen] // views, seed, side, data.name)
        images.append(split.images[image_number[chosen]])
        labels.append(split.labels[image_number[chosen]])
    # Members are listed side after side, so that what was gathered by side is in their order.
    order = torch.cat([(members.side == side).nonzero().flatten() for side in range(len(SIDES))]).argsort()
    image, label = torch.cat(images)[order], torch.cat(labels)[order]
    _check_images(image, data.name)
    height, width = image.shape[2:]
    config = SirenConfig(2, hidden, 1, omega_0)
    fitted = _fitted(
        config, grid(height, width), image.flatten(1), members, seed, fit, machine, report, (height, width)
    )
    facts = {"label": label, "image": image, "image_number": image_number, "view": members.number % views}
    about = {"family": "inr_images", "data": data.name, "views": views}
    return _zoo(config, fitted, members, seed, fit, facts, about, torch.ones(len(members)))


def sine_inrs(
    members: Members,
    *,
    seed: int,
    frequency: tuple[float, float] = (0.5, 10.0),
    amplitude: tuple[float, float] = (1.0, 1.0),
    points: int = 256,
    hidden: tuple[int, ...] = (32, 32),
    omega_0: float = 30.0,
    fit: FitConfig | None = None,
    machine: Machine | None = None,
    report: Callable[[int], None] = _ignore,
) -> Zoo:
    """Fit SIRENs to waves a sin(b x) on [-pi, pi], one net to one wave.

    Navon et al. 2023: frequencies b from U(.5, 10) for the regression; a and b from U(0, 10) for embeddings.
    The nets' coordinate is x / pi.

    Args:
        members: the nets; each draws its own wave.
        seed: seed of the waves and of the initial parameters.
        frequency: least and largest b, drawn uniformly.
        amplitude: least and largest a, drawn uniformly.
        points: number of equally spaced points that a net is fitted at.
        hidden: widths of the hidden layers.
        omega_0: factor inside every sine.
        fit: learning rate and when to stop; the peak of the signal-to-noise ratio is a.
        machine: where to fit.
        report: hears how many nets are done.

    Returns:
        A zoo with the facts frequency, amplitude, train_loss (mean squared error), psnr_db and steps.

    Raises:
        ZooError: a range is empty or negative, or there are fewer than two points.
    """
    machine, fit = machine or Machine(), fit or FitConfig()
    for name, (low, high) in (("frequency", frequency), ("amplitude", amplitude)):
        if not 0 <= low <= high or high == 0:
            raise ZooError(f"{name} is a range [least, largest] of numbers from 0, not {[low, high]}.")
    if points < 2:
        raise ZooError(f"a wave is fitted at two points at least, not {points}.")
    uniform = torch.stack([torch.rand(2, generator=g) for g in members.generators(seed, "wave")])
    b = frequency[0] + (frequency[1] - frequency[0]) * uniform[:, 0]
    # A wave without height has no signal-to-noise ratio.
    a = (amplitude[0] + (amplitude[1] - amplitude[0]) * uniform[:, 1]).clamp(min=1e-3 * amplitude[1])
    x = torch.linspace(-1, 1, points).unsqueeze(1)
    targets = a.unsqueeze(1) * torch.sin(b.unsqueeze(1) * pi * x.T)
    config = SirenConfig(1, hidden, 1, omega_0)
    fitted = _fitted(config, x, targets, members, seed, fit, machine, report, None, a)
    facts = {"frequency": b, "amplitude": a}
    about = {"family": "inr_sines", "frequency": frequency, "amplitude": amplitude, "points": points}
    return _zoo(config, fitted, members, seed, fit, facts, about, a)


def _image_numbers(split: Split, wanted: Tensor, seed: int, side: int, name: str) -> Tensor:
    if not len(wanted):
        return wanted
    if int(wanted.max()) >= len(split):
        raise ZooError(
            f"{name} has {len(split)} images on the side {SIDES[side]!r}, but {int(wanted.max()) + 1} are "
            "asked for. Ask for fewer nets there, or for several views of each image."
        )
    return torch.randperm(len(split), generator=generator(seed, SIDES[side], "images"))[wanted]


def _check_images(images: Tensor, name: str) -> None:
    if images.shape[1] != 1 or float(images.min()) < 0 or float(images.max()) > 1:
        low, high = float(images.min()), float(images.max())
        raise ZooError(
            f"an image is fitted with one channel and values from 0 to 1; those of {name} have "
            f"{images.shape[1]} channels and values from {low:.3g} to {high:.3g}. "
            "Take grey images that are not standardised."
        )


def _fitted(
    config: SirenConfig,
    coordinates: Tensor,
    targets: Tensor,
    members: Members,
    seed: int,
    fit: FitConfig,
    machine: Machine,
    report: Callable[[int], None],
    grid_shape: tuple[int, int] | None,
    peak: Tensor | None = None,
) -> Fitted:
    start = torch.stack([config.start(generator) for generator in members.generators(seed, "start")])
    device = torch.device(machine.device)
    fitted = fit_sirens(
        config,
        coordinates.to(device),
        targets.to(device),
        start.to(device),
        fit,
        peak=None if peak is None else peak.to(device),
        grid_shape=grid_shape,
        machine=machine,
        report=report,
    )
    return Fitted(fitted.flat.cpu(), fitted.steps.cpu(), fitted.mse.cpu())


@lru_cache(maxsize=8)
def _spec(config: SirenConfig) -> PermutationSpec:
    return config.spec()


def _zoo(
    config: SirenConfig,
    fitted: Fitted,
    members: Members,
    seed: int,
    fit: FitConfig,
    facts: dict[str, Tensor],
    about: dict[str, object],
    peak: Tensor,
) -> Zoo:
    measured = {"train_loss": fitted.mse, "psnr_db": psnr_db(fitted.mse, peak), "steps": fitted.steps}
    card = {**about, "seed": seed, "architecture": asdict(config), "fit": asdict(fit)}
    tensors = {name: tensor.contiguous() for name, tensor in config.named(fitted.flat).items()}
    return Zoo(_spec(config), tensors, {**facts, **measured}, members.side, card)
