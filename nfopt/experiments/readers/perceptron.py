"""Perceptron: the multilayer perceptron that ends readers, and its standardised inputs."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, started as by He et al. 2015, the last with variance 1 / inputs.

    Args:
        widths: channels in, of each hidden layer, and out.
        generator: source of the initial weights.
        activation: in the place of ReLU.
    """

    def __init__(
        self,
        widths: Sequence[int],
        generator: torch.Generator,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            gain = (1 if i == len(widths) - 2 else 2) / inputs
            self.weights.append(nn.Parameter(torch.randn(inputs, outputs, generator=generator) * gain**0.5))
            self.biases.append(nn.Parameter(torch.zeros(outputs)))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layers to the last dimension."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x if i == 0 else self.activation(x), weight.mT, bias)
        return x


class Standardiser(nn.Module):
    """Shift and scale each channel by its mean and standard deviation over a zoo; the identity until `fit`.

    Args:
        channels: size of the last dimension.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def fit(self, values: Float[Tensor, "*batch channels"]) -> None:
        """Take the statistics of `values`; a channel that does not vary is shifted alone."""
        flat = values.flatten(0, -2)
        mean, spread = flat.mean(0), flat.std(0, correction=0)
        # What varies by rounding alone must not be blown up to noise of size 1.
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-6 * mean.abs().clamp(min=1e-12), spread, 1))

    def forward(self, values: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """Return the standardised values."""
        return (values - self.mean) / self.scale
