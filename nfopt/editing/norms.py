"""The statistics of BatchNorm: measured on images, exactly and however they are batched, and put in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Moments:
    """Per channel: how many values there were, their mean, and the sum of squares about it, in float64."""

    count: int
    mean: Float[Tensor, " channels"]
    squares: Float[Tensor, " channels"]

    @property
    def variance(self) -> Float[Tensor, " channels"]:
        """The unbiased variance."""
        return self.squares / max(self.count - 1, 1)

    def joined(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub & LeVeque 1983, equation 2.1)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        squares = self.squares + other.squares + gap**2 * self.count * other.count / count
        return Moments(count, mean, squares)


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by name."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None
    }


def affine_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the scales and shifts of the BatchNorm layers by name."""
    prefixes = {f"{name}." if name else "" for name in norms_of(model)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.removesuffix(name.rpartition(".")[2]) in prefixes
    }


def statistics_of(model: nn.Module) -> list[str]:
    """Return the names of the running means and variances."""
    prefixes = [f"{name}." if name else "" for name in norms_of(model)]
    return [prefix + kind for prefix in prefixes for kind in ("running_mean", "running_var")]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[Mapping[str, _BatchNorm]]:
    """Let BatchNorm layers normalise by each batch; their running statistics and modes are put back."""
    norms = norms_of(model)
    modes = {name: norm.training for name, norm in norms.items()}
    held = {name: [buffer.clone() for buffer in norm.buffers()] for name, norm in norms.items()}
    for norm in norms.values():
        norm.train()
    try:
        yield norms
    finally:
        with torch.no_grad():
            for name, norm in norms.items():
                norm.train(modes[name])
                for buffer, value in zip(norm.buffers(), held[name], strict=True):
                    buffer.copy_(value)


@torch.no_grad()
def measure_statistics(model: nn.Module, images: Tensor, batch_size: int = 256) -> dict[str, Moments]:
    """Return the moments of what each BatchNorm layer sees of the images, when each normalises by its batch.

    The moments of the batches are joined exactly. Between batches a layer's inputs differ, since the layers
    below normalise by the batch; with images that fit into one batch nothing is approximate.
    """
    found: dict[str, Moments] = {}

    def note(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments = _moments(inputs[0])
        found[name] = found[name].joined(moments) if name in found else moments

    with batch_statistics(model) as norms:
        hooks = [norm.register_forward_pre_hook(partial(note, name)) for name, norm in norms.items()]
        try:
            for part in even_parts(images, batch_size):
                model(part)
        finally:
            for hook in hooks:
                hook.remove()
    return found


@torch.no_grad()
def put_statistics(
    model: nn.Module, moments: Mapping[str, Moments], *, images: int, source_count: float = 0.0
) -> None:
    """Set running means and variances to those of the moments, blended with what is there.

    With N = `source_count` and n = `images`, both become (N source + n target) / (N + n) (Schneider et al.
    2020, "Improving robustness against common corruptions by covariate shift adaptation", equation 2).
    """
    share = images / (source_count + images)
    for name, norm in norms_of(model).items():
        if name not in moments:
            continue
        for buffer, value in (
            (norm.running_mean, moments[name].mean),
            (norm.running_var, moments[name].variance),
        ):
            buffer.copy_((1 - share) * buffer.double() + share * value)  # pyright: ignore[reportOptionalMemberAccess]


def even_parts(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Return the images in nearly equal parts of at most `batch_size`: none is left with one image."""
    return images.tensor_split(max(-(-len(images) // batch_size), 1))


def _moments(inputs: Tensor) -> Moments:
    """Return the moments over all axes but the second, that of the channels."""
    values = inputs.double().movedim(1, 0).flatten(1)
    mean = values.mean(1)
    return Moments(values.shape[1], mean, ((values - mean[:, None]) ** 2).sum(1))
