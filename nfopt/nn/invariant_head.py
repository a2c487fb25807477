"""InvariantHead: a vector per net from its equivariant features, pooled and read by a perceptron."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.nn.attention_pooling import AttentionPooling
from nfopt.nn.pooling import InvariantPooling


class InvariantHead(nn.Module):
    """Pool the features of each net and read them by a perceptron.

    Averages over many neurons differ little from net to net: read as they come, nearly all of a pooled vector
    is the same for every net, and a training begins by unlearning it. With `standardise`, each pooled feature
    is shifted and scaled by its mean and standard deviation over a zoo (`fit`) before it is read.

    Args:
        pooling: from features to a vector per net.
        hidden: width of the hidden layer; 0 for a linear head.
        outputs: length of the answer.
        activation: of the hidden layer.
        standardise: whether pooled features are standardised; until `fit` this changes nothing.
        generator: source of the initial weights.
    """

    pooled_mean: Tensor
    pooled_std: Tensor

    def __init__(
        self,
        pooling: InvariantPooling | AttentionPooling,
        hidden: int,
        outputs: int,
        activation: Callable[[Tensor], Tensor],
        *,
        standardise: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.pooling, self.activation, self.standardise = pooling, activation, standardise
        sizes = [pooling.features, *([hidden] if hidden else []), outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for rows, columns in pairwise(sizes):
            self.weights.append(nn.Parameter(torch.randn(rows, columns, generator=generator) / rows**0.5))
            self.biases.append(nn.Parameter(torch.zeros(columns)))
        if standardise:
            self.register_buffer("pooled_mean", torch.zeros(pooling.features))
            self.register_buffer("pooled_std", torch.ones(pooling.features))

    @torch.no_grad()
    def fit(self, values: Sequence[Float[Tensor, "nets ..."]]) -> None:
        """Take mean and standard deviation of each pooled feature over nets; the constant is shifted alone.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        pooled = self.pooling(values)
        mean, std = pooled.mean(0), pooled.std(0, correction=0)
        # What varies by rounding alone must not be blown up to noise of size 1.
        varies = std > 1e-6 * pooled.square().mean(0).sqrt()
        self.pooled_mean.copy_(mean)
        self.pooled_std.copy_(torch.where(varies, std, 1))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "*batch outputs"]:
        """Return the answer for each net.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        x = self.pooling(values)
        if self.standardise:
            x = (x - self.pooled_mean) / self.pooled_std
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x if i == 0 else self.activation(x)) @ weight + bias
        return x
