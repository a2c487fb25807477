"""InvariantHead: a vector per net from its equivariant features, pooled and read by a perceptron."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.nn.attention_pooling import AttentionPooling
from nfopt.nn.normalisation import BatchStandardiser
from nfopt.nn.pooling import InvariantPooling


class InvariantHead(nn.Module):
    """Pool the features of each net and read them by a perceptron.

    Args:
        pooling: from features to a vector per net.
        hidden: width of the hidden layer; 0 for a linear head.
        outputs: length of the answer.
        activation: of the hidden layer.
        standardise: whether a `BatchStandardiser` stands between the two.
        generator: source of the initial weights.
    """

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
        self.pooling, self.activation = pooling, activation
        self.standardiser = BatchStandardiser(pooling.features) if standardise else None
        sizes = [pooling.features, *([hidden] if hidden else []), outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for rows, columns in pairwise(sizes):
            self.weights.append(nn.Parameter(torch.randn(rows, columns, generator=generator) / rows**0.5))
            self.biases.append(nn.Parameter(torch.zeros(columns)))

    def fit(self, values: Sequence[Float[Tensor, "nets ..."]]) -> None:
        """Let the standardiser, if there is one, begin with the statistics of some nets.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        if self.standardiser is not None:
            self.standardiser.fit(self.pooling(values))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "*batch outputs"]:
        """Return the answer for each net.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        x = self.pooling(values)
        if self.standardiser is not None:
            x = self.standardiser(x)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x if i == 0 else self.activation(x)) @ weight + bias
        return x
