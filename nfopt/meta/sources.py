"""Where tasks draw their images: nfopt's data sets at a small size, and a synthetic one."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch

from nfopt.data import DATA_SETS, ImageData, Split, load_data
from nfopt.errors import DataError, unknown_name
from nfopt.meta.silhouettes import NAME as SILHOUETTES
from nfopt.meta.silhouettes import silhouettes
from nfopt.seeds import generator

HELD_OUT = ("fashion_mnist", "cifar10")
# Training images of the synthetic sources; another 4,000 are for validation and test.
TEACHERS = {"teacher": 8_000, "teacher_large": 50_000}

CLUTTERED = "mnist_cluttered"


def source_names() -> list[str]:
    """Return the names that `load_source` knows."""
    return sorted([*DATA_SETS, *TEACHERS, CLUTTERED, SILHOUETTES])


@lru_cache(maxsize=16)
def load_source(name: str, side: int, device: torch.device | str = "cpu") -> ImageData:
    """Return the source `name` with square images of `side` pixels, standardised, on `device`.

    Raises:
        UnknownNameError: no such source.
        DataError: the data set is not on this machine.
    """
    if name not in source_names():
        raise unknown_name("source", name, source_names(), where="a task")
    if torch.device(device).type != "cpu":
        here = load_source(name, side)
        there = {part: getattr(here, part).to(device) for part in ("train", "val", "test")}
        return replace(here, **there)
    if name == CLUTTERED:
        return _cluttered(load_data("mnist", resize=side))
    if name == SILHOUETTES:
        return silhouettes(side)
    return _teacher(name, side) if name in TEACHERS else load_data(name, resize=side)


def _cluttered(digits: ImageData) -> ImageData:
    """Return digits with another of the same split added, shifted and fainter; the label stays.

    As many images as the plain digits have, but far from solved by a small network within a few epochs.
    """

    def clutter(split: Split, part: str) -> Split:
        draw = generator(CLUTTERED, part)
        other = split.images[torch.randperm(len(split.labels), generator=draw)]
        return Split(split.images + 0.8 * other.roll((1, 1), dims=(-2, -1)), split.labels)

    parts = {part: clutter(getattr(digits, part), part) for part in ("train", "val", "test")}
    return replace(digits, name=CLUTTERED, **parts)


def _teacher(name: str, side: int) -> ImageData:
    """Return Gaussian images with a power-law spectrum, labelled by a random two-layer network: 10 classes.

    Needs no data set and has nothing in common with photographs, so it keeps the rule from fitting digits.
    """
    draw = generator(name, side)
    pixels, count = side * side, TEACHERS[name] + 4_000
    spectrum = torch.arange(1, pixels + 1).float().pow(-0.5)
    basis = torch.linalg.qr(torch.randn(pixels, pixels, generator=draw))[0]
    flat = (torch.randn(count, pixels, generator=draw) * spectrum) @ basis
    flat = flat / flat.std()
    hidden = torch.tanh(3 * flat @ torch.randn(pixels, 32, generator=draw) * pixels**-0.5)
    scores = hidden @ torch.randn(32, 10, generator=draw)
    labels = ((scores - scores.mean(0)) / scores.std(0)).argmax(1)
    whole = Split(flat.reshape(count, 1, side, side), labels)
    cuts = (0, count - 4_000, count - 2_000, count)
    train, val, test = (whole[torch.arange(a, b)] for a, b in pairwise(cuts))
    return ImageData(name, train, val, test, classes=10)


def require_trainable(name: str) -> str:
    """Return `name` unless it is held out for evaluation.

    Raises:
        DataError: meta-training on it would leak the evaluation's data.
    """
    if name in HELD_OUT:
        raise DataError(
            f"{name!r} is held out: it may be evaluated on but not meta-trained on. "
            f"Train on {', '.join(n for n in source_names() if n not in HELD_OUT)}."
        )
    return name
