"""Problems: a start, batches and a final score for every optimizer of a stress case alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import Split, load_data
from nfopt.models import build_model
from nfopt.training import batch_indices

Tamper = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Problem:
    """Classifying images with one small net; every field is one thing that may be out of the ordinary.

    Attributes:
        data: a name of `nfopt.data.DATA_SETS`.
        train_images: training images kept.
        batch_images: images per step.
        label_noise: share of training labels replaced by others; the score then counts held-out images.
        input_scale: factor on the standardised images.
        input_shift: added to them.
        model: a name of `nfopt.models.MODELS`, or "tied": three layers with one weight.
        hidden: widths of an MLP, channels of a CNN.
        activation: of an MLP.
        tamper: changes the freshly initialised model.
        dtype: of parameters and images.
        seed: of the start and of the order of the batches.
    """

    data: str = "digits"
    train_images: int = 1000
    batch_images: int = 128
    label_noise: float = 0.0
    input_scale: float = 1.0
    input_shift: float = 0.0
    model: str = "mlp"
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "relu"
    tamper: Tamper | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def start(self) -> nn.Module:
        """Return the model before its first step, always the same."""
        shape = self._images("train").images.shape[1:]
        if self.model == "tied":
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model: nn.Module = Tied(shape.numel(), self.hidden[0])
        else:
            options: dict[str, Any] = {"hidden": list(self.hidden), "activation": self.activation}
            if self.model == "cnn":
                options = {"channels": list(self.hidden)}
            model = build_model(self.model, tuple(shape), 10, seed=self.seed, options=options)
        if self.tamper is not None:
            with torch.no_grad():
                self.tamper(model)
        return model.to(self.dtype)

    def batches(self, steps: int) -> Iterator[Split]:
        """Yield the batches of `steps` steps, always the same."""
        images = self._images("train")
        for step in range(steps):
            chosen = batch_indices(step, images=len(images), batch_size=self.batch_images, seed=self.seed)
            yield images[chosen]

    def score(self, model: nn.Module) -> float:
        """Return the mean loss of the model in evaluation mode: on training images, or held-out ones."""
        images = self._images("test" if self.label_noise else "train")
        was_training = model.training
        with torch.no_grad():
            loss = functional.cross_entropy(model.eval()(images.images).float(), images.labels)
        model.train(was_training)
        return float(loss)

    def _images(self, split: str) -> Split:
        images = _load(self.data, self.train_images, self.label_noise)[split]
        return replace(images, images=(images.images * self.input_scale + self.input_shift).to(self.dtype))


@lru_cache(maxsize=8)
def _load(name: str, train_images: int, label_noise: float) -> dict[str, Split]:
    data = load_data(name, n_train=train_images, label_noise=label_noise)
    return {"train": data.train, "test": data.test[torch.arange(min(len(data.test), 1000))]}


class Tied(nn.Module):
    """A net whose three hidden layers are one: gradients of the three uses add up in one weight."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.first, self.shared, self.last = (
            nn.Linear(pixels, width),
            nn.Linear(width, width),
            nn.Linear(width, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.first(images.flatten(1)))
        for _ in range(3):
            hidden = torch.relu(self.shared(hidden))
        return self.last(hidden)


def kill_first_layer(model: nn.Module) -> None:
    """Push every neuron of the first hidden layer so far down that no input wakes it."""
    _linears(model)[0].bias.fill_(-100.0)


def kill_half_of_the_first_layer(model: nn.Module) -> None:
    """Push every other neuron of the first hidden layer so far down that no input wakes it."""
    _linears(model)[0].bias[::2] = -100.0


def zero_last_layer(model: nn.Module) -> None:
    """Set the last layer to zero, as fine-tuning and muP do."""
    _linears(model)[-1].weight.zero_()
    _linears(model)[-1].bias.zero_()


def enlarge_weights(model: nn.Module) -> None:
    """Multiply every weight by ten: a start with logits in the hundreds."""
    for parameter in model.parameters():
        parameter.mul_(10.0)


def shrink_weights(model: nn.Module) -> None:
    """Multiply every weight by a hundredth: a start at which signals nearly vanish."""
    for parameter in model.parameters():
        parameter.mul_(0.01)


def average_slowly(model: nn.Module) -> None:
    """Let BatchNorm's statistics lag a hundred steps behind."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
