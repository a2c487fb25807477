"""Small networks to meta-train on, each built from a frozen description."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from nfopt.errors import NfoptError, unknown_name

Norm: TypeAlias = Literal["none", "batch", "layer"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A small classifier.

    Attributes:
        kind: `mlp` (flattened input), `cnn` (3x3 convolutions, stride 2 from the second on), `resnet` (a stem
            and one residual block per further width, of the stem's width) or `depthwise` (a stem, then pairs
            of a depthwise 3x3 and a pointwise convolution).
        widths: neurons or channels of each hidden stage.
        classes: number of outputs.
        image: input shape (channels, height, width).
        activation: a name of `ACTIVATIONS`.
        norm: normalisation before each activation; `layer` only in an `mlp`. BatchNorm keeps no running
            statistics: it uses those of its batch, in validation too.
    """

    kind: Literal["mlp", "cnn", "resnet", "depthwise"]
    widths: tuple[int, ...]
    classes: int
    image: tuple[int, int, int]
    activation: str = "relu"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS, where="an architecture")
        if self.kind not in _BUILDERS:
            raise unknown_name("kind", self.kind, _BUILDERS, where="an architecture")
        if not self.widths or min(self.widths) < 1:
            raise NfoptError(f"an architecture needs positive widths, not {self.widths}.")
        if self.norm == "layer" and self.kind != "mlp":
            raise NfoptError(f"norm='layer' needs kind='mlp', not {self.kind!r}; use 'batch' or 'none'.")

    def build(self) -> nn.Module:
        """Return the module; its parameters serve as shapes (`initial_parameters` draws the values)."""
        return _BUILDERS[self.kind](self)

    def example_inputs(self) -> Tensor:
        """Return a batch of two zero images, for tracing."""
        return torch.zeros(2, *self.image)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        return x + self.body(x)


def _normed(arch: Architecture, channels: int) -> list[nn.Module]:
    if arch.norm == "none":
        return []
    if arch.norm == "layer":
        return [nn.LayerNorm(channels)]
    batch_norm = nn.BatchNorm1d if arch.kind == "mlp" else nn.BatchNorm2d
    return [batch_norm(channels, track_running_stats=False)]


def _activated(arch: Architecture, channels: int) -> list[nn.Module]:
    return [*_normed(arch, channels), ACTIVATIONS[arch.activation]()]


def _conv(arch: Architecture, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=arch.norm == "none")


def _head(arch: Architecture, channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, arch.classes)]


def _mlp(arch: Architecture) -> nn.Module:
    channels, height, width = arch.image
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = channels * height * width
    for neurons in arch.widths:
        layers += [nn.Linear(fan_in, neurons), *_activated(arch, neurons)]
        fan_in = neurons
    return nn.Sequential(*layers, nn.Linear(fan_in, arch.classes))


def _cnn(arch: Architecture) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = arch.image[0]
    for index, channels in enumerate(arch.widths):
        layers += [_conv(arch, inputs, channels, stride=1 + (index > 0)), *_activated(arch, channels)]
        inputs = channels
    return nn.Sequential(*layers, *_head(arch, inputs))


def _resnet(arch: Architecture) -> nn.Module:
    stem = arch.widths[0]
    layers: list[nn.Module] = [_conv(arch, arch.image[0], stem, stride=2), *_activated(arch, stem)]
    for channels in arch.widths[1:]:
        body = [_conv(arch, stem, channels), *_activated(arch, channels), _conv(arch, channels, stem)]
        layers += [Residual(nn.Sequential(*body, *_normed(arch, stem))), ACTIVATIONS[arch.activation]()]
    return nn.Sequential(*layers, *_head(arch, stem))


def _depthwise(arch: Architecture) -> nn.Module:
    inputs = arch.widths[0]
    layers: list[nn.Module] = [_conv(arch, arch.image[0], inputs), *_activated(arch, inputs)]
    for channels in arch.widths[1:]:
        layers += [_conv(arch, inputs, inputs, stride=2, groups=inputs), *_activated(arch, inputs)]
        layers += [nn.Conv2d(inputs, channels, 1, bias=arch.norm == "none"), *_activated(arch, channels)]
        inputs = channels
    return nn.Sequential(*layers, *_head(arch, inputs))


_BUILDERS = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet, "depthwise": _depthwise}


def initial_parameters(
    module: nn.Module, generators: list[torch.Generator], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Draw one initialisation of `module` per generator, side by side.

    Linear and convolution weights and biases are uniform on +-1/sqrt(fan_in) (torch's default, He et al. 2015
    with a = sqrt 5); norms start at scale 1, shift 0.

    Returns:
        The parameters by qualified name, each with a leading dimension of `len(generators)`.
    """
    drawn: dict[str, list[Tensor]] = {}
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in layer.named_parameters(recurse=False):
            key = prefix + name
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = layer.weight[0].numel() ** -0.5
                drawn[key] = [
                    (2 * torch.rand(parameter.shape, generator=g, dtype=torch.float64) - 1) * bound
                    for g in generators
                ]
            else:
                value = 1.0 if name == "weight" else 0.0
                drawn[key] = [torch.full(parameter.shape, value, dtype=torch.float64) for _ in generators]
    return {key: torch.stack(values).to(dtype) for key, values in drawn.items()}
