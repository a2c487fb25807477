"""Transformer over weights: one token per row of a weight tensor."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.experiments.question import Question, Tensors, flatten, unflatten
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader
from nfopt.experiments.readers.rows import WeightRows

HEADS = 4
LAYERS = 3


class WeightTransformer(WeightReader):
    """A transformer whose tokens are rows of weights, with a learned position each.

    As in Schürholt et al. 2021 (arXiv 2110.15288): the incoming weights of a neuron are a token, each tensor
    has its own linear map to channels, and a further token answers. The positions make it see the order of
    neurons, so it is not equivariant.

    Args:
        question: what to answer.
        width: channels of a token, a multiple of `HEADS`.
        generator: source of the initial weights.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.question, self.rows = question, WeightRows.of(question)
        weights = sum(rows * size for rows, size in self.rows.shapes)
        self.standardiser = Standardiser(weights)
        self.enter = nn.ModuleList(Perceptron([size, width], generator) for _, size in self.rows.shapes)
        self.position = nn.Parameter(torch.randn(self.rows.count + 1, width, generator=generator) / 2)
        self.layers = nn.ModuleList(_Layer(width, generator) for _ in range(LAYERS))
        if question.head == "invariant":
            self.leave = nn.ModuleList([Perceptron([width, question.outputs], generator)])
        else:
            self.leave = nn.ModuleList(
                Perceptron([width, size * question.outputs], generator) for _, size in self.rows.shapes
            )

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the mean and the standard deviation of each weight over the nets."""
        self.standardiser.fit(flatten(self.question, tensors))

    def forward(self, tensors: Tensors) -> Tensor | dict[str, Tensor]:
        """Return what is read off each net."""
        flat = self.standardiser(flatten(self.question, tensors))
        rows = self.rows.split(unflatten(self.question, flat))
        tokens = [enter(part) for enter, part in zip(self.enter, rows, strict=True)]
        answer = flat.new_zeros(len(flat), 1, self.position.shape[-1])
        x = torch.cat([answer, *tokens], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        x = F.layer_norm(x, x.shape[-1:])
        scale = self.question.output_scale
        if self.question.head == "invariant":
            return self.leave[0](x[:, 0]) * scale
        parts = x[:, 1:].split([count for count, _ in self.rows.shapes], dim=1)
        written = [leave(part) for leave, part in zip(self.leave, parts, strict=True)]
        x, edits = self.rows.join(written) * scale, self.question.outputs
        return unflatten(self.question, x if edits == 1 else x.unflatten(1, (-1, edits)))


class _Layer(nn.Module):
    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.qkv = Perceptron([width, 3 * width], generator)
        self.out = Perceptron([width, width], generator)
        self.mlp = Perceptron([width, 2 * width, width], generator)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(F.layer_norm(x, x.shape[-1:])).chunk(3, dim=-1)
        )
        heard = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x = x + self.out(heard)
        return x + self.mlp(F.layer_norm(x, x.shape[-1:]))


@reader("transformer", "Transformer", step=HEADS)
def transformer(question: Question, width: int, generator: torch.Generator) -> WeightTransformer:
    """Build the transformer over weight rows."""
    return WeightTransformer(question, width, generator)
