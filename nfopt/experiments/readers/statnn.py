"""StatNN: a perceptron over a few statistics of each weight tensor."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.experiments.question import Question, Tensors, flatten
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATISTICS = 2 + len(QUANTILES)
HIDDEN_LAYERS = 2


def weight_statistics(question: Question, tensors: Tensors) -> Float[Tensor, "nets statistics"]:
    """Return mean, variance and the quantiles 0, 1/4, 1/2, 3/4, 1 of each tensor of each net.

    Those of Unterthiner et al. 2020 (arXiv 2002.11448, section 3): seven numbers per tensor, invariant.
    """
    counts = [torch.Size(shape).numel() for shape in question.shapes.values()]
    parts = flatten(question, tensors).split(counts, dim=1)
    return torch.cat([statistics_of(part) for part in parts], dim=1)


def statistics_of(values: Float[Tensor, "nets values"]) -> Float[Tensor, "nets 7"]:
    """Return mean, variance and the quantiles 0, 1/4, 1/2, 3/4, 1 of each row."""
    levels = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    moments = [values.mean(1, keepdim=True), values.var(1, correction=0, keepdim=True)]
    return torch.cat([*moments, torch.quantile(values, levels, dim=1).mT], dim=1)


class StatNN(WeightReader):
    """A perceptron over `weight_statistics`; the paper's best reader of them is a forest of boosted trees.

    Args:
        question: what to answer, with an invariant head.
        width: of its hidden layers.
        generator: source of the initial weights.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.question = question
        features = STATISTICS * len(question.shapes)
        self.standardiser = Standardiser(features)
        self.layers = Perceptron([features, *[width] * HIDDEN_LAYERS, question.outputs], generator)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the mean and the standard deviation of each statistic over the nets."""
        self.standardiser.fit(weight_statistics(self.question, tensors))

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        read = self.standardiser(weight_statistics(self.question, tensors))
        return self.layers(read) * self.question.output_scale


@reader("statnn", "StatNN", heads=("invariant",))
def statnn(question: Question, width: int, generator: torch.Generator) -> StatNN:
    """Build the perceptron over statistics."""
    return StatNN(question, width, generator)
