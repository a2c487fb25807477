"""The tasks on which update directions are compared: small nets whose copies train side by side.

Every parameter has a leading dimension of copies, one per seed. A net can record what its layers see, for
directions that are built from activations and back-propagated signals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nfopt.data import ImageData, Split, load_data
from tests.benchmarks.direction_rules import LayerSignals

Tensors = dict[str, Tensor]
CURVE_IMAGES = 2000  # validation images behind each point of a curve; final losses take all of them
TRAIN_IMAGES = 5000  # training images behind a final training loss
EVALUATED = 500  # images at once


class Recorder:
    """Keeps a layer's inputs and outputs during a forward pass, as rows."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = {}

    def note(self, name: str, inputs: Tensor, output: Tensor, rows: Callable[[Tensor], Tensor]) -> None:
        """Keep a layer's input rows and its output, which `rows` turns into (copies, rows, out)."""
        output.retain_grad()
        self._seen[name] = inputs.detach(), output, rows

    def signals(self) -> dict[str, LayerSignals]:
        """Return what was seen, after the backward pass, by the name of the layer's matrix."""
        found = {}
        for name, (inputs, output, rows) in self._seen.items():
            assert output.grad is not None
            found[name] = LayerSignals(inputs, rows(output.grad))
        return found


class Net(Protocol):
    """A classifier with copies side by side."""

    def init(self, seeds: tuple[int, ...]) -> Tensors:
        """Draw one start per seed; matrices have names that end in "weight"."""
        ...

    def __call__(
        self, params: Tensors, images: Float[Tensor, "copies batch ..."], recorder: Recorder | None = None
    ) -> Float[Tensor, "copies batch classes"]:
        """Return the logits."""
        ...


def _uniform(seeds: tuple[int, ...], shapes: dict[str, tuple[int, ...]], fan_ins: dict[str, int]) -> Tensors:
    """Draw on +-1/sqrt(fan_in), torch's default; tensors without a fan-in are ones ("scale") or zeros."""
    drawn: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            if name in fan_ins:
                drawn[name].append((2 * torch.rand(shape, generator=generator) - 1) * fan_ins[name] ** -0.5)
            else:
                drawn[name].append(torch.full(shape, float(name.endswith("scale"))))
    return {name: torch.stack(tensors) for name, tensors in drawn.items()}


@dataclass(frozen=True)
class Mlp:
    """A perceptron with ReLU; `widths` from the inputs to the classes."""

    widths: tuple[int, ...]

    def init(self, seeds: tuple[int, ...]) -> Tensors:
        shapes: dict[str, tuple[int, ...]] = {}
        fan_ins: dict[str, int] = {}
        for i, (inputs, outputs) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            shapes |= {f"{i}.weight": (outputs, inputs), f"{i}.bias": (outputs,)}
            fan_ins |= {f"{i}.weight": inputs, f"{i}.bias": inputs}
        return _uniform(seeds, shapes, fan_ins)

    def __call__(self, params: Tensors, images: Tensor, recorder: Recorder | None = None) -> Tensor:
        x = images.flatten(2)
        for i in range(len(self.widths) - 1):
            x = x.relu() if i else x
            x = _dense(params, f"{i}.weight", f"{i}.bias", x, recorder)
        return x


