"""What a corruption is: a seeded transform of images in [0, 1] at a severity of 1 to 5, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import EditingError
from nfopt.registry import Registry

Images = Float[Tensor, "images channels height width"]
Transform = Callable[[Images, int, torch.Generator], Images]
CORRUPTIONS: Registry[Transform] = Registry("corruption")
SEVERITIES = range(1, 6)
SMALL_SIDE = 64

T = TypeVar("T")


def corruption(name: str) -> Callable[[Transform], Transform]:
    """Return a decorator that enters `(images, severity, generator) -> images` as the corruption `name`.

    The transform may leave [0, 1]; it is cut off afterwards.

    Raises:
        DuplicateNameError: there is a corruption of that name.
    """
    return CORRUPTIONS.register(name)


def corrupt(images: Images, name: str, severity: int, generator: torch.Generator) -> Images:
    """Return corrupted images; the same generator state always gives the same ones.

    Args:
        images: values in [0, 1].
        name: a name in `CORRUPTIONS`.
        severity: 1 to 5.
        generator: for everything random, on any device.

    Raises:
        UnknownNameError: there is no such corruption.
        EditingError: the severity or the images are not of this kind.
    """
    transform = CORRUPTIONS[name]
    check_severity(name, severity)
    check_unit_images(images)
    return transform(images, severity, generator).clamp(0, 1).to(images.dtype)


@dataclass(frozen=True)
class Domain:
    """Corruptions one after the other: what a new camera does to pictures.

    Attributes:
        steps: name and severity of each; none for the source domain itself.
    """

    steps: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for name, severity in self.steps:
            CORRUPTIONS[name]
            check_severity(name, severity)

    @classmethod
    def parse(cls, text: str) -> "Domain":
        """Return the domain written as "contrast:3" or "rotation:2+gaussian:5"; "clean" is the source.

        Raises:
            UnknownNameError: there is no such corruption.
            EditingError: it is written in another way, or a severity is not 1 to 5.
        """
        if text == "clean":
            return cls()
        steps = []
        for part in text.split("+"):
            name, colon, severity = part.strip().partition(":")
            if not colon or not severity.isdecimal():
                raise EditingError(
                    f"{part!r} is no corruption with a severity; write contrast:3, or rotation:2+gaussian:5."
                )
            steps.append((name, int(severity)))
        return cls(tuple(steps))

    def __str__(self) -> str:
        return "+".join(f"{name}:{severity}" for name, severity in self.steps) or "clean"

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Return the images as this domain shows them."""
        check_unit_images(images)
        for name, severity in self.steps:
            images = corrupt(images, name, severity, generator)
        return images


def check_severity(name: str, severity: int) -> None:
    """Raise EditingError unless `severity` is 1 to 5."""
    if severity not in SEVERITIES:
        raise EditingError(f"the severity of {name} is a whole number from 1 to 5, not {severity!r}.")


def check_unit_images(images: Tensor) -> None:
    """Raise EditingError unless `images` is a batch of pictures with values in [0, 1]."""
    if images.ndim != 4 or not images.is_floating_point():
        raise EditingError(
            "corruptions take images x channels x height x width of floating point in [0, 1], not "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    if images.numel() == 0:
        raise EditingError(f"there are no images to corrupt: their shape is {tuple(images.shape)}.")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise EditingError(
            f"corruptions take values in [0, 1], not from {low:g} to {high:g}. Corrupt before standardising."
        )


def by_side(images: Images, severity: int, small: Sequence[T], large: Sequence[T]) -> T:
    """Return the setting of a severity: CIFAR-10-C's up to a side of 64 pixels, ImageNet-C's above."""
    return (small if max(images.shape[-2:]) <= SMALL_SIDE else large)[severity - 1]


def uniform(
    shape: Sequence[int], low: float, high: float, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Return uniform numbers in [low, high) of the type and device of `like`."""
    draw = torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (low + (high - low) * draw).to(like)
