"""TaskFamily: the distribution of tasks to meta-train on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, log
from typing import Literal, TypeVar

import torch

from nfopt.errors import NfoptError, unknown_name
from nfopt.meta.nets import ACTIVATIONS, Architecture, Norm
from nfopt.meta.sources import load_source, require_trainable, source_names
from nfopt.meta.task import TaskConfig

Kind = Literal["mlp", "cnn", "resnet", "depthwise"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("mlp", "cnn", "resnet", "depthwise")


@dataclass(frozen=True, slots=True)
class TaskFamily:
    """Random small nets on random small data sets; each field is one thing that varies.

    Attributes:
        sources: names of `sources.source_names()`; held-out ones are refused.
        source_weights: one weight per source; empty: all are as likely.
        sides: image sides in pixels.
        kinds: kinds of network with their weights.
        widths: smallest and largest hidden width, drawn log-uniformly for each stage.
        depths: smallest and largest number of hidden stages.
        activations: names of `nets.ACTIVATIONS`.
        norm_share: share of networks with normalisation (an `mlp`: batch or layer, else batch).
        batch_images: smallest and largest batch, log-uniform.
        train_images: smallest and largest training subset, log-uniform, at most what the source has.
        label_noise: noise levels, drawn uniformly.
        horizon: fewest and most inner steps, log-uniform.
        most_epochs: most passes over the training subset, or None for any number: the subset is enlarged, as
            far as the source goes, and the horizon shortened until the training keeps to it.
        rescale_share: share of tasks whose initialisation is reparametrised.
        rescale: largest factor of a compensated reparametrisation.
        rescale_bare: largest factor of one that is not compensated, which also changes the function.
        conv_scale: a convolutional net's batch and widths are at most the range's top divided by this, as its
            steps cost more.
        validation_images: images in the validation loss.
    """

    sources: tuple[str, ...] = ("digits", "teacher")
    source_weights: tuple[float, ...] = ()
    sides: tuple[int, ...] = (8,)
    kinds: tuple[tuple[Kind, float], ...] = (
        ("mlp", 0.6),
        ("cnn", 0.15),
        ("resnet", 0.15),
        ("depthwise", 0.1),
    )
    widths: tuple[int, int] = (8, 64)
    depths: tuple[int, int] = (1, 3)
    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    norm_share: float = 0.5
    batch_images: tuple[int, int] = (8, 256)
    train_images: tuple[int, int] = (100, 8000)
    label_noise: tuple[float, ...] = (0.0, 0.0, 0.1, 0.2, 0.4)
    horizon: tuple[int, int] = (100, 500)
    most_epochs: float | None = None
    rescale_share: float = 0.3
    rescale: float = 10.0
    rescale_bare: float = 3.0
    conv_scale: int = 4
    validation_images: int = 256

    def __post_init__(self) -> None:
        for name in self.sources:
            require_trainable(name)
            if name not in source_names():
                raise unknown_name("source", name, source_names(), where="a task family")
        for kind, weight in self.kinds:
            if kind not in KINDS or weight < 0:
                raise NfoptError(
                    f"kinds pairs a kind ({', '.join(KINDS)}) with a weight >= 0, not {kind, weight}."
                )
        for name in ("widths", "depths", "batch_images", "train_images", "horizon"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise NfoptError(f"{name} is a range of numbers >= 1, low first, not {(low, high)}.")
        weights = self.source_weights
        if weights and (len(weights) != len(self.sources) or min(weights) < 0 or sum(weights) <= 0):
            raise NfoptError(
                f"source_weights has one weight >= 0 for each of {len(self.sources)} sources, not {weights}."
            )
        if self.most_epochs is not None and self.most_epochs <= 0:
            raise NfoptError(f"most_epochs must be above 0, or left out, not {self.most_epochs}.")
        if not self.sources or not self.sides or sum(weight for _, weight in self.kinds) <= 0:
            raise NfoptError("a task family needs at least one source, one side and one kind of network.")

    def sample(self, draw: torch.Generator, horizon_factor: int = 1) -> TaskConfig:
        """Draw one task, `horizon_factor` times as long as usual; it depends on the generator alone."""
        source = load_source(self._source(draw), _choose(self.sides, draw))
        kind = self.kinds[_weighted([weight for _, weight in self.kinds], draw)][0]
        scale = 1 if kind == "mlp" else self.conv_scale
        depth = _between(self.depths, draw)
        widths = tuple(
            _log_between(_shrunk(self.widths, scale), draw) for _ in range(depth + (kind != "mlp"))
        )
        norms: tuple[Norm, ...] = ("batch", "layer") if kind == "mlp" else ("batch",)
        norm = _choose(norms, draw) if _uniform(draw) < self.norm_share else "none"
        activation = _choose(self.activations, draw)
        available = len(source.train.labels)
        low, high = self.train_images
        train_images = _log_between((min(low, available), min(high, available)), draw)
        batch_images = min(train_images, _log_between(_shrunk(self.batch_images, scale), draw))
        rescaled, compensate = _uniform(draw) < self.rescale_share, _uniform(draw) < 0.5
        largest = self.rescale if compensate else self.rescale_bare
        config = TaskConfig(
            Architecture(kind, widths, source.classes, source.in_shape, activation, norm),
            source.name,
            batch_images=max(batch_images, 2),
            train_images=max(train_images, 2),
            validation_images=self.validation_images,
            label_noise=_choose(self.label_noise, draw),
            horizon=_log_between(self.horizon, draw) * horizon_factor,
            rescale=largest if rescaled else 1.0,
            compensate=compensate,
        )
        return config if self.most_epochs is None else _within_epochs(config, self.most_epochs, available)

    def _source(self, draw: torch.Generator) -> str:
        # The plain draw stays as it was: the tasks of earlier meta-trainings hang on it.
        if not self.source_weights:
            return _choose(self.sources, draw)
        return self.sources[_weighted(self.source_weights, draw)]


def _within_epochs(config: TaskConfig, most_epochs: float, available: int) -> TaskConfig:
    """Return the task with more training images, and then fewer steps, until it keeps to `most_epochs`."""
    batch = config.batch_images
    wanted = batch * ceil(config.horizon / most_epochs)
    train_images = min(available, max(config.train_images, wanted))
    horizon = max(1, min(config.horizon, int(most_epochs * (train_images // batch))))
    return replace(config, train_images=train_images, horizon=horizon)


def _weighted(weights: Sequence[float], draw: torch.Generator) -> int:
    return int(torch.multinomial(torch.tensor(weights), 1, generator=draw))


def _uniform(draw: torch.Generator) -> float:
    return float(torch.rand((), generator=draw, dtype=torch.float64))


def _choose(options: Sequence[T], draw: torch.Generator) -> T:
    return options[int(torch.randint(len(options), (), generator=draw))]


def _between(bounds: tuple[int, int], draw: torch.Generator) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=draw))


def _log_between(bounds: tuple[int, int], draw: torch.Generator) -> int:
    low, high = bounds
    return min(high, round(exp(log(low) + _uniform(draw) * (log(high) - log(low)))))


def _shrunk(bounds: tuple[int, int], scale: int) -> tuple[int, int]:
    low, high = bounds
    return min(low, max(2, high // scale)), max(2, high // scale)