@dataclass(frozen=True)
class Cnn:
    """3x3 convolutions with BatchNorm (statistics of the batch) and ReLU, stride 2 from the second on.

    Attributes:
        widths: channels, from the images' to the last convolution's.
        classes: outputs of the linear head on the mean over positions.
    """

    widths: tuple[int, ...]
    classes: int

    def init(self, seeds: tuple[int, ...]) -> Tensors:
        shapes: dict[str, tuple[int, ...]] = {}
        fan_ins: dict[str, int] = {}
        for i, (inputs, outputs) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            shapes |= {f"{i}.weight": (outputs, inputs, 3, 3)}
            shapes |= {f"{i}.scale": (outputs,), f"{i}.shift": (outputs,)}
            fan_ins[f"{i}.weight"] = 9 * inputs
        shapes |= {"head.weight": (self.classes, self.widths[-1]), "head.bias": (self.classes,)}
        fan_ins |= {"head.weight": self.widths[-1], "head.bias": self.widths[-1]}
        return _uniform(seeds, shapes, fan_ins)

    def __call__(self, params: Tensors, images: Tensor, recorder: Recorder | None = None) -> Tensor:
        copies, batch = images.shape[:2]
        x = images.transpose(0, 1).flatten(1, 2)
        for i in range(len(self.widths) - 1):
            stride = 1 + (i > 0)
            weight = params[f"{i}.weight"]
            z = functional.conv2d(x, weight.flatten(0, 1), stride=stride, padding=1, groups=copies)
            if recorder is not None:
                patches = functional.unfold(x.unflatten(1, (copies, -1)).flatten(0, 1), 3, 1, 1, stride)
                inputs = patches.unflatten(0, (batch, copies)).permute(1, 0, 3, 2).flatten(1, 2)
                recorder.note(f"{i}.weight", inputs, z, lambda g: _rows(g, copies))
            scale, shift = params[f"{i}.scale"].flatten(), params[f"{i}.shift"].flatten()
            x = functional.batch_norm(z, None, None, scale, shift, training=True).relu()
        features = x.mean((2, 3)).unflatten(1, (copies, -1)).transpose(0, 1)
        return _dense(params, "head.weight", "head.bias", features, recorder)


def _dense(params: Tensors, weight: str, bias: str, x: Tensor, recorder: Recorder | None) -> Tensor:
    output = torch.baddbmm(params[bias][:, None], x, params[weight].mT)
    if recorder is not None:
        recorder.note(weight, x, output, lambda g: g)
    return output


def _rows(grad: Float[Tensor, "batch channels height width"], copies: int) -> Tensor:
    return grad.unflatten(1, (copies, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)


@dataclass(frozen=True, eq=False)
class Problem:
    """A net, its data and how long it trains.

    Attributes:
        net: what is trained.
        data: what it is trained, chosen and tested on.
        batch: images per step and copy.
        steps: of the whole training.
        matrix_step: nominal RMS change per element of a matrix, in units of 1 / sqrt(fan-in).
        kernel_step: the same of a convolution's kernel.
    """

    net: Net
    data: ImageData
    batch: int
    steps: int
    matrix_step: float = 0.025
    kernel_step: float = 0.06

    def batches(self, seeds: tuple[int, ...]) -> Tensor:
        """Return the training images' indices, (steps, copies, batch): whole epochs, shuffled by the seed."""
        orders = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 + seed)
            size = len(self.data.train)
            epochs = -(-self.steps * self.batch // size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(epochs)])
            orders.append(order[: self.steps * self.batch].reshape(self.steps, self.batch))
        return torch.stack(orders, 1)

    def loss(self, params: Tensors, split: Split, images: int | None = None) -> Float[Tensor, " copies"]:
        """Return each copy's mean loss over the first `images` of a split."""
        copies = len(next(iter(params.values())))
        total = torch.zeros(copies)
        count = len(split) if images is None else min(images, len(split))
        with torch.no_grad():
            for start in range(0, count, EVALUATED):
                part = split[torch.arange(start, min(start + EVALUATED, count))]
                logits = self.net(params, part.images.expand(copies, *part.images.shape))
                total += losses(logits, part.labels.expand(copies, -1)).sum(1)
        return total / count


def losses(logits: Float[Tensor, "copies batch classes"], labels: Tensor) -> Float[Tensor, "copies batch"]:
    """Return the cross-entropy of every example, in nats."""
    return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def problem(name: str, steps: int) -> Problem:
    """Return a task by name: `mlp` (Fashion-MNIST) or `cnn` (CIFAR-10 at 16x16)."""
    if name == "mlp":
        return Problem(Mlp((784, 128, 128, 10)), load_data("fashion_mnist"), 128, steps)
    return Problem(Cnn((3, 16, 32, 64), 10), load_data("cifar10", resize=16), 64, steps)
